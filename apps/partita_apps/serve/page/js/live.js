/**
 * The reply that is being written in the open chat: its run's events, taken in at the page's own pace.
 *
 * Not here: how it looks (transcript.js, message.js) and what the inspector draws; both listen to `live` on the store
 * ({kind, data, run}). Holds always: a run is followed once, from its first event to its last, so that a reload or a second
 * tab shows the same; events are handled in their order and for at most BUDGET milliseconds a frame.
 */

import { stream } from "./api.js";
import { refreshChat } from "./store.js";
import { duration, plural } from "./words.js";

const BUDGET = 10;
const WORDS = new Set(["thought", "text", "block", "call"]); // what is said: nothing is waited for any more

/** What is known of a run so far. */
class Live {
  /** connecting | loading | queue | prompt | thinking | writing | calling | ended */
  phase = "connecting";
  wait = null;
  started = null;
  cache = null;
  end = null;
  tokens = 0;
  thought = "";
  /** What the inspector shows, as it came: [{kind, data}]. It may be opened in the middle of a reply. */
  trace = [];
  /** Milliseconds of this page's clock: when thoughts began and ended. */
  thoughtFrom = null;
  thoughtUntil = null;
  /** Whether events of the past are being taken in (after a reload); whether thoughts were among them. */
  catchingUp = true;
  caughtUp = false;

  constructor({ run, chat, reply }) {
    Object.assign(this, { run, chat, reply, since: performance.now(), firstToken: null });
  }

  /** Tokens a second since the first one; null before two. */
  get rate() {
    if (this.firstToken === null || this.tokens < 2) return null;
    const seconds = (performance.now() - this.firstToken) / 1000;
    return seconds > 0.3 ? this.tokens / seconds : null;
  }

  #prompt = 0; // seconds that its chunks took

  /** Seconds until the prompt is read, from how long it took so far; null where nothing is known yet. */
  #left({ what, done, total, reused, seconds }) {
    if (what !== "prompt" || !seconds || done <= reused) return null;
    this.#prompt += seconds;
    return ((total - done) * this.#prompt) / (done - reused);
  }

  take(kind, data) {
    const now = performance.now();
    if (kind === "wait") Object.assign(this, { phase: data.what, wait: { ...data, left: this.#left(data) } });
    if (kind === "start") Object.assign(this, { phase: "writing", started: data, wait: null });
    if (kind === "thought") {
      this.phase = "thinking";
      this.thought += data.text;
      this.caughtUp ||= this.catchingUp;
      this.thoughtFrom ??= now;
      this.thoughtUntil = now;
    }
    if (kind === "text" || kind === "block") this.phase = "writing";
    if (kind === "call") this.phase = "calling";
    if (WORDS.has(kind)) this.wait = null;
    if (kind === "cache") this.cache = data;
    if (kind === "cache" || kind === "tokens" || kind === "wait") this.trace.push({ kind, data });
    if (kind === "tokens") {
      this.firstToken ??= now;
      this.tokens = data.from + data.tokens.length;
    }
    if (kind === "end") Object.assign(this, { phase: "ended", end: data, wait: null });
  }
}

export function mountLive(app) {
  const { store } = app;
  let stopFollowing = () => {};

  store.on("ended", (end) => app.say(spoken(end)));
  store.on("running", (run) => {
    if (run && store.run?.run === run.run) return;
    if (!run && store.run && store.run.chat === store.chat?.id) return; // it has ended: its last events are on the way
    stopFollowing();
    if (store.run) store.set("run", null);
    if (run) stopFollowing = follow(run, app);
  });
}

function follow(run, app) {
  const { store } = app;
  const live = new Live(run);
  const queue = [];
  let waiting = null;
  let over = false;

  const handle = (event) => {
    live.take(event.kind, event.data);
    store.emit("live", { kind: event.kind, data: event.data, run: live });
    if (event.kind === "end") finish(live, app);
  };
  const drain = () => {
    waiting = null;
    const until = performance.now() + BUDGET;
    while (queue.length && performance.now() < until && !over) handle(queue.shift());
    live.catchingUp &&= queue.length > 0;
    if (queue.length && !over) schedule();
  };
  // A hidden tab has no frames: there, a timer.
  const schedule = () => (waiting ??= document.hidden ? setTimeout(drain, 100) : nextFrame(drain));

  store.set("run", live);
  const { close, done } = stream(`/app/runs/${encodeURIComponent(run.run)}/events`, null, (event) => {
    queue.push(event);
    schedule();
  });
  done.catch((error) => {
    if (over) return;
    store.set("run", null);
    if (error.status === 404) refreshChat().catch(app.fail); // the server was started again: the reply was interrupted
    else app.fail(error);
  });
  return () => {
    over = true;
    close();
  };
}

/** The next frame, or soon where the tab is hidden before it comes. */
function nextFrame(fn) {
  let ran = false;
  const once = () => {
    if (ran) return;
    ran = true;
    clearTimeout(timer);
    fn();
  };
  const timer = setTimeout(once, 250);
  requestAnimationFrame(once);
  return timer;
}

function finish(live, app) {
  const { store } = app;
  store.set("run", null);
  store.emit("ended", live.end);
  refreshChat().catch(app.fail);
}

function spoken(end) {
  if (end.state === "failed") return `The reply failed: ${end.error?.message ?? ""}`;
  const length = end.tokens ? ` ${plural(end.tokens, "token")} in ${duration(end.seconds ?? 0)}.` : "";
  return `${end.state === "stopped" ? "Reply stopped." : "Reply finished."}${length}`;
}
