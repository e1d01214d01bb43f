/**
 * The page's beginning: the token, the parts, the addresses.
 *
 * Not here: what any part shows. Holds always: every part gets its own element and the same `app`; the inspector and
 * fine-tuning are fetched when they are first wanted.
 */

import * as api from "./api.js";
import { mountAttachments } from "./attachments.js";
import { mountComposer } from "./composer.js";
import { mountDialogs } from "./dialogs/index.js";
import { followEvents } from "./events.js";
import { mountKeyboard } from "./keyboard.js";
import { mountLayout } from "./layout.js";
import { mountLive } from "./live.js";
import { mountModels } from "./models.js";
import { showMessage } from "./search.js";
import { mountSidebar } from "./sidebar.js";
import * as actions from "./store.js";
import { mountTheme } from "./theme.js";
import { mountTranscript } from "./transcript.js";

const { store } = actions;
const $ = (id) => document.getElementById(id);

/** What every part gets. `dialog`, `sidebar`, `inspector`, `focusComposer` are set by the parts that own them. */
const app = {
  api,
  store,
  actions,
  /** Go to an address of the page: `#/`, `#/chat/ID`, `#/chat/ID/at/MESSAGE`, `#/chat/ID/inspect/MESSAGE`,
   * `#/tuning`, `#/tuning/RUN`. */
  go: (hash) => (location.hash === hash ? route() : (location.hash = hash)),
  /** Tell a person who listens to the page, once, politely. */
  say: (text) => ($("status").textContent = text),
  /** Open a dialog by its name; E's dialogs/index.js sets it. */
  dialog: () => {},
  /** Show a notice that goes by itself: toast("Chat deleted", {action: "Undo", onAction}). layout.js sets it. */
  toast: () => {},
  /** Show what failed, in words that help. layout.js sets it. */
  fail: (error) => console.error(error),
  /** Open or close a side: sidebar(true). layout.js sets them. */
  sidebar: () => {},
  inspector: () => {},
  focusComposer: () => {},
};

/** The address as `store.route`. */
function parse(hash) {
  const [, view, id, sub, message] = hash.split("/").map(decodeURIComponent);
  const where = (name) => (sub === name ? (message ?? null) : null);
  if (view === "tuning") return { view: "tuning", chat: null, inspect: null, at: null, run: id || null };
  if (view === "chat" && id) return { view: "chat", chat: id, inspect: where("inspect"), at: where("at") };
  return { view: "chat", chat: null, inspect: null, at: null };
}

async function route() {
  const before = store.route;
  store.set("route", parse(location.hash));
  const { view, chat, inspect } = store.route;
  if (store.connection === "locked") return;
  try {
    if (view === "tuning") await loadTuning();
    else if (chat !== (store.chat?.id ?? null) || before.view !== "chat") await actions.openChat(chat);
    if (inspect) await loadInspector();
    if (store.route.at) await showMessage(app, store.route.at);
  } catch (error) {
    if (error.status === 404) app.go("#/");
    app.fail(error);
  }
}

const once = (load) => {
  let loaded = null;
  return () => (loaded ??= load());
};
const loadTuning = once(async () => (await import("./tuning/index.js")).mountTuning($("tuning"), app));
const loadInspector = once(async () => (await import("./inspector/index.js")).mountInspector($("inspector"), app));
app.loadInspector = loadInspector;

function mount() {
  const slots = mountLayout($("app"), app);
  mountTheme(document.documentElement, app);
  mountModels(slots.model, app);
  mountSidebar($("sidebar"), app);
  mountTranscript(slots.transcript, app);
  const { attach } = mountComposer(slots.composer, app);
  mountAttachments(attach, app);
  mountLive(app);
  mountDialogs($("dialogs"), app);
  mountKeyboard(document, app);
}

let unfollow = () => {};

/** Everything that needs the token; again where a person has pasted it. */
async function begin() {
  try {
    await actions.loadState();
  } catch (error) {
    store.set("connection", error.locked ? "locked" : "lost");
    if (error.locked) return;
    setTimeout(begin, 1000);
    return;
  }
  unfollow();
  unfollow = followEvents();
  await Promise.all([actions.loadChats().catch(app.fail), route()]);
}

api.takeToken();
store.route = parse(location.hash);
mount();
app.begin = begin;
addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#token=")) return route();
  api.takeToken(); // a link with a token, opened over a page that is there already
  return store.connection === "locked" ? begin() : route();
});
begin();
