// Numbers and times for people.

export const DASH = "–";

export function bytes(count) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

/** Format a measured number with three significant digits. null: unknown. */
export function figure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  if (value === 0) return "0";
  if (value >= 100) return Math.round(value).toLocaleString("en");
  return value.toFixed(value >= 10 ? 1 : 2);
}

/** Format a number with three digits at most, for an axis. */
export function short(value) {
  return String(Number(value.toPrecision(3)));
}

export function millis(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return DASH;
  if (ms >= 1000) return `${short(ms / 1000)} s`;
  return `${ms >= 100 ? Math.round(ms) : ms.toFixed(1)} ms`;
}

export function percent(part) {
  return `${Math.round(part * 100)} %`;
}

/** `sha256:` and the first digits, to compare by eye. */
export function shortDigest(digest) {
  return digest ? digest.slice(0, 19) : DASH;
}

export function ago(iso) {
  const s = Math.max(0, (Date.now() - Date.parse(iso)) / 1000);
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    const count = Math.floor(s / length);
    if (count) return `${count} ${unit}${count === 1 ? "" : "s"} ago`;
  }
  return "just now";
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString("en-GB");
}

export function plural(count, word, words = `${word}s`) {
  return `${count} ${count === 1 ? word : words}`;
}
