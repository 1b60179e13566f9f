// The frame around the views: navigation, the server's state, the key, the theme.

import { call, key } from "./api.js";
import { h, replace, setText } from "./dom.js";
import { restart } from "./feed.js";
import { keys } from "./keys.js";
import { live } from "./live.js";
import { askForKey } from "./parts.js";
import { playground } from "./playground.js";
import { every } from "./poll.js";
import { task } from "./task.js";
import { tasks } from "./tasks.js";
import { upload } from "./upload.js";

const VIEWS = { tasks, task, upload, playground, live, keys };
const THEMES = ["system", "light", "dark"];
const THEME = "foreword.theme";

const main = document.getElementById("main");
let leave = () => {};
let server = null;
let hasAsked = false;

/** Parse `#/task/pirate?x=1` into the view, its argument and its parameters. */
function parts() {
  const [path, query] = location.hash.slice(2).split("?");
  const [name, argument] = path.split("/");
  return { name: name || "tasks", argument: decodeURIComponent(argument ?? ""), query: new URLSearchParams(query) };
}

/** Show the view of the address. A view fills its element and returns a function that ends it. */
function show() {
  leave();
  const { name, argument, query } = parts();
  const view = VIEWS[name] ?? tasks;
  const element = h("div", { class: `view ${name}` });
  main.replaceChildren(element);
  main.setAttribute("aria-label", name);
  leave = view(element, argument, query);
  mark(name);
  scrollTo(0, 0);
}

function mark(name) {
  const place = name === "task" ? "tasks" : name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${place}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const heading = main.querySelector("h1")?.textContent;
  document.title = heading ? `${heading} · Foreword` : "Foreword";
}

/** Show the server's model, and whether it accepts requests. The latter needs no key. */
async function showServer() {
  const place = document.getElementById("server");
  const health = await fetch("../readyz").then((r) => r.json()).catch(() => ({ status: "gone", reasons: ["the server is unreachable"] }));
  server ??= await describeServer();
  const state = health.status === "ok" ? "ready" : `${health.status}: ${health.reasons.join("; ")}`;
  const words = server ? `${server}, ${state}` : state;
  const said = [server && h("span", { class: "model" }, `${server}, `), h("span", {}, state)];
  if (place.dataset.words !== words) replace(place, h("span", { class: `dot ${health.status}` }), h("span", {}, said));
  place.dataset.words = words;
}

/** Returns "" if the key lacks the permission: it is not asked again until the key changes. */
async function describeServer() {
  try {
    const info = await call("GET", "info");
    return `${info.model} on ${info.device}`;
  } catch (problem) {
    return [401, 403].includes(problem.status) ? "" : null;
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME, theme);
  const toggle = document.getElementById("theme");
  setText(toggle, { system: "Auto", light: "Light", dark: "Dark" }[theme]);
  toggle.setAttribute("aria-label", `Colours: ${theme}. Change`);
}

function nextTheme() {
  const at = THEMES.indexOf(document.documentElement.dataset.theme);
  setTheme(THEMES[(at + 1) % THEMES.length]);
}

function showKey() {
  setText(document.getElementById("key"), key.get() ? "Key set" : "Key");
}

function start() {
  setTheme(THEMES.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "system");
  document.getElementById("theme").addEventListener("click", nextTheme);
  document.getElementById("key").addEventListener("click", askForKey);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address names the view
    main.focus();
  });
  window.addEventListener("key-wanted", () => {
    if (!key.get() && !hasAsked) askForKey();
    hasAsked = true;
  });
  window.addEventListener("key-changed", () => {
    server = null;
    showKey();
    restart();
    show();
    showServer();
  });
  window.addEventListener("hashchange", () => {
    show();
    main.focus({ preventScroll: true });
  });
  showKey();
  show();
  every(5000, showServer);
}

start();
