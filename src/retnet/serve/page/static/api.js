// Requests to the server that this page came from, and its errors in plain words.

const KEY = "retnet.key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What went wrong, as the user should read it. */
export class Trouble extends Error {
  constructor(message, { status = 0, code = "", waitS = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, waitS });
  }
}

export async function json(method, path, body) {
  const answer = await request(method, path, body);
  return read(() => answer.json());
}

export async function blob(path) {
  const answer = await request("GET", path);
  return read(() => answer.blob());
}

/** Frames of an answer that is streamed; ends only where the server says that it is complete. */
export async function* frames(path, body, signal) {
  const answer = await request("POST", path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await read(() => reader.read());
    if (done) throw broken();
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const frame = JSON.parse(data);
      if (frame.error) throw trouble(0, frame.error, null);
      yield frame;
    }
  }
}

export const sessionPath = (name, rest = "") =>
  `v1/sessions/${encodeURIComponent(name)}${rest}`;

async function request(method, path, body, signal) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  const file = body instanceof Blob;
  if (body !== undefined) headers["Content-Type"] = file ? "application/octet-stream" : "application/json";
  const sent = body === undefined || file ? body : JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: sent, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(
      "The server cannot be reached. See whether it still runs and whether you are online, then try again.",
      { code: "unreachable" },
    );
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw trouble(answer.status, told.error ?? {}, answer.headers.get("Retry-After"));
}

/** Read an answer; a connection that breaks meanwhile has a name. */
async function read(reading) {
  try {
    return await reading();
  } catch (error) {
    throw error.name === "AbortError" ? error : broken();
  }
}

const broken = () =>
  new Trouble("The connection broke before the answer was complete.", { code: "broken" });

function trouble(status, { message = "", code = "", type = "" }, retryAfter) {
  const waitS = Number(retryAfter) || 0;
  return new Trouble(plain(status, code, message, waitS, type), { status, code, waitS });
}

function plain(status, code, message, waitS, type) {
  const soon = waitS > 1 ? `in ${waitS} seconds` : "in a moment";
  if (status === 401) return "This server asks for an API key. Enter one, then try again.";
  if (status === 429) return `Too many are asking at the moment, and the queue is full. Try again ${soon}.`;
  if (code === "session_busy")
    return "Something else is writing in this conversation, perhaps another tab. Wait for its end and try again, or fork the conversation.";
  if (code === "version_conflict")
    return "Something else wrote in this conversation first, so this turn was not kept. Load the page again to see it as it is now.";
  if (code === "session_exists") return "There is a conversation of that name already. Choose another name.";
  if (code === "session_not_found")
    return "This conversation, or this turn of it, is gone: deleted, renamed or expired. Choose another, or begin a new one.";
  if (code === "shutting_down") return `The server is shutting down. Try again ${soon}, when it is back.`;
  if (code === "sessions_unavailable")
    return `The server cannot get at its conversations now: ${message}. Try again ${soon}.`;
  if (status === 413) return "This is more than the server takes at once. Send less.";
  if (status === 408) return "The message came too slowly, and the server gave up. Try again.";
  if (status >= 500 || type === "server_error")
    return `The server failed${message ? `: ${message}` : ""}. Its log says more.`;
  return `The server refused this: ${message || `status ${status}`}.`;
}
