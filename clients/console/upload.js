// Upload of a prefix, and the report on it.

import { call, freshKey, seg, upload as send } from "./api.js";
import { definitionFacts, definitionFields } from "./definition.js";
import { announce, button, field, freshId, h, replace } from "./dom.js";
import { bytes, percent, plural } from "./format.js";
import { definitions, digestCode, empty, problemBox } from "./parts.js";
import { checks } from "./report.js";
import { asked, dropped, ofFiles, ofMessages, ofText, ownDefinition, picked } from "./source.js";

const EXAMPLE = '[{"role": "system", "content": "Answer in one short sentence."}]';
const NAME = "[a-z0-9][a-z0-9_\\-]{0,62}";
const BEFORE =
  "Each upload is verified before it becomes a version: its file, its shapes, its values, and a forward pass. " +
  "The report appears here. “Check only” stores nothing.";
const KINDS = [["files", "File or folder"], ["text", "Text"], ["messages", "Chat messages"]];

export function upload(view, _, query) {
  const form = uploadForm(query.get("task") ?? "");
  const outcome = h("div", { class: "outcome-place" }, h("section", { class: "card" }, empty("No report yet", BEFORE)));
  const progress = progressBar();
  let cancelling = null;

  async function submit(event) {
    event.preventDefault();
    if (cancelling) return;
    cancelling = new AbortController();
    const signal = cancelling.signal;
    form.busy(true);
    try {
      show(await push(form, { isDry: event.submitter?.value === "dry", onProgress: progress.onProgress, signal }));
    } catch (problem) {
      if (problem.name === "AbortError") announce("The upload was cancelled.");
      else show(failed(problem));
    }
    cancelling = null;
    form.busy(false);
    progress.end();
  }

  function show(report) {
    replace(outcome, report);
    const title = outcome.querySelector("h2, .title");
    title.setAttribute("tabindex", "-1");
    title.focus();
  }

  form.element.addEventListener("submit", submit);
  form.element.insertBefore(progress.element, form.element.lastChild);
  progress.element.append(button("Cancel", () => cancelling?.abort()));
  view.append(h("div", { class: "heading" }, h("h1", {}, "Upload a prefix")), h("div", { class: "columns" }, form.element, outcome));
  const stopDrops = wholePage(form.drop);
  return () => {
    cancelling?.abort();
    stopDrops();
  };
}

/** Send the upload, and return the report. */
async function push(form, { isDry, onProgress, signal }) {
  const { body, type } = await form.source();
  const name = form.task();
  const isNew = !form.isActive() && (await isMissing(name));
  if (isNew && !isDry) await call("PUT", `tasks/${seg(name)}`, { json: {} });
  const isShort = form.isActive() || (isNew && isDry); // this route works for a task that does not exist
  const path = `tasks/${seg(name)}/${isShort ? "prefix" : "versions"}${isDry ? "?dry_run=true" : ""}`;
  const idempotencyKey = isDry ? freshKey() : form.idempotencyKey();
  const answer = await send(isShort ? "PUT" : "POST", path, { body, type, idempotencyKey, onProgress, signal });
  form.renew();
  return isDry ? rehearsed(answer) : uploaded(answer);
}

