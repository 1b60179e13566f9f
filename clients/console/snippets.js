// How programs use a task: the same request in several clients, to be copied.

import { ROOT, key } from "./api.js";
import { freshId, h, setText } from "./dom.js";
import { copyButton } from "./parts.js";
import { fieldsOf, takesPrompt } from "./template.js";

const BASE = ROOT.href.replace(/\/$/, "");
const KINDS = { curl, Python: sdk, openai, LangChain: langchain };

export function snippets({ name, profile }) {
  const code = h("pre", { class: "snippet", tabindex: "0", "aria-label": "Code" });
  const group = freshId();
  const radios = Object.keys(KINDS).map((kind, i) => h("input", { type: "radio", name: group, value: kind, checked: i === 0 }));
  const show = () => setText(code, KINDS[radios.find((radio) => radio.checked).value](name, requestOf(profile)));
  show();
  return [
    h("h2", {}, "Use this task"),
    h("fieldset", { class: "choice", on: { change: show } }, h("legend", { class: "unseen" }, "Client"), radios.map((radio) => h("label", {}, radio, radio.value))),
    code,
    h("div", { class: "buttons" }, copyButton(() => code.textContent)),
  ];
}

/** An example prompt, and values for the named fields of the template. */
function requestOf({ template }) {
  const fields = Object.fromEntries(fieldsOf(template).map((field) => [field, "..."]));
  return { prompt: takesPrompt(template) ? "Hello" : "", fields: Object.keys(fields).length ? fields : null };
}

function curl(task, { prompt, fields }) {
  return curlOf(`generate?task=${task}`, { prompt, ...(fields ? { fields } : {}) });
}

/** A request to this server for a POSIX shell. */
export function curlOf(path, body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const lines = [
    `curl '${BASE}/${path}'`,
    ...(key.get() ? ['-H "Authorization: Bearer $FOREWORD_API_KEY"'] : []),
    "-H 'Content-Type: application/json'",
    `-d '${quoted}'`,
  ];
  return lines.join(" \\\n  ");
}

function sdk(task, { prompt, fields }) {
  const given = fields ? `, fields=${python(fields)}` : "";
  return [
    "from foreword_client import Client",
    "",
    `with Client(${python(BASE)}) as client:${key.get() ? "  # the key is read from FOREWORD_API_KEY" : ""}`,
    `    print(client.generate(${python(prompt)}, task=${python(task)}${given}).text)`,
  ].join("\n");
}

function openai(task, { prompt, fields }) {
  return [
    ...(key.get() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(`${BASE}/v1`)}, api_key=${pythonKey()})`,
    "answer = client.chat.completions.create(",
    `    model=${python(task)},`,
    `    messages=[{"role": "user", "content": ${python(prompt)}}],`,
    ...(fields ? [`    extra_body={"fields": ${python(fields)}},`] : []),
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

function langchain(task, { prompt, fields }) {
  return [
    ...(key.get() ? ["import os", ""] : []),
    "from langchain_openai import ChatOpenAI",
    "",
    "model = ChatOpenAI(",
    `    model=${python(task)},`,
    `    base_url=${python(`${BASE}/v1`)},`,
    `    api_key=${pythonKey()},`,
    ...(fields ? [`    extra_body={"fields": ${python(fields)}},`] : []),
    ")",
    `print(model.invoke(${python(prompt)}).content)`,
  ].join("\n");
}

const pythonKey = () => (key.get() ? 'os.environ["FOREWORD_API_KEY"]' : '"none"');

/** Texts, and objects of texts: JSON of these is Python too. */
const python = (value) => JSON.stringify(value);
