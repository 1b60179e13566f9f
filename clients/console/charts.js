// Time series charts.

import { h, setText, svg } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 180;
const LEFT = 52;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 24;
const MIN_SPAN_MS = 60_000;
const MAX_SPAN_MS = 5 * 60_000;

/**
 * A chart of the last one to five minutes. `series`: `{name, get}`, the first one drawn boldest; `get`
 * takes a point and returns a number, or null if unknown. `format` formats a value of the legend,
 * `axis` one of the axis.
 */
export function chart({ title, hint, series, format, axis }) {
  const values = series.map(() => h("output", { class: "value" }));
  const times = h("span", { class: "time" });
  const legend = series.map(({ name }, i) => h("li", { class: `series-${i}` }, name, values[i]));
  const canvas = svg("svg", { role: "img", height: HEIGHT });
  const caption = h("figcaption", {}, h("h2", {}, title), h("p", { class: "hint" }, hint));
  const element = h("figure", { class: "chart" }, caption, h("ul", { class: "legend" }, legend, h("li", {}, times)), canvas);
  let points = [];
  let pointedAt = null;

  function draw(newPoints = points) {
    points = newPoints;
    const plot = scaled(points, series, canvas.clientWidth || 480);
    const shown = nearest(points, plot, pointedAt);
    series.forEach(({ get }, i) => setText(values[i], shown ? format(get(shown)) : format(null)));
    setText(times, pointedAt !== null && shown ? `at ${clock(shown.atMs)}` : "now");
    canvas.setAttribute("aria-label", `${title}: ${series.map(({ name }, i) => `${name} ${values[i].textContent}`).join(", ")}`);
    canvas.setAttribute("viewBox", `0 0 ${plot.width} ${HEIGHT}`);
    canvas.replaceChildren(...grid(plot, axis), ...lines(points, series, plot), ...marker(shown, pointedAt, plot));
  }

  canvas.addEventListener("pointermove", (event) => {
    pointedAt = event.clientX - canvas.getBoundingClientRect().left;
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    pointedAt = null;
    draw();
  });
  const observer = new ResizeObserver(() => draw());
  observer.observe(canvas);
  return { element, draw, end: () => observer.disconnect() };
}

function scaled(points, series, width) {
  const end = points.at(-1)?.atMs ?? Date.now();
  const numbers = points.flatMap((point) => (point.isGap ? [] : series.map(({ get }) => get(point) ?? 0)));
  const top = roundUp(Math.max(0, ...numbers));
  const spanMs = Math.min(MAX_SPAN_MS, Math.max(MIN_SPAN_MS, end - (points[0]?.atMs ?? end)));
  const x = (ms) => LEFT + ((ms - end + spanMs) / spanMs) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
  return { width, top, x, y, end, spanMs };
}

/** Round up to 1, 2 or 5 times a power of ten, for readable marks on the axis. */
function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value);
}

function grid({ width, top, x, y, end, spanMs }, axis) {
  const rows = [0, 0.5, 1].flatMap((part) => {
    const at = y(part * top);
    return [
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }),
      svg("text", { class: "mark", x: LEFT - 8, y: at + 4, "text-anchor": "end" }, part === 0 ? "0" : axis(part * top)),
    ];
  });
  const stepS = spanMs > 2 * MIN_SPAN_MS ? 60 : 15;
  const steps = Array.from({ length: Math.ceil(spanMs / 1000 / stepS) - 1 }, (_, i) => (i + 1) * stepS);
  const columns = steps.map((s) => {
    const words = s % 60 ? `−${s} s` : `−${s / 60} min`;
    return svg("text", { class: "mark", x: x(end - s * 1000), y: HEIGHT - 6, "text-anchor": "middle" }, words);
  });
  return [...rows, ...columns];
}

function lines(points, series, { x, y }) {
  return series.flatMap(({ get }, i) => {
    const runs = unbroken(points, get);
    const place = (point) => `${x(point.atMs).toFixed(1)} ${y(get(point)).toFixed(1)}`;
    const line = runs.map((run) => `M${run.map(place).join("L")}`).join("");
    const area = runs.map((run) => `M${x(run[0].atMs)} ${y(0)}L${run.map(place).join("L")}L${x(run.at(-1).atMs)} ${y(0)}Z`);
    const drawn = [svg("path", { class: `line series-${i}`, d: line })];
    return i === 0 ? [svg("path", { class: "area", d: area.join("") }), ...drawn] : drawn;
  });
}

/** Runs of consecutive points with a value: no line is drawn over a pause. */
function unbroken(points, get) {
  const runs = [[]];
  for (const point of points) {
    if (point.isGap || get(point) === null) runs.push([]);
    else runs.at(-1).push(point);
  }
  return runs.filter((run) => run.length);
}

function nearest(points, { x }, pointedAt) {
  const real = points.filter((point) => !point.isGap);
  if (pointedAt === null) return real.at(-1);
  const distance = (point) => Math.abs(x(point.atMs) - pointedAt);
  return real.reduce((best, point) => (!best || distance(point) < distance(best) ? point : best), null);
}

function marker(point, pointedAt, { x }) {
  if (!point || pointedAt === null) return [];
  const at = x(point.atMs);
  return [svg("line", { class: "marker", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM })];
}

/** A line of the last readings, without axes. Decorative: the number is next to it. */
export function sparkline(values, width = 72, height = 20) {
  const canvas = svg("svg", { class: "spark", width, height, "aria-hidden": "true" });
  const top = Math.max(...values.map((value) => value ?? 0), 1e-9);
  const step = width / Math.max(1, values.length - 1);
  const places = values.map((value, i) => `${(i * step).toFixed(1)} ${(height - 1 - ((value ?? 0) / top) * (height - 3)).toFixed(1)}`);
  if (places.length > 1) canvas.append(svg("path", { class: "line series-0", d: `M${places.join("L")}` }));
  return canvas;
}
