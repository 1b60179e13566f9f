// All calls to the server. Addresses are relative to the page; the key is kept in this tab only.

export const ROOT = new URL("../", document.baseURI);
const KEY = "foreword.key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** An error of the server, with its problem details (RFC 9457). */
export class Problem extends Error {
  constructor(status, body = {}, retryAfter = null) {
    super(body.detail ?? "");
    this.status = status;
    this.title = body.title ?? (status ? `Status ${status}` : "No response");
    this.detail = body.detail ?? "";
    this.code = body.code ?? "";
    this.requestId = body.request_id ?? "";
    this.errors = body.errors ?? [];
    this.retryAfterS = Number(retryAfter) || 0;
  }
}

/** Whether the server accepts a key, whatever it allows. Throws a `Problem` if it cannot tell. */
export async function isAccepted(text) {
  const headers = { Authorization: `Bearer ${text}` };
  const response = await reached("info", { headers });
  if (response.status === 401 || response.ok || response.status === 403) return response.status !== 401;
  throw await problemOf(response);
}

/** Send JSON, return JSON. With `revision`, the change fails if the task has changed since. */
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

/** Return a 2xx response. Throws a `Problem` for any other. */
export async function send(method, path, { headers = {}, body, signal }) {
  const response = await answered(method, path, { headers, body, signal });
  if (response.ok) return response;
  throw noticed(await problemOf(response));
}

async function answered(method, path, { headers, body, signal }) {
  return reached(path, { method, headers: { ...headers, ...authorization() }, body, signal });
}

async function reached(path, init) {
  try {
    return await fetch(new URL(path, ROOT), { ...init, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The server is unreachable. It may be starting, or stopped." });
  }
}

async function problemOf(response) {
  let body = await response.json().catch(() => ({}));
  if (body.error) body = { detail: body.error.message, code: body.error.code }; // OpenAI's format
  return new Problem(response.status, body, response.headers.get("Retry-After"));
}

function noticed(problem) {
  if (problem.status === 401) window.dispatchEvent(new CustomEvent("key-wanted"));
  return problem;
}

/** Upload with progress, which `fetch` does not report. `onProgress` gets a share from 0 to 1. */
export function upload(method, path, { body, type, idempotencyKey, onProgress, signal }) {
  const request = new XMLHttpRequest();
  request.open(method, new URL(path, ROOT));
  request.setRequestHeader("Content-Type", type);
  request.setRequestHeader("Idempotency-Key", idempotencyKey);
  for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", (e) => e.lengthComputable && onProgress(e.loaded / e.total));
  request.upload.addEventListener("load", () => onProgress(1));
  signal.addEventListener("abort", () => request.abort());
  return new Promise((resolve, reject) => {
    request.addEventListener("load", () => settle(request, resolve, reject));
    request.addEventListener("error", () => reject(new Problem(0, { detail: "The connection was lost." })));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    request.send(body);
  });
}

function settle(request, resolve, reject) {
  let body = {};
  try {
    body = JSON.parse(request.responseText);
  } catch {
    // The response of a proxy: only its status is known.
  }
  if (request.status >= 200 && request.status < 300) resolve(body);
  else reject(noticed(new Problem(request.status, body, request.getResponseHeader("Retry-After"))));
}

function authorization() {
  return key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
}

/** A new `Idempotency-Key`. `crypto.randomUUID` is not available without TLS. */
export function freshKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Encode a segment of a path. */
export const seg = encodeURIComponent;
