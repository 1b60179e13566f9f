// One side of the playground: a task, a version, what it says and how fast; in a chat, all of it.

import { Problem, call, seg, send } from "./api.js";
import { button, field, h, replace, setText } from "./dom.js";
import { figure, millis, plural } from "./format.js";
import { copyButton, problemBox } from "./parts.js";
import { curlOf } from "./snippets.js";
import { events } from "./sse.js";
import { fieldsOf } from "./template.js";

/** `wanted`: what is to be chosen, `{task, version}`, or null for the next task of the list. `asked`
 *  returns the body of the next request. */
export function pane(name, wanted, { onChange, onRemove, asked }) {
  const task = h("select", { on: { change: () => chooseTask("") } });
  const version = h("select", { on: { change: onChange } });
  const output = h("div", { class: "completion", "aria-live": "polite", "aria-label": `Completion ${name}`, role: "region", tabindex: "0" });
  const stats = h("dl", { class: "stats" });
  const state = h("p", { class: "hint" });
  const remove = button("Remove", onRemove, { "aria-label": `Remove side ${name}` });
  let fieldNames = [];
  let messages = [];
  let stopping = null;

  /** The list begins with the base model. */
  function offer(models) {
    const [base, ...tasks] = models;
    if (wanted?.task && !tasks.includes(wanted.task)) tasks.push(wanted.task);
    const options = tasks.map((id) => h("option", { value: id }, id));
    task.replaceChildren(...options, h("option", { value: "" }, `${base}, without a prefix`));
    task.value = wanted ? wanted.task : (tasks["ABCD".indexOf(name)] ?? "");
    chooseTask(wanted?.version ?? "");
  }

  async function chooseTask(chosen) {
    const found = task.value;
    const [profile, versions] = await Promise.all([describe(found), listVersions(found)]);
    if (found !== task.value) return; // another one was chosen in the meantime
    fieldNames = fieldsOf(profile?.template);
    setText(state, profile?.description || (found ? "" : "The frozen model, as it is."));
    const numbers = versions.includes(chosen) || !chosen ? versions : [...versions, chosen];
    const options = numbers.map((number) => h("option", { value: number }, `v${number}`));
    version.replaceChildren(h("option", { value: "" }, found ? "by traffic" : "none"), ...options);
    version.value = chosen;
    version.disabled = !found;
    onChange();
  }

  /** Send a body. In a chat the answer follows what was said before. */
  async function run(body, ending) {
    const text = document.createTextNode("");
    const signal = own(ending);
    if (body.messages) output.append(turn("You", body.messages.at(-1).content), turn(task.value || "Model", text));
    else replace(output, text);
    scrollDown();
    replace(stats, fact("Waiting", "…"));
    output.setAttribute("aria-busy", "true");
    try {
      const response = await send("POST", `generate${address()}`, {
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...body, stream: true }),
        signal,
      });
      for await (const { event, data } of events(response)) take(event, data, text);
      if (body.messages) messages = [...body.messages, { role: "assistant", content: text.data }];
    } catch (problem) {
      if (problem.name === "AbortError") replace(stats, fact("Ended", "stopped by you"));
      else fail(problem);
    }
    output.removeAttribute("aria-busy");
  }

  function take(event, data, text) {
    if (event === "token") text.appendData(data.text);
    scrollDown();
    if (event === "error") fail(new Problem(data.status, data));
    if (event !== "done") return;
    if (!text.length) text.after(h("span", { class: "hint" }, "It says nothing."));
    replace(stats, measured(data));
  }

  /** A signal that ends with the run of all sides, or with this side. */
  function own(ending) {
    stopping = new AbortController();
    ending.addEventListener("abort", () => stopping.abort());
    return stopping.signal;
  }

  function scrollDown() {
    output.scrollTop = output.scrollHeight;
  }

  function forget() {
    messages = [];
    replace(output);
    replace(stats);
  }

  function fail(problem) {
    stats.replaceChildren();
    output.append(problemBox(problem));
  }

  function address() {
    const query = new URLSearchParams();
    if (task.value) query.set("task", task.value);
    if (version.value) query.set("version", version.value);
    return query.size ? `?${query}` : "";
  }

  const element = h(
    "section",
    { class: "card pane", "aria-label": `Side ${name}` },
    h("div", { class: "row" }, field(`Task ${name}`, task), field("Version", version)),
    state,
    output,
    stats,
    h("div", { class: "buttons" }, remove, copyButton(() => curlOf(`generate${address()}`, asked()), "Copy as curl")),
  );
  const reference = () => ({ task: task.value, version: version.value });
  return {
    name,
    element,
    offer,
    run,
    reference,
    forget,
    fields: () => fieldNames,
    chat: () => messages,
    stop: () => stopping?.abort(),
    mayRemove: (may) => (remove.hidden = !may),
  };
}

function turn(who, said) {
  return h("div", { class: "turn" }, h("strong", {}, who), h("p", {}, said));
}

/** null for the base model, and where the key may not look. */
async function describe(task) {
  return task ? call("GET", `tasks/${seg(task)}`).then(({ profile }) => profile, () => null) : null;
}

async function listVersions(task) {
  if (!task) return [];
  const numbers = ({ versions }) => versions.map(({ version }) => String(version)).reverse();
  return call("GET", `tasks/${seg(task)}/versions`).then(numbers, () => []);
}

function measured({ usage, timings, finish_reason, version, digest }) {
  const decodeMs = timings.total_ms - timings.first_token_ms;
  const perS = usage.completion_tokens > 1 ? ((usage.completion_tokens - 1) / decodeMs) * 1000 : null;
  const cached = usage.cached_tokens ? `, ${usage.cached_tokens} cached` : "";
  return [
    fact("First token", millis(timings.first_token_ms)),
    fact("Total", millis(timings.total_ms)),
    fact("Speed", `${figure(perS)} tokens / s`),
    fact("Completion", `${plural(usage.completion_tokens, "token")}, ${finish_reason}`),
    fact("Prompt", `${plural(usage.prompt_tokens, "token")}${cached}`),
    fact("Prefix", digest ? `${plural(usage.prefix_tokens, "token")}, v${version}` : "none"),
  ];
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}
