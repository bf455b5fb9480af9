// One conversation: its turns, and the answer that is being written.

import { Trouble, frames, json, sessionPath } from "./api.js";
import { plural } from "./format.js";
import { Pace } from "./panel.js";
import { nameFor } from "./sidebar.js";
import { TurnView, facts, silent } from "./turns.js";

const NOT_KEPT = "This turn was not kept: the model does not remember it.";
const TAB = "retnet.turns"; // of a server that keeps none

/**
 * `ui` is what the page does for it: `changed()` after anything that the page shows elsewhere,
 * `list()` reads the list of conversations anew, `progress()` while an answer is written,
 * `status(text)`, `copy(text)`, `edit(text)` puts a text into the composer, `sampling()` is what a
 * request says, `fork(version)`, `key()` and `confirm(question, action)` ask the user, and
 * `doing(action)` tells of errors.
 */
export class Conversation {
  constructor(engine, log, ui) {
    Object.assign(this, { engine, log, ui, pace: null, stopped: 0, abort: null });
    this.clear();
  }

  get writing() {
    return this.abort !== null;
  }

  /** Tokens that the model has read and written, as far as is known by now. */
  get tokens() {
    return (this.turns.at(-1)?.tokens ?? 0) + (this.pace?.num ?? 0);
  }

  /** [tokens, ms for a token] through the whole conversation. */
  get points() {
    const live = this.pace?.points.map(([n, ms]) => [this.tokens - this.pace.num + n, ms]) ?? [];
    return [...this.turns.flatMap((turn) => turn.points), ...live];
  }

  clear() {
    this.name = null;
    this.turns = [];
    this.lost = null; // the view of a turn that was not kept
    this.log.replaceChildren();
  }

  /** Show a conversation as the server has it. */
  async open(name) {
    const told = await json("GET", sessionPath(name));
    this.clear();
    this.name = name;
    let before = 0;
    for (const { version, num_tokens: tokens, meta, kept } of told.turns) {
      const [prompt, answer] = words(meta.messages);
      const view = new TurnView(prompt);
      view.add(answer);
      view.end();
      if (!meta.messages) silent(view, tokens - before);
      const { tokens: written = 0, seconds = 0 } = meta.timing ?? {};
      const each = written > 1 ? seconds / (written - 1) : null;
      const points = each ? [[tokens - written, 1000 * each], [tokens, 1000 * each]] : [];
      this.push({ prompt, answer, version, tokens, added: tokens - before, kept, each, points, view });
      before = tokens;
    }
    this.settle();
  }

  /** Show what this tab remembers, where the server keeps nothing. */
  recall() {
    this.clear();
    for (const turn of JSON.parse(sessionStorage.getItem(TAB) ?? "[]")) {
      const view = new TurnView(turn.prompt);
      view.add(turn.answer);
      view.end();
      this.push({ ...turn, view });
    }
    this.settle();
  }

  forget() {
    sessionStorage.removeItem(TAB);
    this.clear();
    this.ui.changed();
    this.ui.list();
  }

  stop() {
    this.stopped = performance.now();
    this.abort?.abort();
  }

  async send(prompt) {
    if (this.writing) return;
    this.abort = new AbortController();
    this.lost?.node.remove();
    this.lost = null;
    const view = new TurnView(prompt);
    view.number(this.turns.length + 1);
    view.wait();
    this.log.append(view.node);
    this.pace = new Pace();
    this.ui.changed();
    let ended = null;
    let trouble = null;
    const before = this.turns.at(-1);
    let name = this.name;
    try {
      if (this.engine.sessions) name = await this.nameOf(prompt);
      ended = await this.receive(this.request(prompt, name), view);
    } catch (error) {
      if (!(error instanceof Trouble) && error.name !== "AbortError") throw error;
      trouble = error;
    } finally {
      view.end();
      this.abort = null;
    }
    const pace = this.pace;
    this.pace = null;
    if (ended) this.keep(prompt, name, view, ended, pace);
    else await this.lose(prompt, name, view, trouble, before);
    this.settle();
    await this.ui.list();
  }

