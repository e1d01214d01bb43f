/**
 * What changes on the server, as it changes: other tabs, the terminal, models that load, replies that begin and end.
 *
 * Not here: the events of a run (live.js). Holds always: after a broken connection everything shown is fetched again,
 * since events were missed.
 */

import { stream } from "./api.js";
import { loadChats, loadState, refreshChat, store } from "./store.js";

const AGAIN = 1000; // milliseconds
let timer = null;
const wanted = new Set();

/** Follow /app/events; returns a function that ends it. Emits `run-state` and `tuning` for the parts that want them. */
export function followEvents() {
  let lost = false;
  const { close, done } = stream("/app/events", null, handle, (state) => {
    if (state === "lost") {
      lost = true;
      store.set("connection", "lost");
    } else if (lost) {
      lost = false;
      again("state", "chats", "chat");
    }
  });
  done.catch((error) => error.locked && store.set("connection", "locked"));
  const forget = store.on("connection", (state) => state === "lost" && setTimeout(look, AGAIN));
  return () => {
    forget();
    close();
  };
}

/** Whether the server answers again: some request failed, but perhaps no stream broke. */
async function look() {
  if (store.connection !== "lost") return;
  try {
    await loadState();
  } catch (error) {
    store.set("connection", error.locked ? "locked" : "lost");
  }
}

function handle({ kind, data }) {
  if (kind === "chat") again("chats", ...(data.id === null || data.id === store.chat?.id ? ["chat"] : []));
  if (kind === "models") again("state");
  if (kind === "run") {
    store.emit("run-state", data);
    if (data.chat === store.chat?.id && data.run !== store.run?.run) again("chat");
  }
  if (kind === "tuning") store.emit("tuning", data);
}

/** Fetch what changed, once for many changes. */
function again(...names) {
  names.forEach((name) => wanted.add(name));
  timer ??= setTimeout(fetchWanted, 120);
}

async function fetchWanted() {
  timer = null;
  const now = new Set(wanted);
  wanted.clear();
  try {
    if (now.has("state")) await loadState();
    if (now.has("chats")) await loadChats();
    if (now.has("chat") && !store.run) await refreshChat();
  } catch (error) {
    store.emit("failure", error);
  }
}
