// The traffic split of a task: a canary next to the active version.

import { call, seg } from "./api.js";
import { button, field, h, setText } from "./dom.js";
import { DASH, millis, short } from "./format.js";
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

/** How the versions do that get traffic, side by side, and the rule by which the split ends. */
export function trafficFigures(report) {
  const { versions, rollback_if: rule, rollback_reason: reason, window_s: windowS } = report;
  if (!versions.length) return [];
  const heads = ["Version", "Requests", "Errors", "Refused", "First token, p50", "p95", "Total, p50", "p95", "Evaluation"];
  const rows = versions.map((version) => h("tr", {}, figuresOf(version, report.active_version)));
  return [
    h(
      "div",
      { class: "wide" },
      h("table", { class: "compared" }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows)),
    ),
    h("p", { class: "hint" }, `Requests of the last ${short(windowS / 60)} minutes on this server.`),
    rule && h("p", { class: "hint" }, `All traffic goes back to v${report.active_version} if another version has ${conditions(rule)}.`),
    reason && h("p", { class: "warning" }, `Rolled back by its rule. ${reason}.`),
  ];
}

function figuresOf(version, active) {
  const { first_token_ms: first, total_ms: total, evaluation } = version;
  const rate = version.errors ? `${version.errors} (${short(100 * version.error_rate)} %)` : String(version.errors);
  const scores = evaluation && Object.entries(evaluation.scores).map(([name, score]) => `${name} ${short(score)}`).join(", ");
  const cells = [version.requests, rate, version.refused, millis(first?.p50), millis(first?.p95), millis(total?.p50), millis(total?.p95)];
  return [
    h("th", { scope: "row" }, `v${version.version}${version.version === active ? ", active" : ""}`),
    cells.map((cell, i) => h("td", { class: i === 1 && version.errors ? "number bad" : "number" }, String(cell))),
    h("td", {}, scores || DASH),
  ];
}

function conditions(rule) {
  const limits = [
    [rule.error_rate_above, (limit) => `errors above ${short(100 * limit)} %`],
    [rule.first_token_p95_ms_above, (limit) => `a p95 to the first token above ${millis(limit)}`],
    [rule.total_p95_ms_above, (limit) => `a p95 to the last token above ${millis(limit)}`],
  ];
  const listed = limits.filter(([limit]) => limit !== null).map(([limit, say]) => say(limit));
  if (rule.golden_fails) listed.push("a golden prompt that fails");
  return `${listed.join(", or ")}, after ${rule.min_requests} requests`;
}

function canary({ task, listed, report, act }, candidates) {
  const { chosen, part, isOther } = present(task.weights, listed.active_version, candidates);
  const select = h("select", { "data-key": "canary" }, candidates.map((v) => h("option", { value: String(v), selected: v === chosen }, `v${v}`)));
  const slider = h("input", { type: "range", min: "0", max: "100", step: "1", value: String(part), "data-key": "slider" });
  const words = h("output", {});
  const rule = report.rollback_if;
  const errors = limit(rule?.error_rate_above, 100, { max: "99", "data-key": "errors" });
  const total = limit(rule?.total_p95_ms_above, 1, { "data-key": "total" });
  const path = `tasks/${seg(task.name)}/traffic`;
  const revision = task.revision;
  const go = h("button", { type: "submit", class: "primary" }, "Apply");

  function say() {
    const share = Number(slider.value);
    setText(words, `${share} % to v${select.value}, ${100 - share} % to v${listed.active_version}`);
    slider.setAttribute("aria-valuetext", words.textContent);
    go.disabled = share === 0 && !task.weights; // there is no split to end
  }

  function apply(event) {
    event.preventDefault();
    const share = Number(slider.value);
    const weights = { [listed.active_version]: 100 - share, [select.value]: share };
    const json = { weights, rollback_if: ruleOf(report.rollback_if, errors, total) };
    act(`Traffic: ${words.textContent}.`, () => call("PUT", path, { json, revision }));
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
    field("Roll back if errors exceed, %", errors),
    field("or total p95 exceeds, ms", total),
    h(
      "div",
      { class: "buttons" },
      go,
      button(`All to v${listed.active_version}`, all, { disabled: !task.weights, "data-key": "all" }),
    ),
    isOther && h("p", { class: "warning" }, "The traffic is split in another way than this form can show. Apply replaces the split."),
  );
}

function limit(value, factor, props) {
  const shown = typeof value === "number" ? String(Number((value * factor).toPrecision(12))) : "";
  return h("input", { type: "number", min: "0", step: "any", value: shown, placeholder: "never", ...props });
}

/** The rule in the form, with those conditions of the current rule that the form does not show. */
function ruleOf(current, errors, total) {
  const rule = {
    ...current,
    error_rate_above: errors.value === "" ? null : Number(errors.value) / 100,
    total_p95_ms_above: total.value === "" ? null : Number(total.value),
  };
  const limits = [rule.error_rate_above, rule.total_p95_ms_above, rule.first_token_p95_ms_above ?? null];
  return rule.golden_fails || limits.some((value) => value !== null) ? rule : null;
}

/** The slider's position for the current split. */
function present(weights, active, candidates) {
  const others = Object.keys(weights ?? {}).map(Number).filter((v) => v !== active);
  const isOther = weights && (others.length > 1 || !(active in weights));
  if (!others.length) return { chosen: candidates[0], part: 0, isOther };
  const all = Object.values(weights).reduce((sum, weight) => sum + weight, 0);
  return { chosen: others[0], part: Math.round((100 * weights[others[0]]) / all), isOther };
}
