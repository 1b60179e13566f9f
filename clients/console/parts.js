// Parts shared by several views: badges, problems, dialogs.

import { announce, button, field, h, setText } from "./dom.js";
import { isAccepted, key } from "./api.js";
import { DASH } from "./format.js";

const WHERE = { device: "on the device", host: "in host memory", disk: "on disk" };

/** A badge with the residency of a prefix. undefined: unknown; null: there is no prefix. */
export function residency(where) {
  if (where === undefined) return DASH;
  return h("span", { class: `badge ${where ?? "none"}` }, WHERE[where] ?? "no prefix");
}

export function badge(text, kind = "") {
  return h("span", { class: `badge ${kind}` }, text);
}

/** The traffic split as a bar and in words. `weights`: by version. */
export function split(weights) {
  const all = Object.values(weights).reduce((sum, weight) => sum + weight, 0) || 1;
  const parts = Object.entries(weights).map(([version, weight], i) => {
    const part = h("span", { class: `part part-${i % 4}` });
    part.style.setProperty("flex-grow", weight);
    return { part, words: `v${version} ${Math.round((100 * weight) / all)} %` };
  });
  const bar = h("span", { class: "split", "aria-hidden": "true" }, parts.map(({ part }) => part));
  return h("span", { class: "splitting" }, bar, parts.map(({ words }) => words).join(" · "));
}

/** A digest on one line; selecting it copies all of it. */
export function digestCode(digest) {
  return h("code", { class: "digest", title: digest }, digest);
}

/** A button that copies what `text` returns. */
export function copyButton(text, label = "Copy") {
  async function copy() {
    let words;
    try {
      words = text();
    } catch (error) {
      return announce(error.message);
    }
    try {
      await navigator.clipboard.writeText(words);
      announce("Copied.");
    } catch {
      announce("The browser does not allow copying here. Select the text instead.");
    }
  }
  return button(label, copy);
}

/** A list of names and values. Empty values are omitted. */
export function definitions(facts) {
  const known = facts.filter(([, value]) => value);
  return h("dl", {}, known.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** A problem in the server's words, and what to do about it. */
export function problemBox(problem, retry = null) {
  const listed = problem.errors?.length > 1 ? problem.errors.map((e) => h("li", {}, `${e.loc.join(".")}: ${e.msg}`)) : [];
  const small = [problem.code, problem.requestId && `request ${problem.requestId}`].filter(Boolean).join(" · ");
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("p", { class: "title" }, problem.title ?? problem.name),
    h("p", {}, problem.detail || problem.message || ""),
    listed.length > 0 && h("ul", {}, listed),
    advice(problem) && h("p", { class: "advice" }, advice(problem)),
    small && h("p", { class: "small" }, small),
    problem.status === 401 && button("Enter a key", () => askForKey()),
    retry && problem.status !== 401 && button("Try again", retry),
  );
}

function advice(problem) {
  if (problem.status === 401) return "This server requires a key.";
  if (problem.status === 403) {
    return "Your key does not allow this. Ask an admin for one that does.";
  }
  if (problem.status === 412) return "Someone else changed the task in the meantime. Review it and try again.";
  if (problem.status === 429 && problem.retryAfterS) return `Try again in ${problem.retryAfterS} s.`;
  return "";
}

export function empty(title, text, ...next) {
  return h("div", { class: "empty" }, h("p", { class: "title" }, title), h("p", {}, text), next);
}

/** Ask for confirmation. Resolves to whether it was given. */
export function confirm({ title, text, verb }) {
  return ask(title, (close) => [
    h("p", {}, text),
    h(
      "div",
      { class: "buttons" },
      button("Cancel", () => close(false), { autofocus: true }),
      button(verb, () => close(true), { class: "danger" }),
    ),
  ]);
}

/** Ask for the server's key, in one dialog at a time. */
export function askForKey() {
  if (document.querySelector("dialog[open]")) return Promise.resolve(false);
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const refusal = h("p", { class: "bad", role: "alert" });
  return ask("Key of this server", (close) => {
    async function keep(event) {
      event.preventDefault();
      const text = input.value.trim();
      const reason = await isAccepted(text).then((yes) => (yes ? "" : "This server does not accept this key: it is mistyped, expired or revoked."), refused);
      setText(refusal, reason);
      if (reason) return input.select();
      key.set(text);
      close(true);
      announce("The key is stored until this tab is closed.");
      window.dispatchEvent(new CustomEvent("key-changed"));
    }
    function forget() {
      key.set("");
      close(true);
      announce("The key was removed.");
      window.dispatchEvent(new CustomEvent("key-changed"));
    }
    return h(
      "form",
      { on: { submit: keep } },
      field("Key", input, "Starts with fwd_. Stored in this tab only, and sent to this server only."),
      refusal,
      h(
        "div",
        { class: "buttons" },
        key.get() && button("Remove the key", forget),
        button("Cancel", () => close(false)),
        h("button", { type: "submit", class: "primary" }, "Use this key"),
      ),
    );
  });
}

function refused(problem) {
  return `The key could not be checked. ${problem.detail || problem.title}`;
}

function ask(title, content) {
  return new Promise((resolve) => {
    let answer = false;
    const dialog = h("dialog", { "aria-label": title, on: { close: finish } });
    function close(value) {
      answer = value;
      dialog.close();
    }
    function finish() {
      dialog.remove();
      resolve(answer);
    }
    dialog.append(h("h2", {}, title), ...[content(close)].flat());
    document.body.append(dialog);
    dialog.showModal();
  });
}
