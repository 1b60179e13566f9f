// The report of a verification.

import { h } from "./dom.js";

const NAMES = {
  format: "Format",
  base_model: "Base model",
  base_model_name: "Base model's name",
  shapes: "Shapes",
  finite_values: "Finite values",
  norms: "Norms",
  forward: "Forward pass",
  effect: "Effect",
  golden: "Golden prompts",
  stored_bytes: "Stored bytes",
};

export function checks(verification) {
  if (!verification.length) return h("p", { class: "hint" }, "No report: this version was uploaded before reports were kept.");
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
