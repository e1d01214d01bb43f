/**
 * The server's HTTP, as functions. Knows the page's token and nothing of what it fetches.
 *
 * Holds always: the token is in localStorage and in one request header, never in an address; a stream goes on after the
 * last event it gave, however often the connection breaks.
 */

const KEY = "partita.token";
const WAITS = [250, 500, 1000, 2000, 4000];

/** What the server refused, or that it does not answer (`status` 0). `field`: of the request, or null. */
export class ApiError extends Error {
  constructor(message, { status = 0, type = "", field = null } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, type, field });
  }

  /** Whether there is no server at the moment. */
  get gone() {
    return this.status === 0;
  }

  /** Whether the page's token is missing or wrong. */
  get locked() {
    return this.status === 401 || this.status === 403;
  }
}

export function token() {
  return localStorage.getItem(KEY);
}

export function keepToken(text) {
  localStorage.setItem(KEY, text.trim());
}

/** Take the token out of the address (`#token=…`), so that it is neither bookmarked nor shown. */
export function takeToken() {
  const found = /^#token=([^&]+)/.exec(location.hash);
  if (!found) return;
  keepToken(decodeURIComponent(found[1]));
  history.replaceState(null, "", `${location.pathname}#/`);
}

async function request(path, options = {}) {
  const headers = { "x-partita-page": token() ?? "", ...options.headers };
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const { message = `${response.status} ${response.statusText}`, type = "", field = null } = body?.error ?? {};
  throw new ApiError(message, { status: response.status, type, field });
}

/** What `path` has, as JSON. Throws ApiError. */
export async function get(path) {
  return (await request(path)).json();
}

/** The answer to a document, both as JSON. Throws ApiError. */
export async function post(path, body = {}) {
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  return (await request(path, options)).json();
}

/** What `path` has, as text (an export to be saved). Throws ApiError. */
export async function text(path) {
  return (await request(path)).text();
}

/**
 * Server-sent events of `path` after the event `after` (null: from the first), each given to `onEvent({kind, data, id})`.
 * A broken connection is made again, later and later, after the last event; `onState("open" | "lost")` says how it is.
 * Returns `{close, done}`; `done` ends when the stream was closed here or the server ended it after an `end` event, and
 * is rejected with an ApiError where the server refuses it for good (4xx).
 */
export function stream(path, after, onEvent, onState = () => {}) {
  const control = new AbortController();
  const place = { id: after ?? null, ended: false };
  const done = keepReading(path, place, control, onEvent, onState);
  done.catch(() => {});
  return { close: () => control.abort(), done };
}

async function keepReading(path, place, control, onEvent, onState) {
  for (let failures = 0; !control.signal.aborted && !place.ended; ) {
    try {
      const headers = place.id === null ? {} : { "last-event-id": String(place.id) };
      const response = await request(path, { headers, signal: control.signal });
      onState("open");
      await readEvents(response.body, (event) => {
        failures = 0;
        if (event.id !== null) place.id = event.id;
        place.ended ||= event.kind === "end";
        onEvent(event);
      });
    } catch (error) {
      if (control.signal.aborted) return;
      if (error instanceof ApiError && error.status >= 400 && error.status < 500) throw error;
    }
    if (control.signal.aborted || place.ended) return;
    onState("lost");
    await pause(WAITS[Math.min(failures++, WAITS.length - 1)], control.signal);
  }
}

async function readEvents(body, onEvent) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let open = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (open + value.replaceAll("\r", "")).split("\n\n");
    open = frames.pop();
    for (const frame of frames) {
      const event = parse(frame);
      if (event) onEvent(event);
    }
  }
}

function parse(frame) {
  const event = { kind: "message", data: null, id: null };
  const data = [];
  for (const line of frame.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 1) continue; // a comment: the server lives
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (line.startsWith("data:")) data.push(value);
    else if (line.startsWith("event:")) event.kind = value;
    else if (line.startsWith("id:")) event.id = value;
  }
  if (!data.length) return null;
  event.data = JSON.parse(data.join("\n"));
  return event;
}

/** Milliseconds, or less where `signal` ends it or the machine comes back online. */
function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      removeEventListener("online", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end);
    addEventListener("online", end);
  });
}
