// How a version is asked: its fields in a form, and its differences from another version.

import { field, h } from "./dom.js";

const NUMBERS = [
  ["max_tokens", "Max tokens", { min: "1", step: "1" }],
  ["temperature", "Temperature", { min: "0", max: "2", step: "any" }],
];

/** Fields for template, chat, stop sequences, max tokens and temperature. `read` returns the definition that they make of
 *  the one that `show` was called with: what they do not show stays as it is. */
export function definitionFields() {
  const template = h("textarea", { rows: "3", class: "code", spellcheck: "false", placeholder: "Review: {prompt}\nSentiment:" });
  const chat = h("input", { type: "checkbox" });
  const stop = h("textarea", { rows: "2", class: "code", spellcheck: "false" });
  const numbers = NUMBERS.map(([name, , limits]) => [name, h("input", { type: "number", placeholder: "default", ...limits })]);
  let shown = {};
  let before = "";
  const elements = [
    field("Template", template, "Text around every prompt, with {prompt} in it. Empty: none."),
    h("label", { class: "check" }, chat, "A prompt is a user message of the model's chat template"),
    field("Stop sequences", stop, "One per line. Use \\n for a newline."),
    h("div", { class: "row" }, NUMBERS.map(([, label], i) => field(label, numbers[i][1]))),
  ];

  function show(definition) {
    shown = definition;
    template.value = definition.template ?? "";
    before = template.value; // the browser turns \r\n into \n
    chat.checked = definition.chat ?? false;
    stop.value = (definition.defaults?.stop ?? []).map(escaped).join("\n");
    for (const [name, input] of numbers) input.value = definition.defaults?.[name] ?? "";
  }

  function read() {
    const stops = stop.value.split("\n").filter(Boolean).map(unescaped);
    const defaults = { ...known(shown.defaults ?? {}), stop: stops };
    if (!stops.length) delete defaults.stop;
    for (const [name, input] of numbers) {
      if (input.value === "") delete defaults[name];
      else defaults[name] = Number(input.value);
    }
    const text = template.value === before ? shown.template : template.value;
    return { ...shown, template: text || null, chat: chat.checked, defaults };
  }

  return { elements, show, read };
}

/** Template, chat and defaults as `[name, value]`. */
export function definitionFacts({ template, chat, defaults }) {
  return [
    ["Prompt", chat ? "a user message of the model's chat template" : "plain text"],
    ["Template", template && h("pre", {}, template)],
    ["Defaults", settings(defaults)],
  ];
}

/** Names and values of the settings that are given. */
export function settings(values) {
  return Object.entries(known(values)).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ");
}

/** What differs between a version and the one before it. */
export function changes(version, before) {
  if (!before) return [];
  const now = parts(version);
  const then = parts(before);
  return Object.keys(now).filter((name) => JSON.stringify(now[name]) !== JSON.stringify(then[name]));
}

function parts({ digest, definition, golden }) {
  const { template, chat, defaults } = definition ?? {};
  return { prefix: digest, template, chat, defaults: settings(defaults ?? {}), "golden prompts": golden };
}

function known(values) {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null));
}

/** Write a text on one line: a backslash, newlines and tabs as in JSON. */
function escaped(text) {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\r", "\\r").replaceAll("\t", "\\t");
}

function unescaped(line) {
  const characters = { n: "\n", r: "\r", t: "\t", "\\": "\\" };
  return line.replaceAll(/\\([nrt\\])/g, (_, letter) => characters[letter]);
}
