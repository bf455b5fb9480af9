// The panel that draws what a conversation takes: bytes, and time for each token.

import { draw } from "./chart.js";
import { bytes, count, few, plural } from "./format.js";

const el = (id) => document.getElementById(id);
const WINDOW = 16; // tokens that a live point averages over

/** The pace of an answer that is being received, from when each piece came. */
export class Pace {
  constructor() {
    this.points = []; // [tokens of this answer, ms for each of the last few]
    this.num = 0;
    this.first = this.mark = 0;
  }

  take(now) {
    if (this.num === 0) this.first = this.mark = now;
    this.num += 1;
    if (this.num > 1 && (this.num - 1) % WINDOW === 0) {
      this.points.push([this.num, (now - this.mark) / WINDOW]);
      this.mark = now;
    }
    this.last = now;
  }

  /** Seconds for each token, or null while there is too little to say. */
  get seconds() {
    return this.num > 4 ? (this.last - this.first) / (this.num - 1) / 1000 : null;
  }
}

/**
 * Draw memory.
 *
 * @param engine what `/v1/engine` says.
 * @param tokens of the conversation until now.
 */
export function drawMemory({ state, cache }, tokens) {
  const size = (n) => state.bytes + n * state.bytes_per_token;
  const perToken = [["cache", cache.bytes_per_token, cache.dtype]];
  const half = cache.bytes_per_value > 2;
  if (half) perToken.push(["half", (cache.bytes_per_token * 2) / cache.bytes_per_value, "16-bit"]);
  const cross = crossing(state, cache.bytes_per_token);
  const xMax = Math.max(64, 1.25 * tokens, cross === null ? 0 : 2.2 * cross);
  const yMax = 1.12 * Math.max(size(xMax), xMax * cache.bytes_per_token);
  const line = (slope) => [[0, 0], [xMax, xMax * slope]];
  draw(el("memory"), {
    xMax,
    yMax,
    xText: short,
    yText: bytes,
    areas: [{ name: "state", points: [[0, size(0)], [xMax, size(xMax)]] }],
    lines: [
      ...perToken.map(([name, slope]) => ({ name, points: line(slope) })),
      { name: "state", points: [[0, size(0)], [xMax, size(xMax)]] },
    ],
    rules: tokens ? [{ at: tokens, name: "now", text: "now" }] : [],
    dots: tokens
      ? [
          { name: "cache", points: [[tokens, tokens * cache.bytes_per_token]] },
          { name: "state", points: [[tokens, size(tokens)]] },
        ]
      : [],
  });
  const grows = state.bytes_per_token > 0;
  el("state-bytes").textContent = bytes(size(tokens));
  el("state-word").textContent = grows
    ? `now, and ${bytes(state.bytes_per_token)} more with each token`
    : "whatever its length";
  const named = { state: "this state", cache: `key-value cache, ${cache.dtype}`, half: "16-bit" };
  el("memory-legend").replaceChildren(...["state", "cache", ...(half ? ["half"] : [])].map((name) => {
    const item = document.createElement("li");
    item.className = name;
    item.textContent = named[name];
    return item;
  }));
  const says = sentence(size(tokens), tokens * cache.bytes_per_token, tokens, cross);
  el("memory-says").textContent = says;
  el("memory").setAttribute("aria-label", `Bytes against tokens. ${says}`);
  el("memory-note").textContent =
    `Compared with the keys and values of full multi-head attention of the same width (${count(cache.width)}) ` +
    `and depth (${plural(cache.layers, "layer")}) in ${cache.dtype}: ${bytes(cache.bytes_per_token)} a token. ` +
    (half && cross !== null ? `In 16 bits the lines would cross at ${count(Math.ceil(crossing(state, perToken[1][1]) ?? 0))}. ` : "") +
    "Fewer key heads would make it smaller.";
}

function crossing(state, slope) {
  const rise = slope - state.bytes_per_token;
  return rise > 0 ? state.bytes / rise : null;
}

function sentence(own, cached, tokens, cross) {
  const where = cross === null ? "The lines never cross." : `The lines cross at ${plural(Math.ceil(cross), "token")}.`;
  if (!tokens) return where;
  const so = `At ${plural(tokens, "token")} a cache would hold ${bytes(cached)}`;
  if (cached > own) return `${so}, ${few(cached / own)} times as much. ${where}`;
  return `${so}, less than the state: short texts are cheaper in a cache. ${where}`;
}

/**
 * Draw time for each token.
 *
 * @param points [tokens of the conversation, ms for a token], in order.
 * @param live seconds for each token of the answer that is being received; null if none is.
 */
export function drawSpeed(points, live, tokens) {
  el("speed").toggleAttribute("hidden", points.length === 0);
  const last = live ?? (points.length ? points.at(-1)[1] / 1000 : null);
  el("rate").textContent = last ? few(1 / last) : "–";
  el("rate-word").textContent = last ? `· ${few(1000 * last)} ms a token` : "";
  const xMax = Math.max(64, 1.1 * tokens);
  const yMax = Math.max(...points.map(([, ms]) => ms), 1) * 1.5;
  draw(el("speed"), {
    xMax,
    yMax,
    xText: short,
    yText: (value) => `${few(value)} ms`,
    lines: [{ name: "state", points }],
    dots: [{ name: "state", points: points.slice(-1) }],
  });
  const range = points.length > 1
    ? ` From token ${count(points[0][0])} to ${count(points.at(-1)[0])}: ${few(points[0][1])} ms at first, ${few(points.at(-1)[1])} ms now.`
    : "";
  el("speed-says").textContent = points.length
    ? `Time for each token, as the conversation grows.${range}`
    : "The first answer draws the time for each token, as the conversation grows.";
  el("speed").setAttribute("aria-label", el("speed-says").textContent);
}

const short = (n) => (n >= 1e6 ? `${n / 1e6}M` : n >= 1e3 ? `${n / 1e3}k` : String(n));
