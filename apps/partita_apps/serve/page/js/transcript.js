/**
 * The messages of the open chat, and what stands in their place where there are none.
 *
 * Not here: how one message looks (message.js). Holds always: elements of messages that stay shown are kept; the newest
 * messages are put in at once and older ones before them in pieces, so that a long chat opens as fast as a short one;
 * the reply that is being written keeps its view while another branch is shown.
 */

import { h } from "./dom.js";
import { mountGauge } from "./gauge.js";
import { messageView } from "./message.js";
import { followEnd } from "./scroll.js";
import { startView } from "./start.js";

const AT_ONCE = 24; // messages
const SLICE = 8; // milliseconds

export function mountTranscript(root, app) {
  const { store } = app;
  const list = h("div", { class: "transcript" });
  const start = h("div", { class: "start" });
  const content = h("div", { class: "transcript-content" }, start, list);
  const log = h("div", { class: "scroller", role: "log", "aria-live": "off", "aria-label": "Messages", tabindex: "0" }, content);
  const scroll = followEnd(log, content);
  root.append(log, scroll.button);
  app.toEnd = () => scroll.toEnd();
  /** The element of a message that is shown, with its buttons; undefined where it is not shown. */
  app.shownMessage = (id) => {
    views.get(id)?.dress();
    return views.get(id)?.element;
  };
  /** Scroll to a message, and no longer to what is newest; its element, undefined where it is not (yet) in the list. */
  app.toMessage = (id) => {
    const element = app.shownMessage(id);
    if (element) scroll.release();
    element?.scrollIntoView({ block: "start" });
    return element;
  };
  mountGauge(document.getElementById("header-extra"), app);

  const views = new Map(); // id → view, of what is in the list
  let liveView = null;
  let shown = undefined; // id of the chat that is shown
  let work = 0;

  // Buttons are put in when the browser is about to draw a message.
  const drawn = "oncontentvisibilityautostatechange" in window;
  list.addEventListener("contentvisibilityautostatechange", ({ target, skipped }) => skipped || views.get(target.dataset.id)?.dress(), true);
  const viewOf = (message) => {
    const kept = liveView?.id === message.id;
    const view = kept ? liveView : messageView(message, app);
    if (kept) view.update(message);
    if (message.state === "running") liveView = view;
    views.set(message.id, view);
    if (!drawn) view.dress();
    return view;
  };

  const show = (path) => {
    const another = shown !== (store.chat?.id ?? null);
    shown = store.chat?.id ?? null;
    const wanted = new Set(path.map((each) => each.id));
    for (const [id, view] of views) {
      if (wanted.has(id) && !another) continue;
      view.element.remove();
      views.delete(id);
    }
    if (another) liveView = null;
    place(path, ++work);
    const empty = !path.length;
    start.hidden = !empty;
    if (empty) start.replaceChildren(startView(app));
    else views.get(path.at(-1).id)?.dress();
    root.classList.toggle("is-empty", empty);
    if (another) scroll.toEnd();
  };

  /** Bring the list to what `path` is, from its end: as much as fits at once, the rest in pieces. */
  const place = (path, mine) => {
    let at = path.length - 1;
    let after = null;
    const step = (until, count) => {
      for (; at >= 0 && count > 0 && performance.now() < until; at--) {
        const known = views.get(path[at].id);
        if (known) known.update(path[at]);
        else count--;
        const { element } = known ?? viewOf(path[at]);
        if (element.nextSibling !== after || element.parentNode !== list) list.insertBefore(element, after);
        after = element;
      }
    };
    step(Infinity, AT_ONCE);
    const rest = () => {
      if (mine !== work) return;
      step(performance.now() + SLICE, Infinity);
      if (at >= 0) setTimeout(rest, 0);
    };
    if (at >= 0) setTimeout(rest, 0);
  };

  store.on("path", show);
  store.on("live", ({ kind, data, run }) => {
    if (run.reply === liveView?.id) liveView.live(kind, data, run);
  });
  store.on("run", (run) => document.getElementById("app").classList.toggle("running", run !== null));
  for (const name of ["connection", "state", "model", "fresh"]) {
    store.on(name, () => {
      if (store.path.length && store.connection !== "locked") return;
      start.hidden = false;
      list.hidden = store.connection === "locked";
      start.replaceChildren(startView(app));
    });
  }
  store.on("connection", (state) => document.getElementById("app").classList.toggle("locked", state === "locked"));
  store.on("chat", (chat) => (document.title = chat?.title ? `${chat.title} · partita` : "partita"));
  start.replaceChildren(startView(app));
  root.classList.add("is-empty");
}
