// Numbers as people read them.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(n) {
  let unit = 0;
  while (n >= 999.5 && unit < UNITS.length - 1) {
    n /= 1000;
    unit += 1;
  }
  return `${n >= 99.5 || unit === 0 ? Math.round(n) : Number(n.toPrecision(2))} ${UNITS[unit]}`;
}

export const count = (n) => Math.round(n).toLocaleString("en");

export const few = (n) => (n >= 99.5 ? count(n) : String(Number(n.toPrecision(2))));

export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

/** How long ago a moment was, in seconds since 1970. */
export function ago(moment) {
  const s = Math.max(0, Date.now() / 1000 - moment);
  if (s < 90) return "now";
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return new Date(moment * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short" });
}
