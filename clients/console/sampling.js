// What a request asks for beside its prompt: sampling, stop sequences, the form of the answer.

import { field, h } from "./dom.js";

const NUMBERS = [
  ["max_tokens", "Max tokens", { min: "1", step: "1" }],
  ["temperature", "Temperature", { min: "0", max: "2", step: "any" }],
  ["top_p", "Top p", { min: "0", max: "1", step: "any" }],
  ["top_k", "Top k", { min: "0", step: "1" }],
  ["min_p", "Min p", { min: "0", max: "1", step: "any" }],
  ["repetition_penalty", "Repetition penalty", { min: "0", max: "10", step: "any" }],
  ["presence_penalty", "Presence penalty", { min: "-2", max: "2", step: "any" }],
  ["frequency_penalty", "Frequency penalty", { min: "-2", max: "2", step: "any" }],
  ["seed", "Seed", { min: "0", step: "1" }],
];
const FORMS = {
  "": ["As the task says", "", () => ({})],
  schema: ["JSON of a schema", "A JSON schema.", (text) => ({ response_format: { type: "json_schema", json_schema: { name: "answer", schema: parsed(text) } } })],
  json: ["Any JSON object", "", () => ({ response_format: { type: "json_object" } })],
  regex: ["A regular expression", "The answer matches it from start to end.", (text) => ({ regex: text })],
  choice: ["One of several texts", "One per line.", (text) => ({ choice: text.split("\n").filter(Boolean) })],
};

/** Fields with the values of `last`, which they keep up to date. `read` returns a part of a request's
 *  body: empty fields are left out. It throws an `Error` if the schema is no JSON. */
export function samplingFields(last) {
  const numbers = NUMBERS.map(([name, , limits]) => input(name, { type: "number", ...limits }));
  const stop = input("stop", { type: "text", spellcheck: "false", autocomplete: "off" });
  const form = h("select", { on: { change } }, Object.entries(FORMS).map(([value, [words]]) => h("option", { value, selected: value === (last.form ?? "") }, words)));
  const text = h("textarea", { rows: "4", class: "code", spellcheck: "false", on: { input: () => (last.formText = text.value) } });
  const hint = h("span", {});
  const panel = h("div", { hidden: true }, field("Form", text, hint));
  text.value = last.formText ?? "";

  function input(name, props) {
    const element = h("input", { value: last[name] ?? "", ...props });
    element.addEventListener("input", () => (last[name] = element.value));
    return element;
  }

  function change() {
    last.form = form.value;
    const words = FORMS[form.value][1];
    panel.hidden = !words;
    hint.textContent = words;
  }

  function read() {
    const given = NUMBERS.map(([name], i) => [name, numbers[i].value]).filter(([, value]) => value !== "");
    const body = Object.fromEntries(given.map(([name, value]) => [name, Number(value)]));
    if (stop.value) body.stop = unescaped(stop.value);
    return { ...body, ...FORMS[form.value][2](text.value) };
  }

  change();
  const elements = [
    h(
      "details",
      {},
      h("summary", {}, "Sampling"),
      h("p", { class: "hint" }, "Empty fields take the task's defaults, then the server's."),
      h("div", { class: "row" }, NUMBERS.map(([, label], i) => field(label, numbers[i])), field("Stop sequences", stop, "Use \\n for a newline.")),
    ),
    h("details", { open: Boolean(last.form) }, h("summary", {}, "Form of the answer"), h("div", { class: "asked" }, field("Answer", form), panel)),
  ];
  return { elements, read };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The schema is not JSON: ${error.message}`);
  }
}

const unescaped = (text) => text.replaceAll("\\n", "\n").replaceAll("\\t", "\t");
