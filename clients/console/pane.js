// One side of the playground: a task, a version, what it says and how fast.

import { Problem, call, seg, send } from "./api.js";
import { field, h, replace, setText } from "./dom.js";
import { figure, millis, plural } from "./format.js";
import { problemBox } from "./parts.js";
import { events } from "./sse.js";
import { fieldsOf } from "./template.js";

/** `wanted`: what is to be chosen, `{task, version}`, or null for the next task of the list. */
export function pane(name, wanted, onChange) {
  const task = h("select", { on: { change: () => chooseTask("") } });
  const version = h("select", { on: { change: onChange } });
  const output = h("div", { class: "completion", "aria-live": "polite", "aria-label": `Completion ${name}`, role: "region", tabindex: "0" });
  const stats = h("dl", { class: "stats" });
  const state = h("p", { class: "hint" });
  let fieldNames = [];

  /** The list begins with the base model. */
  function offer(models) {
    const [base, ...tasks] = models;
    if (wanted?.task && !tasks.includes(wanted.task)) tasks.push(wanted.task);
    const options = tasks.map((id) => h("option", { value: id }, id));
    task.replaceChildren(...options, h("option", { value: "" }, `${base}, without a prefix`));
    task.value = wanted ? wanted.task : (tasks[name === "A" ? 0 : 1] ?? "");
    chooseTask(wanted?.version ?? "");
  }

  async function chooseTask(chosen) {
    const asked = task.value;
    const [profile, versions] = await Promise.all([describe(asked), listVersions(asked)]);
    if (asked !== task.value) return; // another one was chosen in the meantime
    fieldNames = fieldsOf(profile?.template);
    setText(state, profile?.description || (asked ? "" : "The frozen model, as it is."));
    const numbers = versions.includes(chosen) || !chosen ? versions : [...versions, chosen];
    const options = numbers.map((number) => h("option", { value: number }, `v${number}`));
    version.replaceChildren(h("option", { value: "" }, asked ? "by traffic" : "none"), ...options);
    version.value = chosen;
    version.disabled = !asked;
    onChange();
  }

  async function run(body, signal) {
    const text = document.createTextNode("");
    replace(output, text);
    replace(stats, fact("Waiting", "…"));
    output.setAttribute("aria-busy", "true");
    try {
      const response = await send("POST", `generate${address()}`, {
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...body, stream: true }),
        signal,
      });
      for await (const { event, data } of events(response)) take(event, data, text);
    } catch (problem) {
      if (problem.name === "AbortError") replace(stats, fact("Ended", "stopped by you"));
      else fail(problem);
    }
    output.removeAttribute("aria-busy");
  }

  function take(event, data, text) {
    if (event === "token") text.appendData(data.text);
    if (event === "error") fail(new Problem(data.status, data));
    if (event !== "done") return;
    if (!text.length) replace(output, h("span", { class: "hint" }, "It says nothing."));
    replace(stats, measured(data));
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
  );
  const reference = () => ({ task: task.value, version: version.value });
  return { element, offer, run, reference, fields: () => fieldNames };
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