function uploadForm(name) {
  const names = h("datalist", { id: freshId() });
  const plain = { autocomplete: "off", spellcheck: "false" };
  const task = h("input", { type: "text", required: true, pattern: NAME, list: names.id, value: name, ...plain });
  const activate = h("input", { type: "checkbox", checked: !name });
  const text = h("textarea", { rows: "8", placeholder: "go -> went\nsee -> saw\nplay -> played\n" });
  const messages = h("textarea", { rows: "8", class: "code", spellcheck: "false", placeholder: EXAMPLE });
  const zone = dropZone();
  const panels = {
    files: zone.element,
    text: field("Text", text, "The prefix is computed once, in one forward pass. Requests then pay no prompt tokens for it."),
    messages: field("Chat messages, as JSON", messages, "Requests of the task continue this chat."),
  };
  const sources = { files: zone.source, text: () => ofText(text.value), messages: () => ofMessages(messages.value) };
  const kinds = kindChoice(panels);
  const ways = wayChoice(async () => (await currentOf(sources[kinds.value()])) ?? (await definitionOf(task.value)));
  const buttons = [
    h("button", { type: "submit", value: "dry" }, "Check only"),
    h("button", { type: "submit", value: "go", class: "primary" }, "Upload"),
  ];
  let idempotencyKey = freshKey(); // kept for the same content, so that a retry counts once
  const renew = () => (idempotencyKey = freshKey());
  const element = h(
    "form",
    { class: "card", on: { input: renew } },
    field("Task", task, "A new name creates a new task. 1 to 63 characters of a-z, 0-9, _ and -."),
    names,
    kinds.element,
    Object.values(panels),
    ways.element,
    h("label", { class: "check" }, activate, "Activate it right away"),
    h("div", { class: "buttons" }, buttons),
  );
  suggest(names);
  return {
    element,
    renew,
    task: () => task.value,
    isActive: () => activate.checked,
    idempotencyKey: () => idempotencyKey,
    async source() {
      const source = await sources[kinds.value()]();
      return ways.isOwn() ? source : asked(source, ways.read());
    },
    busy: (isBusy) => buttons.forEach((one) => (one.disabled = isBusy)),
    async drop(files) {
      kinds.choose("files");
      renew();
      await zone.take(files);
      await ways.refresh();
    },
  };
}

function progressBar() {
  const progress = h("progress", { max: 1, value: 0, "aria-label": "Upload" });
  const doing = h("p", { class: "hint" });
  const element = h("div", { class: "running", hidden: true }, progress, doing);
  function onProgress(part) {
    element.hidden = false;
    progress.value = part;
    doing.textContent = part < 1 ? `Sending, ${percent(part)}` : "The server is verifying it";
  }
  return { element, onProgress, end: () => (element.hidden = true) };
}

function kindChoice(panels) {
  const group = freshId();
  const radios = KINDS.map(([kind], i) => h("input", { type: "radio", name: group, value: kind, checked: i === 0 }));
  const value = () => radios.find((radio) => radio.checked).value;
  function change() {
    for (const [kind, panel] of Object.entries(panels)) panel.hidden = kind !== value();
  }
  function choose(kind) {
    radios.find((radio) => radio.value === kind).checked = true;
    change();
  }
  const labels = KINDS.map(([, words], i) => h("label", {}, radios[i], words));
  change();
  return { element: h("fieldset", { class: "choice", on: { change } }, h("legend", {}, "From"), labels), value, choose };
}

/** How the version is asked: as the upload says, or as the fields below say. `current` returns the
 *  definition to begin with. */
function wayChoice(current) {
  const fields = definitionFields();
  const change = h("input", { type: "checkbox", on: { change: refresh } });
  const panel = h("div", { class: "asked", hidden: true }, fields.elements);
  async function refresh() {
    if (change.checked) fields.show(await current());
    panel.hidden = !change.checked;
  }
  const hint = "Otherwise as its foreword.json says, else like the active version.";
  const element = h("fieldset", { class: "asked" }, h("label", { class: "check" }, change, "Set how it is asked"), h("p", { class: "hint" }, hint), panel);
  return { element, refresh, read: fields.read, isOwn: () => !change.checked };
}

/** The definition of a source; null if it has none, or is not chosen yet. */
async function currentOf(source) {
  try {
    return await ownDefinition(await source());
  } catch {
    return null; // said where it is chosen, and again when it is sent
  }
}

/** The definition of a task's active version; an empty one for a new task. */
async function definitionOf(name) {
  const found = name ? await call("GET", `tasks/${seg(name)}`).catch(() => null) : null;
  const { template = null, chat = false, defaults = {} } = found?.profile ?? {};
  return { template, chat, defaults };
}

