// One task: its traffic, versions, prompt format and history.

import { call, seg } from "./api.js";
import { definitionFacts, definitionFields } from "./definition.js";
import { announce, button, h, replace } from "./dom.js";
import { watch } from "./feed.js";
import { ago, plural } from "./format.js";
import { confirm, definitions, empty, problemBox } from "./parts.js";
import { every } from "./poll.js";
import { taskRates } from "./rates.js";
import { taskSettings } from "./settings.js";
import { snippets } from "./snippets.js";
import { trafficFigures, trafficForm } from "./traffic.js";
import { updateShares, versionList } from "./versions.js";

const EVERY_MS = 4000;

export function task(view, name) {
  const unread = h("div");
  const problems = h("div");
  const head = h("div");
  const split = h("div", { class: "inner" });
  const figures = h("div", { class: "inner" });
  const traffic = h("section", { class: "card", "aria-label": "Traffic" }, split, figures);
  const versions = h("section", { class: "card", "aria-label": "Versions" });
  const asking = h("section", { class: "card", "aria-label": "Prompts" });
  const past = h("section", { class: "card", "aria-label": "History" });
  const operating = h("section", { class: "card", "aria-label": "Settings" });
  const using = h("section", { class: "card", "aria-label": "Use this task" });
  const rates = taskRates(name);
  const about = h("div", { class: "columns" }, asking, operating, using, past);
  const body = h("div", { class: "view", hidden: true }, traffic, rates.element, versions, about); // shown once it has content
  const opened = new Set();
  const reports = new Map();
  let shown = {};
  let stop = () => {};
  let hasLeft = false;

  async function load() {
    try {
      const [found, listed, report] = await Promise.all([
        call("GET", `tasks/${seg(name)}`),
        call("GET", `tasks/${seg(name)}/versions`),
        call("GET", `tasks/${seg(name)}/traffic`),
      ]);
      unread.replaceChildren();
      if (!hasLeft) render(found, listed, report);
      body.hidden = false;
    } catch (problem) {
      if (problem.status === 404) body.hidden = true;
      replace(unread, problemBox(problem, restart)); // the view below may be stale
      throw problem;
    }
  }

  function restart() {
    stop();
    if (!hasLeft) stop = every(EVERY_MS, load);
  }

  /** Rebuild only the parts that changed, so that a form in use keeps its input. */
  function render(found, listed, report) {
    const part = (key, value, make) => {
      const said = JSON.stringify(value);
      if (shown[key] !== said) make();
      shown[key] = said;
    };
    const again = () => ((shown.versions = ""), render(found, listed, report));
    const context = { task: found, listed, report, act, opened, reports, render: again };
    part("task", [found.profile.description, found.active_version, found.num_versions, found.revision], () =>
      replace(head, heading(name, found.profile.description, actions(found, listed))),
    );
    part("traffic", [found.revision, found.weights], () => replace(split, trafficForm(context)));
    part("figures", report, () => replace(figures, trafficFigures(report)));
    rates.show(report);
    part("versions", [listed, found.weights, found.revision], () => replace(versions, versionList(context)));
    part("prompts", [found.profile, found.revision], () => replace(asking, prompts(found, act)));
    part("settings", [found.profile, found.revision], () => replace(operating, taskSettings(found, act)));
    part("snippets", found.profile.template, () => replace(using, snippets(found)));
    part("history", listed.history, () => replace(past, history(listed.history)));
    updateShares(view, found);
  }

  /** Run a change of the task, announce it, and reload. */
  async function act(said, work) {
    problems.replaceChildren();
    try {
      const answer = await work();
      const words = answer?.said ?? said;
      announce(answer?.warning ? `${words} Warning: ${answer.warning}` : words);
      return answer;
    } catch (problem) {
      problems.replaceChildren(problemBox(problem));
      problems.scrollIntoView({ block: "nearest" });
      return null;
    } finally {
      restart();
    }
  }

  function actions(found, listed) {
    const revision = found.revision;
    const rollBack = () =>
      act("Rolled back.", () => call("POST", `tasks/${seg(name)}/rollback`, { revision }));
    return [
      h("a", { class: "button primary", href: `#/playground?a=${seg(name)}` }, "Try it"),
      h("a", { class: "button", href: `#/upload?task=${seg(name)}` }, "Upload a version"),
      button("Roll back", rollBack, { disabled: listed.history.length < 2, "data-key": "rollback" }),
      button("Delete task", remove, { class: "danger", "data-key": "delete" }),
    ];

    async function remove() {
      const text = `${name} with its ${plural(found.num_versions, "version")} will be deleted. Requests in progress will finish.`;
      if (!(await confirm({ title: `Delete ${name}?`, text, verb: "Delete the task" }))) return;
      const gone = await act(`${name} was deleted.`, async () => {
        await call("DELETE", `tasks/${seg(name)}`, { revision });
        return {};
      });
      if (gone) location.hash = "#/tasks";
    }
  }

  view.append(h("p", { class: "path" }, h("a", { href: "#/tasks" }, "Tasks")), head, unread, problems, body);
  head.append(heading(name, "", []));
  restart();
  const unwatch = watch(() => {
    if (shown.task) updateShares(view);
    rates.update();
  });
  return () => {
    hasLeft = true;
    rates.end();
    stop();
    unwatch();
  };
}

function heading(name, description, actions) {
  return h(
    "div",
    { class: "heading" },
    h("div", {}, h("h1", {}, name), description && h("p", { class: "description" }, description)),
    h("div", { class: "buttons" }, actions),
  );
}

function prompts(task, act) {
  const { profile } = task;
  return [h("h2", {}, "Prompts"), definitions(definitionFacts(profile)), changeForm(task, act)];
}

/** How the task is asked. Where a version is active, a change makes another one. */
function changeForm({ name, profile, active_version, revision }, act) {
  const fields = definitionFields();
  const { template, chat, defaults } = profile;
  fields.show({ template, chat, defaults });
  const effect = active_version === null
    ? "The first version of the task will be asked like this."
    : `Makes a new version, live at once, with the prefix of v${active_version}. Roll back to undo it.`;

  async function save(event) {
    event.preventDefault();
    const wanted = fields.read();
    const { stop = null, max_tokens = null, temperature = null } = wanted.defaults;
    const json = { ...wanted, defaults: { stop, max_tokens, temperature } };
    await act("Saved.", async () => {
      const changed = await call("PATCH", `tasks/${seg(name)}`, { json, revision });
      if (changed.active_version === active_version) return {};
      return { said: `v${changed.active_version} is now live: the prefix of v${active_version}, asked in the changed way.` };
    });
  }

  return h(
    "details",
    {},
    h("summary", {}, "Change how it is asked"),
    h("form", { class: "asked", on: { submit: save } }, fields.elements, h("p", { class: "hint" }, effect), h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Save"))),
  );
}

function history(activations) {
  const lines = activations.slice(0, 12).map(({ action, version, weights, reason, at }) => {
    const split = weights && Object.entries(weights).map(([v, weight]) => `v${v} ${weight}`).join(" : ");
    const words = { activate: `v${version} activated`, rollback: `rolled back to v${version}`, traffic: split ? `traffic ${split}` : `all traffic to v${version}` };
    const said = reason ? `${words[action]}: ${reason}` : words[action];
    return h("li", {}, h("span", {}, said), h("time", { datetime: at }, ago(at)));
  });
  const list = lines.length ? h("ol", { class: "history" }, lines) : empty("Nothing yet", "Activate a version to make it live.");
  return [h("h2", {}, "History"), list];
}