  /** What the conversation is called; if it is there already it must be as it is shown. */
  async nameOf(prompt) {
    const told = async (name) => {
      try {
        return await json("GET", sessionPath(name));
      } catch (error) {
        if (error.status === 404) return null;
        throw error;
      }
    };
    if (this.name !== null) {
      const now = await told(this.name);
      if (now?.version === this.turns.at(-1).version) return this.name;
      throw new Trouble(
        now
          ? "This conversation was changed elsewhere, and is not as it is shown here."
          : "This conversation was deleted or renamed elsewhere. Copy your message and begin a new one.",
        { code: now ? "changed" : "gone" },
      );
    }
    const first = nameFor(prompt);
    for (let n = 1; ; n += 1) {
      const name = n === 1 ? first : `${first} ${n}`;
      if ((await told(name)) === null) return name;
    }
  }

  request(prompt, name) {
    const message = { role: "user", content: prompt };
    const past = this.turns.flatMap((turn) => [
      { role: "user", content: turn.prompt },
      { role: "assistant", content: turn.answer },
    ]);
    return {
      model: this.engine.model,
      stream: true,
      stream_options: { include_usage: true },
      ...(this.engine.sessions ? { session: name, messages: [message] } : { messages: [...past, message] }),
      ...this.ui.sampling(),
    };
  }

  /** Show an answer as it comes; return what the server says at its end. */
  async receive(request, view) {
    const ended = {};
    for (;;) {
      try {
        for await (const frame of frames("v1/chat/completions", request, this.abort.signal)) {
          const choice = frame.choices[0];
          if (choice?.delta.content) {
            view.add(choice.delta.content);
            this.pace.take(performance.now());
            this.ui.progress();
          }
          if (choice?.finish_reason) ended.reason = choice.finish_reason;
          if (frame.session) ended.session = frame.session;
          if (frame.usage) ended.usage = frame.usage;
        }
        return ended;
      } catch (error) {
        const own = error.code === "session_busy" && performance.now() - this.stopped < 3000;
        if (!own) throw error; // else the server is still leaving the turn that was stopped
        await new Promise((resolve) => setTimeout(resolve, 150));
        this.abort.signal.throwIfAborted();
      }
    }
  }

  keep(prompt, name, view, { reason, session, usage }, pace) {
    const before = this.turns.at(-1)?.tokens ?? 0;
    const tokens = session?.num_tokens ?? usage.total_tokens;
    const scale = usage.completion_tokens / Math.max(1, pace.num); // a piece may be two tokens
    const points = pace.points.map(([n, ms]) => [
      Math.round(tokens - usage.completion_tokens + n * scale), ms / scale,
    ]);
    const each = pace.seconds && pace.seconds / scale;
    if (each && points.length === 0) points.push([tokens, 1000 * each]);
    const note = reason === "length"
      ? "It ended at the most tokens that it may have; a new message goes on from here."
      : view.text.trim() ? "" : "The model had nothing to say.";
    const turn = { prompt, answer: view.text, tokens, added: tokens - before, kept: true, each, points, note };
    this.push({ ...turn, version: session?.version, view });
    this.name = name;
    this.ui.status(`The answer is complete: ${plural(usage.completion_tokens, "token")}.`);
  }

