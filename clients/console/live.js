// Live charts of the server's load.

import { chart } from "./charts.js";
import { h, replace } from "./dom.js";
import { current, feed, watch } from "./feed.js";
import { DASH, bytes, figure, millis, plural, short } from "./format.js";
import { definitions, problemBox } from "./parts.js";

const perS = (value) => (value === null ? DASH : `${figure(value)} / s`);
const count = (value) => (value === null ? DASH : String(value));

const CHARTS = [
  {
    title: "Throughput",
    hint: "Tokens computed per second.",
    format: perS,
    axis: short,
    series: [
      { name: "Generated", get: (point) => point.decoded },
      { name: "Prompts", get: (point) => point.prefilled },
    ],
  },
  {
    title: "Queue",
    hint: "Requests in the batch, and requests waiting for a place in it.",
    format: count,
    axis: short,
    series: [
      { name: "Running", get: (point) => point.running },
      { name: "Waiting", get: (point) => point.waiting },
    ],
  },
  {
    title: "Time to first token",
    hint: "For requests that finished in the last ten seconds.",
    format: millis,
    axis: millis,
    series: [
      { name: "p50", get: (point) => point.ttft50Ms },
      { name: "p95", get: (point) => point.ttft95Ms },
    ],
  },
];

export function live(view) {
  const problems = h("div");
  const drawn = CHARTS.map(chart);
  const facts = h("section", { class: "card", "aria-label": "Memory and totals" });

  function update() {
    replace(problems, feed.problem && problemBox(feed.problem));
    for (const { draw } of drawn) draw(feed.points);
    replace(facts, h("h2", {}, "Memory and totals"), definitions(totals()));
  }

  view.append(
    h("div", { class: "heading" }, h("h1", {}, "Live"), h("p", { class: "hint" }, "The last five minutes while this page was visible, read every two seconds.")),
    problems,
    h("div", { class: "charts" }, drawn.map(({ element }) => element), facts),
  );
  const unwatch = watch(update);
  update();
  return () => {
    unwatch();
    for (const { end } of drawn) end();
  };
}

function totals() {
  const engine = (name) => current(`foreword_engine_${name}`);
  if (engine("kv_pages") === null) return [["State", "no reading yet"]];
  return [
    ["KV pool", `${engine("kv_pages_used")} of ${plural(engine("kv_pages"), "page")} in use`],
    ["Prefixes on the device", `${engine("prefixes_on_device")}, ${bytes(engine("prefix_device_bytes"))}`],
    ["Prefixes in host memory", `${engine("prefixes_on_host")}, ${bytes(engine("prefix_host_bytes"))}`],
    ["Sequences in the last step", String(engine("batch_size"))],
    ["Prefix loads, evictions", `${engine("prefix_loads_total")}, ${engine("prefix_evictions_total")}`],
    ["Preemptions", String(engine("preemptions_total"))],
    ["Engine restarts", String(engine("restarts_total"))],
    ["Requests", String(current("foreword_requests_total"))],
    ["Damaged blobs", String(current("foreword_quarantined_blobs"))],
  ];
}
