// All elements are created here. A string always becomes a text node: a task's description or a
// completion is shown, never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Create an element. Props: `class`, `on` (listeners by event), DOM properties, else attributes. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** Create an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) set(element, name, value);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

function set(element, name, value) {
  if (value === undefined || value === null || value === false) return;
  if (name === "on") {
    for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
  } else if (name === "class") {
    element.className = value;
  } else if (name in element && !name.startsWith("aria") && typeof value !== "string") {
    element[name] = value;
  } else {
    element.setAttribute(name, value === true ? "" : value);
  }
}

/** Replace all children. The focus returns to the child with the same `data-key`, else to the first
 *  control, so that the keyboard does not begin at the top of the page again. */
export function replace(parent, ...children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  parent.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (!focused || parent.contains(document.activeElement)) return;
  const key = focused.dataset.key;
  const again = key && [...parent.querySelectorAll("[data-key]")].find((e) => e.dataset.key === key);
  (again ?? parent.querySelector("button, a, input"))?.focus();
}

/** Set a text only if it differs, so that nothing is announced or laid out twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let nextId = 0;

/** A new id for a label or a description. */
export function freshId() {
  nextId += 1;
  return `id-${nextId}`;
}

/** A labelled control, with a hint below it. */
export function field(label, control, hint = "") {
  control.id ||= freshId();
  const parts = [h("label", { for: control.id }, label), control];
  if (hint) {
    const described = h("p", { class: "hint", id: freshId() }, hint);
    control.setAttribute("aria-describedby", described.id);
    parts.push(described);
  }
  return h("div", { class: "field" }, parts);
}

export function button(text, listener, props = {}) {
  return h("button", { type: "button", on: { click: listener }, ...props }, text);
}

/** Show a message for five seconds, and have screen readers read it. */
export function announce(text) {
  const toast = document.getElementById("toast");
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => toast.classList.remove("shown"), 5000);
}
