// What belongs to a task and not to a version: description, limits, weight, golden prompts.

import { call, seg } from "./api.js";
import { settings } from "./definition.js";
import { field, h } from "./dom.js";
import { definitions } from "./parts.js";

const LIMITS = [
  ["max_tokens", "Max tokens"],
  ["max_prompt_tokens", "Max prompt tokens"],
  ["max_concurrency", "Requests at once"],
];
const GOLDEN_HINT = "One JSON object per line. Each version has to begin its greedy completion like this before it can be activated.";

export function taskSettings(task, act) {
  const { description, limits, weight, golden } = task.profile;
  const facts = [
    ["Description", description],
    ["Limits", settings(limits)],
    ["Weight", String(weight)],
    ["Golden prompts", golden.length > 0 && golden.map(({ prompt, expect }) => h("div", {}, `${JSON.stringify(prompt)} → ${JSON.stringify(expect)}`))],
  ];
  return [h("h2", {}, "Settings"), definitions(facts), form(task, act)];
}

function form({ name, profile, revision }, act) {
  const description = h("textarea", { rows: "2", maxlength: "10000" });
  description.value = profile.description;
  const limits = LIMITS.map(([limit]) => h("input", { type: "number", min: "1", step: "1", placeholder: "no limit", value: profile.limits[limit] ?? "" }));
  const weight = h("input", { type: "number", min: "0.01", max: "100", step: "any", required: true, value: String(profile.weight) });
  const golden = h("textarea", { rows: "3", class: "code", spellcheck: "false", placeholder: '{"prompt": "rich", "expect": "poor"}' });
  golden.value = profile.golden.map((one) => JSON.stringify(one)).join("\n");

  function changed() {
    const values = LIMITS.map(([limit], i) => [limit, limits[i].value === "" ? null : Number(limits[i].value)]);
    return { description: description.value, limits: Object.fromEntries(values), weight: Number(weight.value), golden: prompts(golden.value) };
  }

  function save(event) {
    event.preventDefault();
    act("The settings are saved.", () => call("PATCH", `tasks/${seg(name)}`, { json: changed(), revision }));
  }

  return h(
    "details",
    {},
    h("summary", {}, "Change the settings"),
    h(
      "form",
      { class: "asked", on: { submit: save } },
      field("Description", description),
      h("div", { class: "row" }, LIMITS.map(([, label], i) => field(label, limits[i]))),
      field("Weight", weight, "Share of the engine when tasks compete, relative to a task of weight 1."),
      field("Golden prompts", golden, GOLDEN_HINT),
      h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Save the settings")),
    ),
  );
}

/** Throws an `Error` that names the line. */
function prompts(text) {
  const lines = text.split("\n").map((line) => line.trim());
  return lines.flatMap((line, i) => (line ? [parsed(line, i + 1)] : []));
}

function parsed(line, number) {
  try {
    return JSON.parse(line);
  } catch (error) {
    throw new Error(`Line ${number} of the golden prompts is not JSON: ${error.message}`);
  }
}
