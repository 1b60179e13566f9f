// All tasks, found and sorted by the server: live version, residency of its prefix, request rate.

import { call, seg } from "./api.js";
import { sparkline } from "./charts.js";
import { field, h, replace, setText } from "./dom.js";
import { current, feed, speed, speeds, watch } from "./feed.js";
import { DASH, bytes, figure, plural } from "./format.js";
import { badge, empty, problemBox, residency, split } from "./parts.js";
import { every } from "./poll.js";

const PAGE = 25;
const EVERY_MS = 4000;
const STALE_MS = 10_000;
const TYPING_MS = 250;
const STATES = [["", "All"], ["active", "Active"], ["split", "Traffic split"], ["inactive", "No active version"]];
const SORTS = [
  ["", "Name, A to Z"],
  ["-name", "Name, Z to A"],
  ["-updated", "Last changed first"],
  ["updated", "Last changed last"],
  ["-created", "Newest first"],
  ["created", "Oldest first"],
];

/** Addresses of the pages from which this one was reached by Next, for Previous. */
const trail = new Map();

export function tasks(view, _, query) {
  const known = new Map();
  const summary = h("p", { class: "summary" });
  const problems = h("div");
  const rows = h("div", { class: "card", hidden: true });
  const pages = h("div", { class: "buttons", role: "group", "aria-label": "Pages" });
  const note = h("div");
  const asked = finder(query, change);
  let after = query.get("after") ?? "";
  let shown = "";
  let stop = () => {};
  let latest = 0;

  async function load() {
    const number = (latest += 1);
    let page;
    try {
      page = await call("GET", `tasks?${new URLSearchParams([["limit", PAGE], ...asked.values(), ...(after ? [["after", after]] : [])])}`);
      problems.replaceChildren();
    } catch (problem) {
      replace(problems, problemBox(problem, restart)); // the list below may be stale
      throw problem;
    }
    const found = await described(page.tasks, known);
    if (number !== latest) return; // something else was asked for in the meantime
    const said = JSON.stringify([found, page.next_after]);
    if (said !== shown) replace(rows, found.length ? table(found) : nothing(asked.values().length > 0, after));
    rows.hidden = false;
    shown = said;
    replace(pages, turning(asked.values(), after, page.next_after));
    update();
  }

  function restart() {
    stop();
    stop = every(EVERY_MS, load);
  }

  /** Another search begins at its first page; it is in the address, and not a step of the history. */
  function change() {
    after = "";
    history.replaceState(null, "", addressOf(asked.values(), ""));
    restart();
  }

  function update() {
    for (const row of rows.querySelectorAll("[data-task]")) updateRates(row);
    setText(summary, summed());
    replace(note, feed.problem?.status === 403 && withoutRates(feed.problem));
  }

  view.append(
    h("div", { class: "heading" }, h("h1", {}, "Tasks"), h("a", { class: "button primary", href: "#/upload" }, "Upload a prefix")),
    summary,
    asked.element,
    note,
    problems,
    rows,
    pages,
  );
  restart();
  const unwatch = watch(update);
  return () => {
    stop();
    unwatch();
    asked.end();
  };
}

/** Search, state and order. `values` lists those that are not the default. */
function finder(query, change) {
  let timer = 0;
  function typed() {
    clearTimeout(timer);
    timer = setTimeout(change, TYPING_MS);
  }
  const option = ([value, words], chosen) => h("option", { value, selected: value === chosen }, words);
  const choice = (name, options) => h("select", { name, on: { change } }, options.map((one) => option(one, query.get(name) ?? "")));
  const search = h("input", { type: "search", name: "search", maxlength: "100", autocomplete: "off", spellcheck: "false", value: query.get("search") ?? "", on: { input: typed } });
  const controls = [search, choice("state", STATES), choice("sort", SORTS)];
  const element = h(
    "form",
    { class: "row finder", role: "search", on: { submit: (event) => (event.preventDefault(), change()) } },
    ["Search by name or description", "State", "Order"].map((label, i) => field(label, controls[i])),
  );
  return { element, end: () => clearTimeout(timer), values: () => controls.filter(({ value }) => value).map(({ name, value }) => [name, value]) };
}

function addressOf(values, after) {
  const query = new URLSearchParams(after ? [...values, ["after", after]] : values);
  return query.size ? `#/tasks?${query}` : "#/tasks";
}

function turning(values, after, next) {
  const here = addressOf(values, after);
  const turn = (text, to) => h("a", { class: "button", href: to, "data-key": text }, text);
  if (next) trail.set(addressOf(values, next), here);
  return [
    after && turn("First page", addressOf(values, "")),
    trail.has(here) && after && turn("Previous", trail.get(here)),
    next && turn("Next", addressOf(values, next)),
  ];
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

function nothing(isSearch, after) {
  if (after) return empty("No more tasks", "This is the end of the list.");
  if (isSearch) return empty("No such task", "No task that this key may see has this in its name or description.", h("a", { class: "button", href: "#/tasks?" }, "Show all tasks"));
  return empty(
    "No tasks yet",
    "A task is a name with a prefix. Upload a prefix trained with PEFT, or have the server compute one from a text.",
    h("a", { class: "button primary", href: "#/upload" }, "Upload a prefix"),
  );
}
