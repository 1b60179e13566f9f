// API keys: create, list, revoke. For admins.

import { call, key as own, seg } from "./api.js";
import { announce, button, field, h, replace } from "./dom.js";
import { ago } from "./format.js";
import { badge, confirm, copyButton, empty, problemBox } from "./parts.js";

const SCOPES = [
  ["generate", "completions"],
  ["read", "see tasks, versions and metrics"],
  ["write", "create tasks, change them, upload versions"],
  ["promote", "activate, roll back, split traffic"],
  ["delete", "delete tasks and versions"],
  ["admin", "manage keys and read the audit"],
];
const DAYS = [["", "Never"], ["1", "In a day"], ["7", "In a week"], ["30", "In 30 days"], ["90", "In 90 days"], ["365", "In a year"]];
const LIMITS = [["requests_per_s", "Requests per second", "any"], ["burst", "Burst", "1"], ["max_concurrency", "Requests at once", "1"]];
const DAY_MS = 86_400_000;

export function keys(view) {
  const problems = h("div");
  const made = h("div");
  const list = h("section", { class: "card", "aria-label": "Keys", hidden: true });
  const form = createForm(create);

  async function load() {
    try {
      const { keys: found } = await call("GET", "keys");
      replace(problems);
      replace(list, table(found, revoke));
      list.hidden = false;
      form.hidden = false;
    } catch (problem) {
      const isOpen = problem.status === 403 && !own.get();
      replace(problems, isOpen ? openServer() : problemBox(problem, load));
    }
  }

  async function create(json) {
    const created = await attempt(() => call("POST", "keys", { json }));
    if (!created) return false;
    replace(made, shownOnce(created));
    made.querySelector("h2").focus();
    load();
    return true;
  }

  async function revoke({ id, name }) {
    const text = "Programs that use it are refused from now on, by all servers within ten seconds. This cannot be undone.";
    if (!(await confirm({ title: `Revoke the key ${name}?`, text, verb: "Revoke the key" }))) return;
    const done = await attempt(async () => (await call("DELETE", `keys/${seg(id)}`), true));
    if (!done) return;
    announce(`${name} was revoked.`);
    load();
  }

  async function attempt(work) {
    try {
      const answer = await work();
      replace(problems);
      return answer;
    } catch (problem) {
      replace(problems, problemBox(problem));
      problems.scrollIntoView({ block: "nearest" });
      return null;
    }
  }

  view.append(h("div", { class: "heading" }, h("h1", {}, "Keys")), problems, made, list, form);
  load();
  return () => {};
}

function openServer() {
  const text = "Everyone who can connect to this server has full access. Make the first key on its machine: foreword keys create --name me. From then on the server asks for keys, and more can be made here.";
  return h("section", { class: "card" }, empty("No keys yet", text));
}

/** The only time that the key itself is shown. */
function shownOnce({ key, name }) {
  const text = h("code", { class: "secret" }, key);
  return h(
    "section",
    { class: "card", "aria-label": "New key" },
    h("h2", { tabindex: "-1" }, `The key ${name}, shown only this once`),
    text,
    h("div", { class: "buttons" }, copyButton(() => key, "Copy the key")),
  );
}

function table(found, revoke) {
  const heads = ["Key", "Scopes", "Tasks", "State", ""];
  const newest = [...found].reverse();
  return h(
    "table",
    { class: "list" },
    h("caption", { class: "unseen" }, "Keys with scopes, tasks and state"),
    h("thead", {}, h("tr", {}, heads.map((text) => h(text ? "th" : "td", text ? { scope: "col" } : {}, text)))),
    h("tbody", {}, newest.map((one) => row(one, revoke))),
  );
}

function row(one, revoke) {
  const isOver = one.revoked_at || (one.expires_at && Date.parse(one.expires_at) <= Date.now());
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("strong", {}, one.name), h("span", { class: "description" }, `${one.id}, made ${ago(one.created_at)}`)),
    h("td", { "data-head": "Scopes" }, one.scopes.join(", ")),
    h("td", { "data-head": "Tasks" }, one.tasks.join(", ")),
    h("td", { "data-head": "State" }, state(one)),
    h("td", { class: "number" }, !isOver && button("Revoke", () => revoke(one), { class: "danger", "aria-label": `Revoke ${one.name}`, "data-key": `revoke-${one.id}` })),
  );
}

function state({ revoked_at: revoked, expires_at: expires }) {
  const day = (iso) => new Date(iso).toLocaleDateString("en-GB");
  if (revoked) return badge(`revoked ${day(revoked)}`, "bad");
  if (!expires) return badge("valid", "accent");
  return Date.parse(expires) <= Date.now() ? badge(`expired ${day(expires)}`, "bad") : badge(`until ${day(expires)}`, "accent");
}

function createForm(create) {
  const name = h("input", { type: "text", required: true, maxlength: "100", autocomplete: "off" });
  const scopes = SCOPES.map(([scope]) => h("input", { type: "checkbox", value: scope, checked: scope === "generate" }));
  const tasks = h("input", { type: "text", value: "*", required: true, spellcheck: "false", autocomplete: "off" });
  const expiry = h("select", {}, DAYS.map(([days, words]) => h("option", { value: days }, words)));
  const limits = LIMITS.map(([, , step]) => h("input", { type: "number", min: "0", step, placeholder: "no limit" }));
  const labels = SCOPES.map(([scope, words], i) => h("label", { class: "check" }, scopes[i], h("span", {}, h("strong", {}, scope), ` ${words}`)));

  async function submit(event) {
    event.preventDefault();
    const given = LIMITS.map(([field], i) => [field, limits[i].value]).filter(([, value]) => value !== "");
    const days = Number(expiry.value);
    const json = {
      name: name.value,
      scopes: scopes.filter((box) => box.checked).map((box) => box.value),
      tasks: tasks.value.split(/[\s,]+/).filter(Boolean),
      ...(days ? { expires_at: new Date(Date.now() + days * DAY_MS).toISOString() } : {}),
      ...Object.fromEntries(given.map(([field, value]) => [field, Number(value)])),
    };
    if (await create(json)) name.value = "";
  }

  return h(
    "form",
    { class: "card", hidden: true, on: { submit }, "aria-label": "New key" },
    h("h2", {}, "Create a key"),
    field("Name", name, "What the key is for."),
    h("fieldset", { class: "asked" }, h("legend", {}, "Scopes"), labels),
    h("div", { class: "row" }, field("Tasks", tasks, "Patterns with * and ?, separated by commas. admin needs *."), field("Expires", expiry)),
    h("div", { class: "row" }, LIMITS.map(([, label], i) => field(label, limits[i]))),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Create the key")),
  );
}
