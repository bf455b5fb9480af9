// The page: composer, conversation, list and panel put together.

import { Trouble, blob, json, key, sessionPath } from "./api.js";
import { Conversation } from "./conversation.js";
import { ask } from "./dialog.js";
import { bytes, plural } from "./format.js";
import { drawMemory, drawSpeed } from "./panel.js";
import { Sampling } from "./sampling.js";
import { Sidebar, address, addressed } from "./sidebar.js";

const el = (id) => document.getElementById(id);
const FIXED = "retnet.fixed";

const sampling = new Sampling(el("sampling"));
const sidebar = new Sidebar();
let engine = null;
let talk = null;
let drawing = 0;
let drawn = 0;
const DRAW_MS = 120; // between two pictures of the panel while an answer is written

// ---- What the user is told

function notice(text, words, action) {
  const close = button("×", () => notice(""));
  close.setAttribute("aria-label", "Close this message");
  const more = words ? [button(words, () => { notice(""); action(); })] : [];
  const says = document.createElement("p");
  says.textContent = text;
  el("notice").replaceChildren(...(text ? [says, ...more, close] : []));
}

function button(words, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "plain";
  made.textContent = words;
  made.addEventListener("click", action);
  return made;
}

/** Do something that may fail for reasons that the user should read. */
async function doing(action) {
  try {
    notice("");
    return await action();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    if (error.status === 401) {
      if (await askKey()) return doing(action);
      notice(error.message, "Enter the key", start);
    } else {
      notice(error.message);
    }
    return undefined;
  }
}

async function askKey() {
  const given = await ask({
    title: "API key",
    text: "This server asks for a key. It is kept in this tab alone, and sent to this server alone.",
    label: "Key",
    value: key.get(),
    secret: true,
    ok: "Use this key",
    check: async (value) => {
      const before = key.get();
      key.set(value);
      try {
        await json("GET", "v1/engine");
        return "";
      } catch (error) {
        key.set(before);
        return error.status === 401 ? "The server does not know this key." : error.message;
      }
    },
  });
  return given !== null;
}

// ---- What a conversation asks of the page

const ui = {
  doing,
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
    if (name) go(name);
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
      const there = addressed();
      if (there !== name && !writing) history.replaceState(null, "", address(name) === "#" ? location.pathname : address(name));
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
function follow() {
  const box = el("scroll");
  if (atEnd) box.scrollTop = box.scrollHeight;
}
el("scroll").addEventListener("scroll", () => {
  const box = el("scroll");
  atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
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
  const text = el("prompt").value;
  if (!text.trim() || !talk || talk.writing) return;
  const wrong = sampling.wrong();
  if (wrong) {
    const panelHidden = el("panel").checkVisibility() === false;
    if (panelHidden) el("panel").showPopover();
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
  for (const open of document.querySelectorAll("[popover]:popover-open")) open.hidePopover();
  atEnd = true;
  await doing(async () => {
    talk.clear();
    ui.changed();
    if (!engine.sessions) talk.recall();
    else if (name !== null) await talk.open(name);
  });
}

function go(name) {
  if (addressed() === name) show(name);
  else location.hash = name === null ? "" : encodeURIComponent(name);
}

window.addEventListener("hashchange", () => {
  if (talk && addressed() !== talk.name) show(addressed());
});

el("new").addEventListener("click", async () => {
  if (!talk || talk.writing) return show(null);
  if (!engine.sessions) talk.forget();
  history.pushState(null, "", location.pathname);
  await show(null);
  el("prompt").focus();
});

/** Ask for a name until an action with it succeeds; return the name, or null. */
async function named(title, value, ok, action, text = "") {
  return ask({
    title,
    text,
    label: "Name",
    value,
    ok,
    check: async (name) => {
      if (!name) return "It needs a name.";
      try {
        await action(name);
        return "";
      } catch (error) {
        if (!(error instanceof Trouble)) throw error;
        return error.message;
      }
    },
  });
}

const ACTIONS = {
  fork: () => ui.fork(),
  async rename() {
    const name = await named("Rename", talk.name, "Rename", (new_name) =>
      json("POST", sessionPath(talk.name, "/rename"), { new_name }));
    if (name) go(name);
  },
  async text() {
    const told = await doing(() => json("GET", sessionPath(talk.name, "/text")));
    if (told) await ask({ title: "What the model has read", text: `${plural(talk.tokens, "token")}, in the order it saw them.`, body: told.text, ok: "Close" });
  },
  async export() {
    await doing(async () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await blob(sessionPath(talk.name, "/state")));
      link.download = `${talk.name}.safetensors`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  },
  delete: () => ui.confirm(
    { title: "Delete this conversation?", text: `“${talk.name}” and its state will be gone; forks of it stay.`, ok: "Delete", danger: true },
    async () => {
      await json("DELETE", sessionPath(talk.name));
      talk.clear();
      ui.changed();
      await ui.list();
    },
  ),
};
for (const item of el("menu").children) {
  item.addEventListener("click", () => {
    el("menu").hidePopover();
    if (talk.writing) notice("An answer is being written. Stop it or wait for its end first.");
    else ACTIONS[item.dataset.action]();
  });
}
el("menu").addEventListener("toggle", (event) => {
  if (event.newState !== "open") return;
  const at = el("actions").getBoundingClientRect();
  el("menu").style.top = `${at.bottom + 6}px`;
  el("menu").style.right = `${document.documentElement.clientWidth - at.right}px`;
  el("menu").firstElementChild.focus();
});

el("import").addEventListener("click", () => el("file").click());
el("file").addEventListener("change", async () => {
  const [file] = el("file").files;
  if (!file) return;
  el("file").value = "";
  const most = engine.limits.body_bytes;
  if (file.size > most) {
    notice(`The file has ${bytes(file.size)}, and this server takes at most ${bytes(most)} at once.`);
    return;
  }
  const name = await named("Import", file.name.replace(/\.safetensors$/, ""), "Import", (name) =>
    json("PUT", sessionPath(name, "/state"), file), "It becomes a conversation of this name.");
  if (!name) return;
  go(name);
  notice("Imported. The model remembers all of it; of the words, the file has the last turn’s. “Show what the model has read” has the rest.");
});

el("key").addEventListener("click", async () => {
  if (await askKey()) start();
});

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
  matchMedia(width).addEventListener("change", () => {
    for (const open of document.querySelectorAll("[popover]:popover-open")) open.hidePopover();
  });
}

async function start() {
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
  sampling.limit(engine.limits.max_tokens);
  talk = new Conversation(engine, el("log"), ui);
  await show(engine.sessions ? addressed() : null);
  await ui.list();
  el("prompt").focus();
}

start();
