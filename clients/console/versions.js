// A task's versions, and the actions on each.

import { blob, call, seg } from "./api.js";
import { changes, definitionFacts } from "./definition.js";
import { announce, button, h, setText } from "./dom.js";
import { growth, speed } from "./feed.js";
import { ago, bytes, figure, percent, plural, shortDigest } from "./format.js";
import { badge, confirm, definitions, digestCode, empty, problemBox, residency } from "./parts.js";
import { checks } from "./report.js";

export function versionList(context) {
  const { task, listed } = context;
  const newest = [...listed.versions].sort((a, b) => b.version - a.version);
  const none = empty(
    "No versions yet",
    "Upload a prefix to make this task usable.",
    h("a", { class: "button primary", href: `#/upload?task=${seg(task.name)}` }, "Upload a version"),
  );
  return [h("h2", {}, "Versions"), newest.length ? newest.map((version, i) => article(context, version, newest[i + 1])) : none];
}

/** `before`: the version that was uploaded before this one. */
function article(context, version, before) {
  const { opened, render } = context;
  const isOpen = opened.has(version.version);
  const id = `version-${version.version}`;
  function toggle() {
    if (!opened.delete(version.version)) opened.add(version.version);
    render();
  }
  const name = button(`v${version.version}`, toggle, {
    class: "disclose",
    "aria-expanded": String(isOpen),
    "aria-controls": id,
    "data-key": id,
  });
  return h(
    "article",
    { class: "version" },
    h("div", { class: "line" }, name, badges(context, version, before), figures(version), activateButton(context, version)),
    h("div", { class: "inside", id, hidden: !isOpen }, isOpen && details(context, version, before)),
  );
}

function badges({ task, listed }, version, before) {
  const changed = changes(version, before).filter((name) => name !== "prefix");
  const weight = task.weights?.[version.version];
  return h(
    "span",
    { class: "badges" },
    version.version === listed.active_version && badge("active", "accent"),
    weight && badge(`weight ${weight}`, "accent"),
    residency(version.residency),
    version.pinned && badge("pinned"),
    changed.length > 0 && badge(`other ${changed.join(", ")}`),
    listed.quarantined.includes(version.version) && badge("damaged on disk", "bad"),
    version.verification.some((check) => !check.passed) && badge("a check failed", "bad"),
  );
}

function figures(version) {
  return h(
    "span",
    { class: "figures" },
    h("span", {}, plural(version.num_virtual_tokens, "token")),
    h("span", {}, bytes(version.num_bytes)),
    h("span", { "data-version": version.version }),
    h("span", {}, ago(version.created_at)),
  );
}

/** Update the request rate of each version, and its share of the traffic. */
export function updateShares(view, found) {
  if (found) view.dataset.task = found.name;
  const task = view.dataset.task;
  const places = [...view.querySelectorAll("[data-version]")];
  const grown = places.map((place) => growth("foreword_version_requests_total", { task, version: place.dataset.version }));
  const all = grown.reduce((sum, count) => sum + count, 0);
  places.forEach((place, i) => {
    const perS = speed("foreword_version_requests_total", { task, version: place.dataset.version });
    setText(place, all && perS !== null ? `${figure(perS)} req / s, ${percent(grown[i] / all)}` : "");
  });
}

function activateButton({ task, listed, act }, version) {
  if (version.version === listed.active_version && !task.weights) return null;
  const json = { version: version.version };
  const activate = () =>
    act(`v${version.version} is now live.`, () => call("POST", `tasks/${seg(task.name)}/activate`, { json, revision: task.revision }));
  return button("Activate", activate, { "aria-label": `Activate v${version.version}`, "data-key": `activate-${version.version}` });
}

function details(context, version, before) {
  const changed = changes(version, before);
  const facts = [
    ["Digest", digestCode(version.digest)],
    ["Source", `${version.source_format}, ${shortDigest(version.source_digest)}`],
    ["Uploaded", `${new Date(version.created_at).toLocaleString("en-GB")}${version.created_by ? ` with key ${version.created_by}` : ""}`],
    ["Stored as", `${version.dtype}, ${bytes(version.num_bytes)}, real tokens from position ${version.position_offset}`],
    ["Golden prompts", version.golden.length > 0 && version.golden.map(({ prompt, expect }) => h("div", {}, `${JSON.stringify(prompt)} → ${JSON.stringify(expect)}`))],
    ["Evaluation", version.evaluation && evaluation(version.evaluation)],
    ...(version.definition ? definitionFacts(version.definition) : []),
    ["Changed", before && `${changed.join(", ") || "nothing"} since v${before.version}`],
  ];
  const report = h("div", {}, checks(context.reports.get(version.version) ?? version.verification));
  return [definitions(facts), h("h3", {}, "Verification"), report, doings(context, version, report)];
}

function evaluation({ num_examples, scores }) {
  const listed = Object.entries(scores).map(([name, score]) => `${name} ${figure(score)}`);
  return `${listed.join(", ")} (${plural(num_examples, "example")})`;
}

function doings({ task, act, reports }, version, report) {
  const number = version.version;
  const path = `tasks/${seg(task.name)}/versions/${number}`;
  const post = (verb, said) =>
    button(verb[0].toUpperCase() + verb.slice(1), () => act(said, () => call("POST", `${path}/${verb}`)), {
      "aria-label": `${verb} v${number}`,
      "data-key": `${verb}-${number}`,
    });

  async function verify(event) {
    event.target.disabled = true;
    try {
      const again = await call("POST", `${path}/verify`);
      reports.set(number, again.verification); // kept when the version is rendered again
      report.replaceChildren(checks(again.verification));
      announce(again.passed ? `v${number} passed every check.` : `v${number} failed a check.`);
    } catch (problem) {
      report.replaceChildren(problemBox(problem));
    }
    event.target.disabled = false;
  }

  async function remove() {
    const text = "Its number is not reused. Requests in progress will finish.";
    if (!(await confirm({ title: `Delete v${number} of ${task.name}?`, text, verb: "Delete the version" }))) return;
    act(`v${number} was deleted.`, () => call("DELETE", path, { revision: task.revision }));
  }

  return h(
    "div",
    { class: "buttons" },
    h("a", { class: "button", href: `#/playground?a=${seg(task.name)}@${number}` }, "Try it"),
    button("Verify again", verify, { "data-key": `verify-${number}` }),
    post("warm", `v${number} is loaded.`),
    version.pinned ? post("unpin", `v${number} may be evicted again.`) : post("pin", `v${number} is pinned to the device.`),
    post("evict", `v${number} was evicted.`),
    button("Download", () => act("Downloaded.", () => download(`${path}/prefix?format=tar`, `${task.name}-${number}.tar`))),
    button("Download for PEFT", () => act("Downloaded.", () => download(`${path}/prefix?format=peft`, `${task.name}-${number}.tar`))),
    button("Delete", remove, { class: "danger", "aria-label": `Delete v${number}`, "data-key": `delete-${number}` }),
  );
}

/** Download through a `blob:` address: a plain link could not send the key. */
async function download(path, filename) {
  const address = URL.createObjectURL(await blob(path));
  h("a", { href: address, download: filename }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
