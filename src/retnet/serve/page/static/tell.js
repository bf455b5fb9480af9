// What the user is told when something does not go as it should, and the question for a key.

import { Trouble, json, key } from "./api.js";
import { ask } from "./dialog.js";

const el = (id) => document.getElementById(id);

/** Say something above the composer, with a button for what can be done; nothing clears it. */
export function notice(text, words, action) {
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
export async function doing(action) {
  try {
    notice("");
    return await action();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    if (error.status === 401) {
      if (await askKey()) return doing(action);
      notice(error.message, "Enter the key", () => doing(action));
    } else {
      notice(error.message);
    }
    return undefined;
  }
}

/** Ask for a key until the server knows it; return whether it does. */
export async function askKey() {
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
