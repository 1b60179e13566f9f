// Every call to the server. The address is relative to the page, and the key lives in this tab only.

const ROOT = new URL("../", document.baseURI);
const KEY = "foreword.key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What the server refused, in its own words (RFC 9457). */
export class Problem extends Error {
  constructor(status, body = {}, retryAfter = null) {
    super(body.detail ?? "");
    this.status = status;
    this.title = body.title ?? (status ? `Status ${status}` : "No answer");
    this.detail = body.detail ?? "";
    this.code = body.code ?? "";
    this.requestId = body.request_id ?? "";
    this.errors = body.errors ?? [];
    this.retryAfterS = Number(retryAfter) || 0;
  }
}

/** JSON in, JSON out. `revision`: the change is refused if the task is no longer in this state. */
export async function call(method, path, { json, revision, signal } = {}) {
  const headers = {};
  if (json !== undefined) headers["Content-Type"] = "application/json";
  if (revision !== undefined) headers["If-Match"] = `"${revision}"`;
  if (method !== "GET") headers["Idempotency-Key"] = freshKey();
  const body = json === undefined ? undefined : JSON.stringify(json);
  const response = await send(method, path, { headers, body, signal });
  return response.status === 204 ? null : response.json();
}

export async function text(path, signal) {
  return (await send("GET", path, { signal })).text();
}

export async function blob(path) {
  return (await send("GET", path, {})).blob();
}

/** An answer with a 2xx; everything else is thrown as a `Problem`. */
export async function send(method, path, { headers = {}, body, signal }) {
  const response = await answered(method, path, { headers, body, signal });
  if (response.ok) return response;
  throw noticed(await problemOf(response));
}

async function answered(method, path, { headers, body, signal }) {
  const init = { method, headers: { ...headers, ...authorization() }, body, signal };
  try {
    return await fetch(new URL(path, ROOT), { ...init, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The server cannot be reached. It may be starting, or gone." });
  }
}

async function problemOf(response) {
  let body = await response.json().catch(() => ({}));
  if (body.error) body = { detail: body.error.message, code: body.error.code }; // as OpenAI has it
  return new Problem(response.status, body, response.headers.get("Retry-After"));
}

function noticed(problem) {
  if (problem.status === 401) window.dispatchEvent(new CustomEvent("key-wanted"));
  return problem;
}

/** An upload with progress, which `fetch` does not tell. `onProgress`: from 0 to 1. */
export function upload(method, path, { body, type, once, onProgress, signal }) {
  const request = new XMLHttpRequest();
  request.open(method, new URL(path, ROOT));
  request.setRequestHeader("Content-Type", type);
  request.setRequestHeader("Idempotency-Key", once);
  for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", (e) => e.lengthComputable && onProgress(e.loaded / e.total));
  request.upload.addEventListener("load", () => onProgress(1));
  signal.addEventListener("abort", () => request.abort());
  return new Promise((resolve, reject) => {
    request.addEventListener("load", () => settle(request, resolve, reject));
    request.addEventListener("error", () => reject(new Problem(0, { detail: "The connection broke." })));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    request.send(body);
  });
}

function settle(request, resolve, reject) {
  let body = {};
  try {
    body = JSON.parse(request.responseText);
  } catch {
    // Not from Foreword, but from something before it: the status says what there is to say.
  }
  if (request.status >= 200 && request.status < 300) resolve(body);
  else reject(noticed(new Problem(request.status, body, request.getResponseHeader("Retry-After"))));
}

function authorization() {
  return key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
}

/** For `Idempotency-Key`. `crypto.randomUUID` is missing where there is no TLS. */
export function freshKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A segment of a path. */
export const seg = encodeURIComponent;
