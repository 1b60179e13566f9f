// Turns dropped, chosen or typed content into the body of an upload.

import { readText, replaced, tar } from "./tar.js";

const ARTIFACT = "prefix.safetensors";
const WEIGHTS = "adapter_model.safetensors";
const CONFIG = "adapter_config.json";
const DEFINITION = "foreword.json";
const OPTIONAL = ["golden.jsonl", DEFINITION, "evaluation.json"];
const SAFETENSORS = "application/vnd.safetensors";
const TAR = "application/x-tar";
const JSON_TYPE = "application/json";

/** Make `{body, type, words}` of files with their paths. Throws an `Error` that says what to do. */
export async function ofFiles(files) {
  if (files.length === 1) return ofFile(files[0].file);
  const found = inOutermost(files);
  if (found.has(ARTIFACT) && found.has(CONFIG)) throw new Error(`There are both ${ARTIFACT} and ${CONFIG}. Remove one.`);
  if (!found.has(WEIGHTS) && !found.has(ARTIFACT)) throw new Error(missing(files));
  if (!found.has(CONFIG) && !found.has(ARTIFACT)) return alone(found);
  const prefix = found.has(ARTIFACT) ? [ARTIFACT] : [CONFIG, WEIGHTS];
  const wanted = [...prefix, ...OPTIONAL].filter((name) => found.has(name));
  const body = tar(wanted.map((name) => ({ name, blob: found.get(name) })));
  return { body, type: TAR, words: `Folder: ${wanted.join(", ")}` };
}

/** The definition that an upload has; null if it has none. */
export async function ownDefinition({ body, type }) {
  if (type === SAFETENSORS) return null;
  if (type === TAR) return parsed((await readText(body, DEFINITION)) ?? "null", DEFINITION);
  return parsed(await body.text(), "The upload").definition ?? null;
}

/** An upload with another definition. */
export async function asked(source, definition) {
  const { body, type } = source;
  if (type === JSON_TYPE) return { ...source, ...ofJson(JSON.stringify({ ...parsed(await body.text(), "The upload"), definition })) };
  const file = { name: DEFINITION, blob: new Blob([JSON.stringify(definition)]) };
  const packed = type === TAR ? await replaced(body, [file]) : tar([{ name: ARTIFACT, blob: body }, file]);
  return { ...source, body: packed, type: TAR };
}

function parsed(text, name) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${name} is not JSON: ${error.message}`);
  }
}

/** The weights without their config, unless that would silently leave out other files. */
function alone(found) {
  const lost = OPTIONAL.filter((name) => found.has(name));
  if (lost.length) throw new Error(`There is no ${CONFIG}; without it ${lost.join(", ")} cannot be sent.`);
  return ofFile(found.get(WEIGHTS));
}

async function ofFile(file) {
  const name = file.name.toLowerCase();
  if (name.endsWith(".safetensors")) return { body: file, type: SAFETENSORS, words: file.name };
  if (name.endsWith(".tar")) return { body: file, type: TAR, words: file.name };
  if (name.endsWith(".json")) return { ...ofJson(await file.text()), words: file.name };
  if (name.endsWith(".txt") || name.endsWith(".md")) return ofText(await file.text());
  throw new Error(`${file.name} is not a prefix. Choose a .safetensors, a .tar, a folder from PEFT or a download, a .txt or a .json.`);
}

function ofJson(text) {
  return { body: new Blob([text], { type: JSON_TYPE }), type: JSON_TYPE };
}

export function ofText(text) {
  if (!text) throw new Error("Enter a text first.");
  return { ...ofJson(JSON.stringify({ text })), words: `text of ${text.length} characters` };
}

export function ofMessages(text) {
  const messages = parsed(text, "The list of messages");
  if (!Array.isArray(messages)) throw new Error("Enter a list of messages: [{\"role\": \"system\", \"content\": \"...\"}]");
  return { ...ofJson(JSON.stringify({ messages })), words: `${messages.length} chat messages` };
}

/** Files of the outermost folder with an adapter: trainings keep checkpoints in subfolders. */
function inOutermost(files) {
  const known = files.filter(({ file }) => [ARTIFACT, WEIGHTS, CONFIG].includes(file.name));
  const depth = ({ path }) => path.split("/").length;
  const top = Math.min(...known.map(depth));
  const folder = (path) => path.slice(0, path.lastIndexOf("/") + 1);
  const chosen = known.find((entry) => depth(entry) === top);
  const same = files.filter(({ path }) => chosen && folder(path) === folder(chosen.path));
  return new Map(same.map(({ file }) => [file.name, file]));
}

function missing(files) {
  const isPickled = files.some(({ file }) => /\.(bin|pt|pth|ckpt)$/i.test(file.name));
  return isPickled
    ? `There is a pickle but no ${WEIGHTS}. Pickles are never loaded: save with safe_serialization=True.`
    : `There is no ${WEIGHTS} among these ${files.length} files.`;
}

/** All files of a drop, including those in folders: a list of `{file, path}`. */
export async function dropped(transfer) {
  const files = [...transfer.items].filter((item) => item.kind === "file");
  const entries = files.map((item) => item.webkitGetAsEntry()).filter(Boolean); // read now: the list is cleared after the event
  return (await Promise.all(entries.map((entry) => walked(entry)))).flat();
}

/** All files of an `<input type="file">`, with or without `webkitdirectory`. */
export function picked(input) {
  return [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
}

async function walked(entry, depth = 0) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: entry.fullPath }];
  }
  if (depth > 4) return [];
  const inside = await listed(entry.createReader());
  return (await Promise.all(inside.map((child) => walked(child, depth + 1)))).flat();
}

/** List a folder. A reader returns at most a hundred entries per call. */
async function listed(reader) {
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return all;
    all.push(...some);
  }
}
