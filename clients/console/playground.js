// One prompt, two tasks or versions side by side, as the tokens come.

import { call } from "./api.js";
import { button, field, h, replace } from "./dom.js";
import { pane } from "./pane.js";
import { problemBox } from "./parts.js";

const NUMBERS = [
  ["max_tokens", "Max tokens", { min: "1", step: "1" }],
  ["temperature", "Temperature", { min: "0", max: "2", step: "any" }],
  ["seed", "Seed", { min: "0", step: "1" }],
];

/** Kept while another view is open. */
const last = { prompt: "", values: {}, fields: {}, panes: [null, null] };

export function playground(view, _, query) {
  const prompt = h("textarea", { rows: "3", on: { keydown: shortcut } });
  prompt.value = last.prompt;
  const numbers = NUMBERS.map(([name, label, limits]) => [name, label, h("input", { type: "number", value: last.values[name] ?? "", ...limits })]);
  const stop = h("input", { type: "text", value: last.values.stop ?? "", spellcheck: "false", autocomplete: "off" });
  const fields = h("div", { class: "row" });
  const problems = h("div");
  const go = h("button", { type: "submit", class: "primary" }, "Run");
  const halt = button("Stop", () => running?.abort(), { disabled: true });
  const panes = ["A", "B"].map((name, i) => pane(name, wanted(query, i), choose));
  let running = null;

  function choose() {
    panes.forEach(({ reference }, i) => (last.panes[i] = reference()));
    const names = [...new Set(panes.flatMap((one) => one.fields()))];
    replace(fields, names.map(templateField));
  }

  function templateField(name) {
    const input = h("input", { type: "text", value: last.fields[name] ?? "", "data-key": `field-${name}` });
    input.addEventListener("input", () => (last.fields[name] = input.value));
    return field(`{${name}}`, input);
  }

  function shortcut(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  }

  async function submit(event) {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    go.disabled = true;
    halt.disabled = false;
    remember();
    await Promise.all(panes.map((one) => one.run(asked(one), running.signal)));
    running = null;
    go.disabled = false;
    halt.disabled = true;
  }

  function remember() {
    last.prompt = prompt.value;
    last.values = Object.fromEntries(numbers.map(([name, , input]) => [name, input.value]));
    last.values.stop = stop.value;
  }

  /** The request body. Empty fields are left out: the task's defaults apply. */
  function asked(one) {
    const given = Object.entries(last.values).filter(([name, value]) => value !== "" && name !== "stop");
    const body = Object.fromEntries(given.map(([name, value]) => [name, Number(value)]));
    if (last.values.stop) body.stop = unescaped(last.values.stop);
    const names = one.fields();
    if (names.length) body.fields = Object.fromEntries(names.map((name) => [name, last.fields[name] ?? ""]));
    return { prompt: last.prompt, ...body };
  }

  const form = h(
    "form",
    { class: "card", on: { submit } },
    field("Prompt", prompt, "Ctrl + Enter runs it."),
    fields,
    h(
      "details",
      {},
      h("summary", {}, "Sampling"),
      h("p", { class: "hint" }, "Empty fields take the task's defaults, then the server's."),
      h("div", { class: "row" }, numbers.map(([, label, input]) => field(label, input)), field("Stop sequences", stop, "Use \\n for a newline.")),
    ),
    h("div", { class: "buttons" }, halt, go),
  );

  async function listTasks() {
    try {
      const { data } = await call("GET", "v1/models");
      panes.forEach((one) => one.offer(data.map(({ id }) => id)));
    } catch (problem) {
      problems.replaceChildren(problemBox(problem, listTasks));
    }
  }

  view.append(h("div", { class: "heading" }, h("h1", {}, "Playground")), problems, form, h("div", { class: "panes" }, panes.map(({ element }) => element)));
  listTasks();
  return () => running?.abort();
}

function wanted(query, i) {
  const asked = query.get(["a", "b"][i]);
  if (asked === null) return last.panes[i] ?? null;
  const [task, version] = asked.split("@");
  return { task, version: version ?? "" };
}

const unescaped = (text) => text.replaceAll("\\n", "\n").replaceAll("\\t", "\t");