  async lose(prompt, name, view, trouble, before) {
    const stopped = trouble.name === "AbortError";
    const again = ["Send again", "The same message once more", () => this.send(prompt)];
    const edit = ["Edit", "Put the message back into its field", () => {
      view.node.remove();
      this.lost = null;
      this.ui.edit(prompt);
    }];
    if (stopped && !this.engine.sessions && view.text) {
      const tokens = before?.tokens ?? 0;
      view.say("Stopped here; what you see is kept in this tab.");
      this.push({ prompt, answer: view.text, tokens, added: null, kept: true, points: [], view });
      return;
    }
    const unsure = name !== null && this.engine.sessions && (stopped || trouble.code === "broken");
    if (unsure && (await this.gotThrough(name, before))) {
      this.ui.status("The answer had been complete, and the server has kept it.");
      return;
    }
    const text = stopped ? "Stopped." : trouble.message;
    view.number(this.turns.length + 1);
    view.say(`${text} ${this.engine.sessions || !stopped ? NOT_KEPT : ""}`.trim(), "lost");
    this.lost = view;
    this.ui.status(view.note.textContent);
    const reload = ["Show it as it is now", "Read the conversation from the server", async () => {
      await this.open(this.name);
      this.ui.edit(prompt);
    }];
    if (trouble.code === "gone") view.finish("", [edit]);
    else if (trouble.code === "changed") view.finish("", [reload]);
    else view.finish("", [again, edit]);
    if (trouble.status === 401 && (await this.ui.key())) await this.send(prompt);
  }

  /** Whether the server has completed a turn whose end did not reach us; then it is shown. */
  async gotThrough(name, before) {
    try {
      const told = await json("GET", sessionPath(name));
      if (told.version === before?.version) return false;
      await this.open(name);
      return true;
    } catch (error) {
      if (error instanceof Trouble) return false;
      throw error;
    }
  }

  async goBack(number) {
    const turn = this.turns[number];
    if (this.engine.sessions) {
      await json("POST", sessionPath(this.name, "/rollback"), { version: turn.version });
    }
    for (const gone of this.turns.splice(number + 1)) gone.view.node.remove();
    this.settle();
    await this.ui.list();
  }

  /** Forget the last turn, and let the user edit its message. */
  async takeBack() {
    const { prompt } = this.turns.at(-1);
    if (this.turns.length > 1) {
      await this.goBack(this.turns.length - 2);
    } else {
      if (this.engine.sessions) await json("DELETE", sessionPath(this.name));
      this.forget();
    }
    this.ui.edit(prompt);
  }

  push(turn) {
    this.turns.push(turn);
    turn.view.number(this.turns.length);
    this.log.append(turn.view.node);
  }

  /** Offer what can be done with each turn now. */
  settle() {
    const { ui, turns } = this;
    turns.forEach((turn, i) => {
      const last = i === turns.length - 1;
      if (turn.note !== undefined) turn.view.say(last ? turn.note : "");
      const actions = [["Copy", "Copy the answer", () => ui.copy(turn.answer)]];
      if (turn.kept && this.engine.sessions) {
        actions.push(["Fork from here", "A second conversation that begins with these turns", () => ui.fork(turn.version)]);
      }
      if (turn.kept && !last) {
        const after = turns.length - 1 - i;
        actions.push(["Go back to here", "Forget the turns after this one", () => ui.confirm({
          title: "Go back to here?",
          text: `The ${plural(after, "turn")} after this one will be forgotten. A fork would keep them.`,
          ok: "Go back",
          danger: true,
        }, () => this.goBack(i))]);
      }
      if (last && (i === 0 || turns[i - 1].kept)) {
        actions.push(["Take back", "Forget this turn, and edit its message", () => ui.doing(() => this.takeBack())]);
      }
      turn.view.finish(turn.added === null ? "" : facts(turn.added, turn.each), actions);
    });
    if (!this.engine.sessions) {
      const plain = turns.map(({ view, note, ...turn }) => turn);
      sessionStorage.setItem(TAB, JSON.stringify(plain));
    }
    ui.changed();
  }
}

/** What was said and answered in a turn. */
function words(messages = []) {
  const said = messages.filter(({ role }) => role !== "assistant");
  const answer = messages.at(-1)?.role === "assistant" ? messages.at(-1).content : "";
  if (said.length === 1 && messages.length <= 2) return [said[0].content, answer];
  return [messages.slice(0, -1).map(({ role, content }) => `${role}: ${content}`).join("\n\n"), answer];
}
