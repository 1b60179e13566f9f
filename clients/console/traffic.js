// The traffic split of a task: a canary next to the active version.

import { call, seg } from "./api.js";
import { button, field, h, setText } from "./dom.js";
import { split } from "./parts.js";

export function trafficForm(context) {
  const { task, listed } = context;
  const candidates = listed.versions.map((v) => v.version).filter((v) => v !== listed.active_version);
  const title = h("h2", {}, "Traffic");
  if (listed.active_version === null) {
    return [title, h("p", { class: "hint" }, "No version is active, so requests are refused. Activate one below.")];
  }
  const now = split(task.weights ?? { [listed.active_version]: 1 });
  if (!candidates.length) {
    return [title, now, h("p", { class: "hint" }, "To try a second version on part of the traffic, upload one without activating it.")];
  }
  return [title, now, canary(context, candidates.reverse())];
}

function canary({ task, listed, act }, candidates) {
  const { chosen, part } = present(task.weights, listed.active_version, candidates);
  const select = h("select", { "data-key": "canary" }, candidates.map((v) => h("option", { value: String(v), selected: v === chosen }, `v${v}`)));
  const slider = h("input", { type: "range", min: "0", max: "100", step: "1", value: String(part), "data-key": "slider" });
  const words = h("output", {});
  const path = `tasks/${seg(task.name)}/traffic`;
  const revision = task.revision;

  function say() {
    const share = Number(slider.value);
    setText(words, `${share} % to v${select.value}, ${100 - share} % to v${listed.active_version}`);
    slider.setAttribute("aria-valuetext", words.textContent);
  }

  function apply(event) {
    event.preventDefault();
    const share = Number(slider.value);
    const weights = { [listed.active_version]: 100 - share, [select.value]: share };
    act(`Traffic: ${words.textContent}.`, () => call("PUT", path, { json: { weights }, revision }));
  }

  const all = () => act(`All traffic to v${listed.active_version}.`, () => call("DELETE", path, { revision }));
  slider.addEventListener("input", say);
  select.addEventListener("change", say);
  say();
  return h(
    "form",
    { class: "canary", on: { submit: apply } },
    field("Canary", select),
    h("div", { class: "grow" }, field("Share of the traffic", slider), words),
    h(
      "div",
      { class: "buttons" },
      h("button", { type: "submit", class: "primary" }, "Apply"),
      button(`All to v${listed.active_version}`, all, { disabled: !task.weights, "data-key": "all" }),
    ),
  );
}

/** The slider's position for the current split. */
function present(weights, active, candidates) {
  const others = Object.keys(weights ?? {}).map(Number).filter((v) => v !== active);
  if (!others.length) return { chosen: candidates[0], part: weights ? 0 : 10 };
  const all = Object.values(weights).reduce((sum, weight) => sum + weight, 0);
  return { chosen: others[0], part: Math.round((100 * weights[others[0]]) / all) };
}
