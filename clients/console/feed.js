// Polls /metrics every two seconds for all views, and keeps five minutes of points for the charts.

import { text } from "./api.js";
import { parse, quantile, rate, total } from "./metrics.js";
import { every } from "./poll.js";

const EVERY_MS = 2000;
const KEPT_MS = 5 * 60_000;
const GAP_MS = 4 * EVERY_MS;
const WINDOW_MS = 10_000;

const listeners = new Set();
const readings = [];
let stop = null;

export const feed = {
  /** One for each reading but the first. One with `isGap` marks a pause: the page was hidden. */
  points: [],
  /** Why the last reading failed; null if it did not. */
  problem: null,
};

/** Call `listener` after each reading. Returns a function that ends it. */
export function watch(listener) {
  listeners.add(listener);
  stop ??= every(EVERY_MS, read);
  if (readings.length) listener();
  return () => listeners.delete(listener);
}

/** Restart polling, for example after a change of keys. */
export function restart() {
  stop?.();
  feed.problem = null;
  stop = every(EVERY_MS, read);
}

async function read() {
  try {
    take({ atMs: Date.now(), metrics: parse(await text("metrics")) });
    feed.problem = null;
  } catch (problem) {
    feed.problem = problem;
    throw problem;
  } finally {
    for (const listener of listeners) listener();
  }
}

function take(reading) {
  const last = readings.at(-1);
  if (last && reading.atMs - last.atMs > GAP_MS) {
    feed.points.push({ atMs: reading.atMs, isGap: true });
    readings.length = 0;
  } else if (last) {
    feed.points.push(point(last, reading));
  }
  readings.push(reading);
  while (readings.at(-1).atMs - readings[0].atMs > KEPT_MS) readings.shift();
  while (feed.points.length && reading.atMs - feed.points[0].atMs > KEPT_MS) feed.points.shift();
}

function point(last, now) {
  const before = since(now.atMs - WINDOW_MS);
  const ttft = (q) => quantile(before, now, "foreword_time_to_first_token_seconds", q);
  const gauge = (name) => total(now.metrics, `foreword_engine_${name}`);
  return {
    atMs: now.atMs,
    decoded: rate(last, now, "foreword_engine_decode_tokens_total"),
    prefilled: rate(last, now, "foreword_engine_prefill_tokens_total"),
    running: gauge("running_requests"),
    waiting: gauge("waiting_requests"),
    ttft50Ms: inMs(ttft(0.5)),
    ttft95Ms: inMs(ttft(0.95)),
  };
}

const inMs = (s) => (s === null ? null : s * 1000);

function since(ms) {
  return readings.find((reading) => reading.atMs >= ms) ?? readings[0];
}

/** The last reading of a gauge or a counter; null before the first. */
export function current(name, labels) {
  const now = readings.at(-1);
  return now ? total(now.metrics, name, labels) : null;
}

/** A counter's rate per second over the last ten seconds; null if not known yet. */
export function speed(name, labels) {
  const now = readings.at(-1);
  return readings.length < 2 ? null : rate(since(now.atMs - WINDOW_MS), now, name, labels);
}

/** A counter's growth while it was watched, over five minutes at most. */
export function growth(name, labels) {
  if (readings.length < 2) return 0;
  const grown = total(readings.at(-1).metrics, name, labels) - total(readings[0].metrics, name, labels);
  return Math.max(0, grown);
}

/** Rates of a counter between successive readings, one for each set of labels: points of a chart. */
export function ratePoints(name, labelSets) {
  return readings.slice(1).map((reading, i) => ({
    atMs: reading.atMs,
    rates: labelSets.map((labels) => rate(readings[i], reading, name, labels)),
  }));
}

/** A counter's rate between successive readings, for a sparkline. */
export function speeds(name, labels, count) {
  const recent = readings.slice(-count - 1);
  return recent.slice(1).map((reading, i) => rate(recent[i], reading, name, labels));
}
