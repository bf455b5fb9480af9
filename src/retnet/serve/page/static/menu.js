// What can be done with a whole conversation, and the import of one.

import { Trouble, blob, json, sessionPath } from "./api.js";
import { ask } from "./dialog.js";
import { bytes, plural } from "./format.js";
import { doing, notice } from "./tell.js";

const el = (id) => document.getElementById(id);

/** Ask for a name until an action with it succeeds; return the name, or null. */
export async function named(title, value, ok, action, text = "") {
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

const actions = (page) => ({
  fork: () => page.fork(),
  async rename() {
    const name = await named("Rename", page.talk.name, "Rename", (new_name) =>
      json("POST", sessionPath(page.talk.name, "/rename"), { new_name }));
    if (name) await page.go(name);
  },
  async text() {
    const told = await doing(() => json("GET", sessionPath(page.talk.name, "/text")));
    if (!told) return;
    const text = `${plural(told.num_tokens, "token")}, in the order it saw them.`;
    await ask({ title: "What the model has read", text, body: told.text, ok: "Close" });
  },
  async export() {
    await doing(async () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await blob(sessionPath(page.talk.name, "/state")));
      link.download = `${page.talk.name}.safetensors`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  },
  delete: () => page.confirm(
    {
      title: "Delete this conversation?",
      text: `“${page.talk.name}” and its state will be gone; forks of it stay.`,
      ok: "Delete",
      danger: true,
    },
    async () => {
      await json("DELETE", sessionPath(page.talk.name));
      page.talk.clear();
      page.changed();
      await page.list();
    },
  ),
});

/**
 * Make the menu of actions and the import work.
 *
 * `page` has `talk` and `engine` as they are now, `go(name)`, and what a conversation asks of it.
 */
export function connect(page) {
  const does = actions(page);
  for (const item of el("menu").children) {
    item.addEventListener("click", () => {
      el("menu").hidePopover();
      if (page.talk.writing) notice("An answer is being written. Stop it or wait for its end first.");
      else does[item.dataset.action]();
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
    const most = page.engine.limits.file_bytes;
    if (file.size > most) {
      notice(`The file has ${bytes(file.size)}, and this server takes at most ${bytes(most)} at once.`);
      return;
    }
    const name = await named("Import", file.name.replace(/\.safetensors$/, ""), "Import", (name) =>
      json("PUT", sessionPath(name, "/state"), file), "It becomes a conversation of this name.");
    if (!name) return;
    await page.go(name);
    notice(
      "Imported. The model remembers all of it; of the words, the file has the last turn’s. " +
      "“Show what the model has read” has the rest.",
    );
  });
}