function dropZone() {
  let source = null;
  const files = h("input", { type: "file", multiple: true, class: "unseen", tabindex: "-1", "aria-label": "Files" });
  const folder = h("input", { type: "file", class: "unseen", tabindex: "-1", "aria-label": "Folder", webkitdirectory: true });
  const chosen = h("p", { class: "chosen", role: "status" });
  const element = h(
    "div",
    { class: "drop" },
    h("p", {}, "Drop a .safetensors, a .tar, or a folder from PEFT or a download here"),
    h("div", { class: "buttons" }, button("Choose a file", () => files.click()), button("Choose a folder", () => folder.click())),
    files,
    folder,
    chosen,
  );

  async function take(found) {
    source = ofFiles(found);
    try {
      const { body, words } = await source;
      chosen.textContent = `${words}, ${bytes(body.size)}`;
      chosen.classList.remove("bad");
    } catch (error) {
      chosen.textContent = error.message;
      chosen.classList.add("bad");
    }
  }

  for (const input of [files, folder]) input.addEventListener("change", () => input.files.length && take(picked(input)));
  return { element, take, source: () => source ?? Promise.reject(new Error("Drop or choose a file first.")) };
}

/** Accept drops on the whole page: the browser would open a file dropped outside the zone. */
function wholePage(take) {
  const page = document.body;
  function over(event) {
    event.preventDefault();
    page.classList.toggle("dropping", event.type !== "dragleave");
  }
  async function drop(event) {
    over(event);
    page.classList.remove("dropping");
    await take(await dropped(event.dataTransfer));
  }
  const listeners = { dragover: over, dragleave: over, drop };
  for (const [name, listener] of Object.entries(listeners)) page.addEventListener(name, listener);
  return () => {
    for (const [name, listener] of Object.entries(listeners)) page.removeEventListener(name, listener);
  };
}

/** Whether the task does not exist. False if the key may not read it: the upload will fail. */
async function isMissing(name) {
  return call("GET", `tasks/${seg(name)}`).then(() => false, (problem) => problem.status === 404);
}

async function suggest(names) {
  const page = await call("GET", "tasks?limit=200").catch(() => ({ tasks: [] }));
  names.append(...page.tasks.map(({ name }) => h("option", { value: name })));
}

function uploaded(answer) {
  const place = `${seg(answer.task)}@${answer.version}`;
  return h(
    "section",
    { class: "card" },
    h("h2", {}, `v${answer.version} of ${answer.task} ${answer.active ? "is active" : "is stored"}`),
    body(answer),
    h(
      "div",
      { class: "buttons" },
      h("a", { class: "button primary", href: `#/playground?a=${place}` }, "Try it"),
      h("a", { class: "button", href: `#/task/${seg(answer.task)}` }, answer.active ? "See the task" : "Activate it or give it traffic"),
    ),
  );
}

function rehearsed(answer) {
  const room = answer.evicted.length ? `yes, evicting ${plural(answer.evicted.length, "other prefix", "other prefixes")}` : "yes";
  const facts = [["On the device", `${bytes(answer.device_bytes)}, fits: ${answer.fits ? room : "no"}`]];
  return h(
    "section",
    { class: "card" },
    h("h2", {}, `It would become v${answer.version} of ${answer.task}`),
    h("p", { class: "hint" }, "Nothing was stored."),
    definitions(facts),
    body(answer),
  );
}

function body(answer) {
  const facts = [
    ["Virtual tokens", String(answer.num_virtual_tokens)],
    ["Source", answer.source_format],
    ["Stored as", `${answer.dtype}, ${bytes(answer.num_bytes)}`],
    ["Digest", digestCode(answer.digest)],
    ...(answer.definition ? definitionFacts(answer.definition) : []),
  ];
  return [
    answer.warning && h("p", { class: "warning", role: "alert" }, answer.warning),
    definitions(facts),
    h("h3", {}, "Verification"),
    checks(answer.verification),
  ];
}

function failed(problem) {
  return h("section", { class: "card" }, problemBox(problem.status === undefined ? { title: "Not sent", detail: problem.message } : problem));
}
