// One prompt or chat, one to four tasks or versions side by side, as the tokens come.

import { call } from "./api.js";
import { button, field, freshId, h, replace } from "./dom.js";
import { pane } from "./pane.js";
import { problemBox } from "./parts.js";
import { samplingFields } from "./sampling.js";

const NAMES = ["A", "B", "C", "D"];
const MODES = [["prompt", "Completion"], ["chat", "Chat"]];

/** Kept while another view is open. */
const last = { mode: "prompt", prompt: "", values: {}, fields: {}, panes: [null, null] };

export function playground(view, _, query) {
  const prompt = h("textarea", { rows: "3", on: { keydown: shortcut, input: () => (last.prompt = prompt.value) } });
  prompt.value = last.prompt;
  const words = field("Prompt", prompt, "Ctrl + Enter runs it.");
  const sampling = samplingFields(last.values);
  const fields = h("div", { class: "row" });
  const problems = h("div");
  const go = h("button", { type: "submit", class: "primary" }, "Run");
  const halt = button("Stop", () => running?.abort(), { disabled: true });
  const anew = button("New chat", () => panes.forEach((one) => one.forget()));
  const more = button("Add a side", () => add(null));
  const places = h("div", { class: "panes" });
  const modes = modeChoice(setMode);
  const panes = [];
  let models = null;
  let running = null;

  function add(wanted) {
    const name = NAMES.find((one) => !panes.some((pane) => pane.name === one));
    const one = pane(name, wanted, { onChange: choose, onRemove: () => drop(one), asked: () => asked(one) });
    panes.push(one);
    panes.sort((a, b) => a.name.localeCompare(b.name));
    if (models) one.offer(models);
    arrange();
  }

  function drop(one) {
    one.stop();
    panes.splice(panes.indexOf(one), 1);
    arrange();
    choose();
    more.focus();
  }

  function arrange() {
    replace(places, panes.map(({ element }) => element));
    places.className = `panes panes-${panes.length}`;
    more.disabled = panes.length === NAMES.length;
    panes.forEach((one) => one.mayRemove(panes.length > 1));
  }

  function choose() {
    last.panes = panes.map(({ reference }) => reference());
    const names = [...new Set(panes.flatMap((one) => one.fields()))];
    replace(fields, names.map(templateField));
  }

  function templateField(name) {
    const input = h("input", { type: "text", value: last.fields[name] ?? "", "data-key": `field-${name}` });
    input.addEventListener("input", () => (last.fields[name] = input.value));
    return field(`{${name}}`, input);
  }

  function setMode(mode) {
    last.mode = mode;
    words.querySelector("label").textContent = mode === "chat" ? "Message" : "Prompt";
    anew.hidden = mode !== "chat";
    panes.forEach((one) => one.forget());
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
    replace(problems);
    try {
      const bodies = panes.map(asked);
      running = new AbortController();
      go.disabled = true;
      halt.disabled = false;
      const runs = panes.map((one, i) => one.run(bodies[i], running.signal));
      if (last.mode === "chat") prompt.value = last.prompt = "";
      await Promise.all(runs);
    } catch (error) {
      replace(problems, problemBox({ title: "Not sent", detail: error.message }));
    }
    running = null;
    go.disabled = false;
    halt.disabled = true;
  }

  /** The request body of a side. Empty fields are left out: the task's defaults apply. */
  function asked(one) {
    const names = one.fields();
    const body = sampling.read();
    if (names.length) body.fields = Object.fromEntries(names.map((name) => [name, last.fields[name] ?? ""]));
    const said = { role: "user", content: prompt.value };
    return last.mode === "chat" ? { messages: [...one.chat(), said], ...body } : { prompt: prompt.value, ...body };
  }

  const form = h(
    "form",
    { class: "card", on: { submit } },
    modes,
    words,
    fields,
    sampling.elements,
    h("div", { class: "buttons" }, more, anew, halt, go),
  );

  async function listTasks() {
    try {
      const { data } = await call("GET", "v1/models");
      models = data.map(({ id }) => id);
      panes.forEach((one) => one.offer(models));
    } catch (problem) {
      problems.replaceChildren(problemBox(problem, listTasks));
    }
  }

  view.append(h("div", { class: "heading" }, h("h1", {}, "Playground")), problems, form, places);
  wantedPanes(query).forEach(add);
  setMode(last.mode);
  listTasks();
  return () => {
    running?.abort();
    panes.forEach((one) => one.stop());
  };
}

function modeChoice(choose) {
  const group = freshId();
  const radio = ([mode, words]) => h("label", {}, h("input", { type: "radio", name: group, value: mode, checked: mode === last.mode, on: { change: () => choose(mode) } }), words);
  return h("fieldset", { class: "choice" }, h("legend", { class: "unseen" }, "Mode"), MODES.map(radio));
}

/** What the address asks for, side by side; else what was last open. */
function wantedPanes(query) {
  const inAddress = NAMES.map((name) => query.get(name.toLowerCase()));
  const count = Math.max(last.panes.length, ...inAddress.map((one, i) => (one === null ? 0 : i + 1)));
  return Array.from({ length: count }, (_, i) => (inAddress[i] === null ? (last.panes[i] ?? null) : reference(inAddress[i])));
}

function reference(text) {
  const [task, version] = text.split("@");
  return { task, version: version ?? "" };
}
