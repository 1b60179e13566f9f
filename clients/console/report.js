// What came out of a verification.

import { h } from "./dom.js";

const NAMES = {
  format: "Format",
  base_model: "Base model",
  base_model_name: "Model it was trained for",
  shapes: "Shapes",
  finite_values: "Finite values",
  norms: "Norms",
  forward: "A run of the model",
  effect: "Effect",
  golden: "Golden prompts",
  stored_bytes: "Stored bytes",
};

export function checks(verification) {
  if (!verification.length) return h("p", { class: "hint" }, "Nothing is written down: it was uploaded before there was a report.");
  return h(
    "table",
    { class: "checks" },
    h("caption", { class: "unseen" }, "Checks"),
    h("tbody", {}, verification.map(check)),
  );
}

function check({ name, passed, detail }) {
  return h(
    "tr",
    { class: passed ? "passed" : "failed" },
    h("td", { class: "outcome" }, passed ? "passed" : "failed"),
    h("th", { scope: "row" }, NAMES[name] ?? name),
    h("td", {}, detail),
  );
}
