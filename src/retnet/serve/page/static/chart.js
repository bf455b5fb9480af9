// Lines and dots over an axis of tokens, as SVG that style.css colours.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [320, 172];
const [LEFT, RIGHT, TOP, BOTTOM] = [48, 8, 12, 24];

/**
 * Draw a chart anew.
 *
 * @param svg the element, which is emptied.
 * @param what xMax, yMax; xText and yText, which write numbers; areas, lines and dots, each a
 *   list of {name, points}, where name becomes a class; rules, a list of {x, name, text}.
 */
export function draw(svg, { xMax, yMax, xText, yText, areas = [], lines = [], dots = [], rules = [] }) {
  const x = (value) => LEFT + (Math.min(value, xMax) / xMax) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (Math.min(value, yMax) / yMax) * (HEIGHT - TOP - BOTTOM);
  const path = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  const floor = HEIGHT - BOTTOM;
  const parts = [];
  for (const value of ticks(yMax, 4)) {
    parts.push(make("path", { class: "grid", d: `M${LEFT} ${y(value)}H${WIDTH - RIGHT}` }));
    parts.push(make("text", { class: "tick y", x: LEFT - 6, y: y(value) + 3.5 }, yText(value)));
  }
  for (const value of ticks(xMax, 4)) {
    const name = x(value) > WIDTH - 30 ? "tick last" : value === 0 ? "tick first" : "tick x";
    parts.push(make("text", { class: name, x: x(value), y: HEIGHT - 7 }, xText(value)));
  }
  for (const { name, points } of areas) {
    const close = `L${x(points.at(-1)[0])} ${floor}L${x(points[0][0])} ${floor}Z`;
    parts.push(make("path", { class: `area ${name}`, d: path(points) + close }));
  }
  for (const { name, points } of lines) {
    if (points.length) parts.push(make("path", { class: `line ${name}`, d: path(points) }));
  }
  for (const { at, name, text } of rules) {
    parts.push(make("path", { class: `rule ${name}`, d: `M${x(at)} ${TOP - 4}V${floor}` }));
    const right = x(at) > WIDTH * 0.62;
    const place = { class: `rule-text ${name} ${right ? "end" : ""}`, x: x(at) + (right ? -5 : 5), y: TOP + 4 };
    if (text) parts.push(make("text", place, text));
  }
  for (const { name, points } of dots) {
    for (const [a, b] of points) parts.push(make("circle", { class: `dot ${name}`, cx: x(a), cy: y(b), r: 3 }));
  }
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.replaceChildren(...parts);
}

/** About `wanted` round numbers from 0 to a maximum. */
function ticks(max, wanted) {
  const rough = max / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  return Array.from({ length: Math.floor(max / step) + 1 }, (_, i) => i * step);
}

function make(kind, attributes, text) {
  const node = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
