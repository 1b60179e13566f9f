// A parser of the Prometheus text format, and rates and quantiles between two readings.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** Parse into a map from metric to a list of `{labels, value}`. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (!match) continue;
    const [, name, labels, value] = match;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels: labelsOf(labels ?? ""), value: Number(value) });
  }
  return found;
}

function labelsOf(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(LABEL)) {
    labels[name] = value.replace(/\\[n"\\]/g, (escape) => ESCAPES[escape]);
  }
  return labels;
}

/** Sum over all series of a metric with these labels; 0 if there is none. */
export function total(reading, name, labels = {}) {
  const wanted = Object.entries(labels);
  let sum = 0;
  for (const series of reading.get(name) ?? []) {
    if (wanted.every(([label, value]) => series.labels[label] === value)) sum += series.value;
  }
  return sum;
}

/** A counter's rate per second; null after a restart, which resets counters. */
export function rate(before, after, name, labels) {
  const grown = total(after.metrics, name, labels) - total(before.metrics, name, labels);
  const s = (after.atMs - before.atMs) / 1000;
  return grown < 0 || s <= 0 ? null : grown / s;
}

/** A quantile of a histogram's growth between two readings, linear within a bucket; null if none. */
export function quantile(before, after, name, q) {
  const buckets = (after.metrics.get(`${name}_bucket`) ?? []).map(({ labels, value }) => ({
    upTo: labels.le === "+Inf" ? Infinity : Number(labels.le),
    count: value - total(before.metrics, `${name}_bucket`, { le: labels.le }),
  }));
  buckets.sort((a, b) => a.upTo - b.upTo);
  const all = buckets.at(-1)?.count ?? 0;
  if (all <= 0) return null;
  let below = { upTo: 0, count: 0 };
  for (const bucket of buckets) {
    if (bucket.count >= q * all) return within(below, bucket, q * all);
    below = bucket;
  }
  return below.upTo;
}

function within(below, bucket, rank) {
  if (bucket.upTo === Infinity) return below.upTo;
  const part = (rank - below.count) / (bucket.count - below.count);
  return below.upTo + (bucket.upTo - below.upTo) * part;
}
