// Live rates of one task, by version.

import { chart } from "./charts.js";
import { h, replace } from "./dom.js";
import { ratePoints } from "./feed.js";
import { figure, short } from "./format.js";

const MAX_SERIES = 2;

/** Charts of a task's versions that get traffic: `show` sets these, `update` draws new readings. */
export function taskRates(task) {
  const element = h("div", { class: "charts" });
  let versions = [];
  let drawn = [];

  function show(report) {
    const others = report.versions.map(({ version }) => version).filter((version) => version !== report.active_version);
    const wanted = [report.active_version, ...others].filter((version) => version !== null).slice(0, MAX_SERIES);
    if (String(wanted) === String(versions)) return;
    end();
    versions = wanted;
    drawn = [
      { counter: "foreword_version_requests_total", ...rate("Requests per second", versions) },
      { counter: "foreword_version_completion_tokens_total", ...rate("Tokens per second", versions) },
    ];
    replace(element, drawn.map((one) => one.element));
    update();
  }

  function update() {
    for (const { counter, draw } of drawn) draw(ratePoints(counter, versions.map((version) => ({ task, version: String(version) }))));
  }

  function end() {
    for (const one of drawn) one.end();
  }

  return { element, show, update, end };
}

function rate(title, versions) {
  const series = versions.map((version, i) => ({ name: `v${version}`, get: ({ rates }) => rates?.[i] ?? null }));
  return chart({ title, hint: "While this page is visible, read every two seconds.", series, format: figure, axis: short });
}
