// All tasks: live version, residency of its prefix, request rate.

import { call, seg } from "./api.js";
import { sparkline } from "./charts.js";
import { button, h, replace, setText } from "./dom.js";
import { current, feed, speed, speeds, watch } from "./feed.js";
import { DASH, bytes, figure, plural } from "./format.js";
import { badge, empty, problemBox, residency, split } from "./parts.js";
import { every } from "./poll.js";

const PAGE = 25;
const EVERY_MS = 4000;
const STALE_MS = 10_000;

export function tasks(view) {
  const known = new Map();
  const summary = h("p", { class: "summary" });
  const rows = h("div", { class: "card" });
  const pages = h("div", { class: "buttons" });
  const note = h("div");
  const before = [];
  let after = "";
  let shown = "";
  let stop = () => {};

  async function load() {
    let page;
    try {
      page = await call("GET", `tasks?limit=${PAGE}${after && `&after=${seg(after)}`}`);
    } catch (problem) {
      shown = "";
      rows.replaceChildren(problemBox(problem, restart));
      throw problem;
    }
    const found = await described(page.tasks, known);
    const said = JSON.stringify([found, page.next_after]);
    if (said !== shown) replace(rows, found.length ? table(found) : nothing(before.length > 0));
    shown = said;
    turning(page.next_after);
    update();
  }

  function restart() {
    stop();
    stop = every(EVERY_MS, load);
  }

  function turning(next) {
    const turn = (text, to) => button(text, to, { "data-key": text });
    const back = before.length > 0 && turn("Previous", () => ((after = before.pop()), restart()));
    const on = next && turn("Next", () => (before.push(after), (after = next), restart()));
    replace(pages, back, on);
  }

  function update() {
    for (const row of rows.querySelectorAll("[data-task]")) updateRates(row);
    setText(summary, summed());
    replace(note, feed.problem?.status === 403 && withoutRates(feed.problem));
  }

  view.append(
    h("div", { class: "heading" }, h("h1", {}, "Tasks"), h("a", { class: "button primary", href: "#/upload" }, "Upload a prefix")),
    summary,
    note,
    rows,
    pages,
  );
  restart();
  const unwatch = watch(update);
  return () => {
    stop();
    unwatch();
  };
}

/** Add residency and split, which the list lacks. Four at a time: keys have rate limits. */
async function described(found, known) {
  const waiting = found.filter((task) => isStale(task, known.get(task.name)));
  async function work() {
    for (let task = waiting.shift(); task; task = waiting.shift()) {
      const value = await call("GET", `tasks/${seg(task.name)}`).catch(() => task);
      known.set(task.name, { value, revision: task.revision, atMs: Date.now() });
    }
  }
  await Promise.all([work(), work(), work(), work()]);
  return found.map(({ name }) => known.get(name).value);
}

function isStale({ revision }, last) {
  return last?.revision !== revision || Date.now() - last.atMs > STALE_MS;
}

function table(found) {
  const heads = ["Task", "Live", "Prefix", "Versions", "Requests / s", "Tokens / s"];
  const head = heads.map((text, i) => h("th", { scope: "col", class: i > 2 ? "number" : "" }, text));
  return h(
    "table",
    { class: "list" },
    h("caption", { class: "unseen" }, "Tasks with live version, residency and rates"),
    h("thead", {}, h("tr", {}, head)),
    h("tbody", {}, found.map(row)),
  );
}

function row(task) {
  const link = h("a", { href: `#/task/${seg(task.name)}`, "data-key": task.name }, task.name);
  return h(
    "tr",
    { "data-task": task.name },
    h("th", { scope: "row" }, link, h("span", { class: "description" }, task.profile.description)),
    h("td", { "data-head": "Live" }, liveVersions(task)),
    h("td", { "data-head": "Prefix" }, residency(task.residency)),
    h("td", { class: "number", "data-head": "Versions" }, String(task.num_versions)),
    h("td", { class: "number requests", "data-head": "Requests / s" }, DASH),
    h("td", { class: "number tokens", "data-head": "Tokens / s" }, h("span", { class: "drawn" }), h("span", { class: "said" }, DASH)),
  );
}

function liveVersions(task) {
  if (task.weights) return split(task.weights);
  return task.active_version === null ? badge("no version yet", "none") : `v${task.active_version}`;
}

function updateRates(row) {
  const labels = { task: row.dataset.task };
  setText(row.querySelector(".requests"), figure(speed("foreword_requests_total", labels)));
  setText(row.querySelector(".said"), figure(speed("foreword_completion_tokens_total", labels)));
  row.querySelector(".drawn").replaceChildren(sparkline(speeds("foreword_completion_tokens_total", labels, 30)));
}

function summed() {
  const now = (name) => current(`foreword_engine_${name}`);
  if (now("running_requests") === null) return "";
  return [
    `${figure(speed("foreword_engine_decode_tokens_total"))} tokens / s`,
    `${plural(now("running_requests"), "request")} running, ${now("waiting_requests")} waiting`,
    `${plural(now("prefixes_on_device"), "prefix", "prefixes")} on the device, ${bytes(now("prefix_device_bytes"))}`,
  ].join(" · ");
}

function withoutRates(problem) {
  return h("p", { class: "hint" }, `Rates are not shown: ${problem.detail}.`);
}

function nothing(isLaterPage) {
  if (isLaterPage) return empty("No more tasks", "This is the end of the list.");
  return empty(
    "No tasks yet",
    "A task is a name with a prefix. Upload a prefix trained with PEFT, or have the server compute one from a text.",
    h("a", { class: "button primary", href: "#/upload" }, "Upload a prefix"),
  );
}
