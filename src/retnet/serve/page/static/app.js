// The page: composer, conversation, list and panel put together.

import { Trouble, json, sessionPath } from "./api.js";
import { Conversation } from "./conversation.js";
import { ask } from "./dialog.js";
import { plural } from "./format.js";
import { connect, named } from "./menu.js";
import { drawMemory, drawSpeed } from "./panel.js";
import { Sampling } from "./sampling.js";
import { Sidebar, address, addressed } from "./sidebar.js";
import { askKey, doing, notice } from "./tell.js";

const el = (id) => document.getElementById(id);
const FIXED = "retnet.fixed";

const sampling = new Sampling(el("sampling"));
const sidebar = new Sidebar();
let engine = null;
let talk = null;
let drawing = 0;
let drawn = 0;
const DRAW_MS = 120; // between two pictures of the panel while an answer is written

// ---- What a conversation asks of the page

const ui = {
  get engine() { return engine; },
  get talk() { return talk; },
  doing,
  go,
  sampling: () => sampling.values(),
  status: (text) => { el("status").textContent = text; },
  key: askKey,
  edit(text) {
    el("prompt").value = text;
    fit();
    el("prompt").focus();
  },
  async list() {
    if (!engine.sessions) return;
    try {
      await sidebar.refresh();
    } catch (error) {
      if (!(error instanceof Trouble)) throw error;
      notice(`The list of conversations could not be read. ${error.message}`, "Try again", ui.list);
    }
  },
  async copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      ui.status("Copied.");
    } catch {
      notice("The browser does not let this page copy; select the text instead.");
    }
  },
  async confirm(question, action) {
    if (await ask(question)) await doing(action);
  },
  async fork(version) {
    const body = version === undefined ? {} : { version };
    const name = await named("Fork", `${talk.name} fork`, "Fork", (new_name) =>
      json("POST", sessionPath(talk.name, "/fork"), { new_name, ...body }));
    if (name) await go(name);
  },
  progress() {
    drawing ||= requestAnimationFrame((now) => {
      drawing = 0;
      follow();
      if (now - drawn < DRAW_MS) return;
      drawn = now;
      panel();
    });
  },
  changed() {
    const { turns, name, writing } = talk;
    el("send").hidden = writing;
    el("stop").hidden = !writing;
    el("welcome").hidden = turns.length > 0 || writing || talk.lost !== null;
    el("actions").hidden = name === null;
    el("title").textContent = name ?? "New conversation";
    document.title = name === null ? "retnet" : `${name} · retnet`;
    el("about").textContent = turns.length ? `${plural(turns.length, "turn")}, ${plural(talk.tokens, "token")}` : "";
    if (engine.sessions) {
      if (addressed() !== name && !writing) history.replaceState(null, "", address(name));
      sidebar.mark(name);
    }
    follow();
    panel();
  },
};

function panel() {
  drawMemory(engine, talk.tokens);
  drawSpeed(talk.points, talk.pace?.seconds ?? null, talk.tokens);
}

/** Keep the end in sight, unless the user is reading above it. */
let atEnd = true;
let seenTop = 0;
function follow() {
  const box = el("scroll");
  if (atEnd) box.scrollTop = box.scrollHeight;
}
el("scroll").addEventListener("scroll", () => {
  const box = el("scroll");
  const near = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  atEnd = near || (atEnd && box.scrollTop >= seenTop); // text that grew has not moved the user up
  seenTop = box.scrollTop;
});

// ---- The composer

function fit() {
  const field = el("prompt");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

el("prompt").addEventListener("input", fit);
el("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  el("composer").requestSubmit();
});
el("composer").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!talk || starting) await start(); // what is sent before the server is known waits for it
  const text = el("prompt").value;
  if (!talk || !text.trim() || talk.writing) return;
  const wrong = sampling.wrong();
  if (wrong) {
    if (!el("panel").checkVisibility()) el("panel").showPopover();
    wrong.reportValidity();
    return;
  }
  el("prompt").value = "";
  fit();
  atEnd = true;
  notice("");
  el("prompt").focus();
  await talk.send(text);
});
el("stop").addEventListener("click", () => stop());
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !talk?.writing) return;
  if (!document.querySelector("dialog[open], :popover-open")) stop();
});
function stop() {
  talk.stop();
  el("prompt").focus();
}
window.addEventListener("beforeunload", (event) => {
  if (talk?.writing) event.preventDefault();
});

// ---- Conversations

async function show(name) {
  if (talk.writing) {
    notice("An answer is being written. Stop it or wait for its end, then choose another conversation.");
    history.replaceState(null, "", address(talk.name));
    return;
  }
  closeDrawers();
  atEnd = true;
  await doing(async () => {
    talk.clear();
    ui.changed();
    if (!engine.sessions) talk.recall();
    else if (name !== null) await talk.open(name);
  });
  await ui.list();
}

async function go(name) {
  if (!talk.writing) history.pushState(null, "", address(name));
  await show(name);
}

window.addEventListener("hashchange", () => {
  if (talk && addressed() !== talk.name) show(addressed());
});

el("new").addEventListener("click", async () => {
  if (!talk) return start();
  if (!engine.sessions && !talk.writing) talk.forget();
  await go(null);
  el("prompt").focus();
});

el("key").addEventListener("click", async () => {
  if (await askKey()) start();
});

connect(ui);

// ---- How it looks

function fixed() {
  document.body.classList.toggle("fixed", el("fixed").checked);
}
el("fixed").checked = localStorage.getItem(FIXED) === "yes";
el("fixed").addEventListener("change", () => {
  localStorage.setItem(FIXED, el("fixed").checked ? "yes" : "no");
  fixed();
});
fixed();

for (const width of ["(min-width: 47.5rem)", "(min-width: 70rem)"]) {
  matchMedia(width).addEventListener("change", closeDrawers);
}

function closeDrawers() {
  for (const open of document.querySelectorAll("[popover]:popover-open")) open.hidePopover();
}

let starting = null;
function start() {
  starting ??= meet().finally(() => { starting = null; });
  return starting;
}

/** Learn what the server is, and show the conversation that the address names. */
async function meet() {
  engine = await doing(() => json("GET", "v1/engine"));
  if (!engine) {
    el("model").textContent = "not connected";
    if (!el("notice").hasChildNodes()) return;
    const text = el("notice").firstElementChild.textContent;
    notice(text, "Try again", start);
    return;
  }
  el("model").textContent = engine.model;
  el("key").hidden = !engine.keys;
  el("kept").hidden = el("import").hidden = !engine.sessions;
  el("no-sessions").hidden = engine.sessions;
  el("base").hidden = engine.chat_template;
  el("fixed-size").hidden = engine.state.bytes_per_token > 0;
  el("growing").hidden = engine.state.bytes_per_token === 0;
  sampling.limit(engine.limits.max_tokens);
  talk = new Conversation(engine, el("log"), ui);
  el("send").disabled = false;
  await show(engine.sessions ? addressed() : null);
  el("prompt").focus();
}

start();
