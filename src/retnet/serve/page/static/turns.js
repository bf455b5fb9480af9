// Turns of a conversation on the screen. What was said is only ever text, never markup.

import { count, few } from "./format.js";

/** A turn: what the user said, what was answered, and what can be done with it. */
export class TurnView {
  constructor(prompt) {
    this.node = make("article", "turn");
    this.user = said("user", "You", prompt);
    this.answer = said("model", "Model", "");
    this.note = make("p", "note");
    this.foot = make("footer", "foot");
    this.note.hidden = true;
    this.node.append(this.user, this.answer, this.note, this.foot);
  }

  number(n) {
    this.node.setAttribute("aria-label", `Turn ${n}`);
  }

  /** Begin to wait for an answer. */
  wait() {
    this.answer.classList.add("waiting");
    this.answer.setAttribute("aria-busy", "true");
  }

  add(text) {
    this.answer.classList.remove("waiting");
    this.answer.classList.add("writing");
    this.answer.lastChild.append(text);
  }

  end() {
    this.answer.classList.remove("waiting", "writing");
    this.answer.removeAttribute("aria-busy");
    this.answer.lastChild.normalize();
  }

  get text() {
    return this.answer.lastChild.textContent;
  }

  /** Say something of the turn as a whole, such as that it was not kept. */
  say(text, kind) {
    this.note.textContent = text;
    this.note.hidden = !text;
    this.node.classList.toggle("lost", kind === "lost");
  }

  /** Show what it cost and what can be done: a list of [words, description, what to do]. */
  finish(facts, actions) {
    const buttons = actions.map(([words, about, action]) => {
      const button = make("button", "plain", words);
      button.type = "button";
      button.title = about;
      button.addEventListener("click", action);
      return button;
    });
    this.foot.replaceChildren(make("span", "facts", facts), ...buttons);
  }
}

/** A turn that the server kept without its words. */
export function silent(view, tokens) {
  view.user.hidden = true;
  view.answer.lastChild.textContent = "";
  view.say(`${count(tokens)} tokens that came another way; “Show what the model has read” has them.`);
}

/** "187 tokens · 43 a second" */
export function facts(tokens, secondsEach) {
  const pace = secondsEach ? ` · ${few(1 / secondsEach)} a second` : "";
  return `${count(tokens)} ${tokens === 1 ? "token" : "tokens"}${pace}`;
}

function said(who, name, text) {
  const node = make("div", `said ${who}`);
  node.append(make("span", "unseen", `${name}: `), make("div", "words", text));
  return node;
}

function make(kind, name, text) {
  const node = document.createElement(kind);
  node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}
