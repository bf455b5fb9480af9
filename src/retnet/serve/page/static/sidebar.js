// The list of conversations that the server keeps.

import { json } from "./api.js";
import { ago, plural } from "./format.js";

const PAGE = 500;
const el = (id) => document.getElementById(id);

export class Sidebar {
  constructor() {
    this.all = [];
    this.current = null;
    this.complete = true;
    el("more").addEventListener("click", () => this.grow());
  }

  /** Read the list anew, as far as it was shown. */
  async refresh() {
    const wanted = Math.max(this.all.length, 1);
    const found = [];
    do {
      found.push(...(await this.page(found.at(-1)?.name ?? "")));
    } while (!this.complete && found.length < wanted);
    this.all = found;
    this.show();
  }

  async grow() {
    this.all.push(...(await this.page(this.all.at(-1)?.name ?? "")));
    this.show();
  }

  async page(after) {
    const told = await json("GET", `v1/sessions?limit=${PAGE}&after=${encodeURIComponent(after)}`);
    this.complete = !told.has_more;
    return told.data;
  }

  /** Show which one is open; null is a new one. */
  mark(name) {
    this.current = name;
    this.show();
  }

  show() {
    const newest = [...this.all].sort((a, b) => b.changed - a.changed);
    el("list").replaceChildren(...newest.map((one) => this.item(one)));
    el("list-empty").hidden = this.all.length > 0;
    el("more").hidden = this.complete;
  }

  item({ name, num_tokens: tokens, changed }) {
    const link = document.createElement("a");
    link.href = address(name);
    if (name === this.current) link.setAttribute("aria-current", "page");
    const title = document.createElement("span");
    title.textContent = name;
    const about = document.createElement("small");
    about.textContent = `${plural(tokens, "token")} · ${ago(changed)}`;
    link.append(title, about);
    const item = document.createElement("li");
    item.append(link);
    return item;
  }
}

export const address = (name) => (name === null ? location.pathname : `#${encodeURIComponent(name)}`);

/** The conversation that the address names; null for a new one. */
export function addressed() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null;
  }
}

/** A name for a conversation that begins so; the server allows neither slashes nor controls. */
export function nameFor(prompt) {
  const words = prompt.replace(/[^\p{L}\p{M}\p{N}\p{P}\p{S}]+/gu, " ").replaceAll("/", "-").trim();
  const short = words.length > 40 ? `${words.slice(0, 40).replace(/\s+\S*$/u, "")} …` : words;
  return short.replace(/[\ud800-\udbff](?![\udc00-\udfff])/g, "").replace(/^\.+$/, "") || "conversation";
}
