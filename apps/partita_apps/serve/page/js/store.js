/**
 * What the page knows, and the actions that change it. Knows no elements.
 *
 * Holds always: parts read fields and listen, and change them through the actions below alone; `path` is the branch of
 * `messages` that is shown, root first; a chat that has no message yet is not on the server (`fresh` is what it will be).
 */

import * as api from "./api.js";

class Store extends EventTarget {
  /** connecting | open | lost (the server does not answer) | locked (no token, or a wrong one) */
  connection = "connecting";
  /** The answer of /app/state; null before. */
  state = null;
  models = [];
  /** Of the sidebar: pinned first, newest first. */
  chats = [];
  folders = [];
  /** Cursor of the next page of chats, null where there is none. */
  more = null;
  /** The open one; null: a new chat, which `fresh` describes. */
  chat = null;
  fresh = { model: null, settings: {}, folder: "" };
  /** The open chat's whole tree, oldest first. */
  messages = [];
  path = [];
  /** The run of the open chat that is going on, as live.js follows it; null without one. */
  run = null;
  /** What the next message brings along: [{name, type, text, characters, tokens}]. */
  attachments = [];
  /** How many files are still being read for it. */
  attaching = 0;
  /** {view: "chat" | "tuning", chat: id | null, inspect: message id | null, at: message id | null (scrolled to),
   * run: of fine-tuning, id | null} */
  route = { view: "chat", chat: null, inspect: null, at: null };

  /** Change one field and say so. */
  set(name, value) {
    this[name] = value;
    this.emit(name, value);
  }

  emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** Call `fn(value)` whenever `name` changes; returns a function that ends it. */
  on(name, fn) {
    const listener = (event) => fn(event.detail);
    this.addEventListener(name, listener);
    return () => this.removeEventListener(name, listener);
  }

  /** Name of the model that answers next in the open chat. */
  get model() {
    return this.chat?.model || this.fresh.model || this.state?.default_model || null;
  }

  /** Settings of the open chat, or of the one to come. */
  get settings() {
    return this.chat ? this.chat.settings : this.fresh.settings;
  }
}

export const store = new Store();

const chatPath = (id, rest = "") => `/app/chats/${encodeURIComponent(id)}${rest}`;

// --- the server as a whole

export async function loadState() {
  const state = await api.get("/app/state");
  store.set("state", state);
  store.set("models", state.models);
  store.set("connection", "open");
  return state;
}

// --- the list of chats

export async function loadChats(folder = null) {
  const query = folder === null ? "" : `?folder=${encodeURIComponent(folder)}`;
  const { chats, folders, more } = await api.get(`/app/chats${query}`);
  store.set("folders", folders);
  store.set("more", more || null);
  store.set("chats", chats);
}

export async function loadMoreChats() {
  if (!store.more) return;
  const { chats, more } = await api.get(`/app/chats?before=${encodeURIComponent(store.more)}`);
  store.set("more", more || null);
  store.set("chats", [...store.chats, ...chats]);
}

/** Title, folder, pinned, model or settings of a chat. */
export async function changeChat(id, fields) {
  const chat = await api.post(chatPath(id), fields);
  if (store.chat?.id === id) store.set("chat", chat);
  store.set("chats", store.chats.map((each) => (each.id === id ? chat : each)));
  return chat;
}

export async function deleteChat(id) {
  await api.post(chatPath(id, "/delete"));
  store.set("chats", store.chats.filter((each) => each.id !== id));
}

export async function restoreChat(id) {
  await api.post(chatPath(id, "/restore"));
  await loadChats();
}

export async function eraseChat(id) {
  await api.post(chatPath(id, "/erase"));
  store.set("chats", store.chats.filter((each) => each.id !== id));
}

// --- the open chat

/** Show a chat; null: a new one. */
export async function openChat(id) {
  if (id === null) {
    store.set("chat", null);
    showTree([], null, null);
    return;
  }
  const { chat, messages, run } = await newest(id);
  if (store.route.chat !== id || !chat) return; // somebody has gone on meanwhile
  store.set("chat", chat);
  showTree(messages, chat.leaf, run);
}

let asked = 0;
const answered = new Map(); // chat: the latest look that was answered

/** The tree of a chat; nothing where a later look at the same chat was answered before. */
async function newest(id) {
  const mine = ++asked;
  const found = await api.get(chatPath(id));
  if (mine < (answered.get(id) ?? 0)) return {};
  answered.set(id, mine);
  return found;
}

/** Fetch the open chat again: another tab, the terminal or a run's end has changed it. */
export async function refreshChat() {
  const id = store.chat?.id;
  if (!id) return;
  const { chat, messages, run } = await newest(id);
  if (store.chat?.id !== id || !chat) return;
  store.set("chat", chat);
  showTree(messages, chat.leaf, run);
}

/** The server renders a long chat in pieces: what it had no time for has `html` null and is asked for again. */
function askForRest(path, id) {
  if (!path.some((each) => each.html === null)) return;
  setTimeout(() => store.chat?.id === id && refreshChat().catch((error) => store.emit("failure", error)), 150);
}

const followed = new Set();

/** A reply that is still being written though no run was told: it has ended meanwhile, or another process writes it. A
 * run is named after its reply. */
function unfollowed(path) {
  const reply = path.findLast((each) => each.state === "running");
  if (reply && store.run?.reply === reply.id) return store.run;
  if (!reply || followed.has(reply.id)) return null;
  followed.add(reply.id);
  return { run: reply.id, chat: reply.chat, reply: reply.id };
}

function showTree(messages, leaf, run) {
  store.messages = messages;
  store.path = pathTo(messages, leaf);
  store.emit("messages", messages);
  store.emit("path", store.path);
  askForRest(store.path, store.chat?.id);
  store.emit("running", run ?? unfollowed(store.path)); // live.js follows it and sets `run`
}

/** The branch that ends with `leaf`, root first. */
export function pathTo(messages, leaf) {
  const byId = new Map(messages.map((each) => [each.id, each]));
  const path = [];
  for (let each = byId.get(leaf); each; each = byId.get(each.parent)) path.push(each);
  return path.reverse();
}

/** The newest message below `id`: where a person who goes to another sibling wants to be. */
export function newestBelow(messages, id) {
  let leaf = id;
  for (;;) {
    const children = messages.filter((each) => each.parent === leaf);
    if (!children.length) return leaf;
    leaf = children.at(-1).id;
  }
}

/** Go to another sibling of a message: its newest branch is shown, and kept as the chat's. */
export async function showSibling(id) {
  const leaf = newestBelow(store.messages, id);
  store.chat = await api.post(chatPath(store.chat.id), { leaf });
  store.path = pathTo(store.messages, leaf);
  store.emit("path", store.path);
}

export async function setModel(name) {
  if (store.chat) await changeChat(store.chat.id, { model: name });
  else store.set("fresh", { ...store.fresh, model: name });
  store.emit("model", name);
}

export async function setSettings(settings) {
  if (store.chat) await changeChat(store.chat.id, { settings });
  else store.set("fresh", { ...store.fresh, settings });
  store.emit("settings", settings);
}

// --- replies

/** Send a message below `parent` (default: the end of what is shown). A new chat is made by its first message. */
export async function send(text, { attachments = [], parent } = {}) {
  const chat = store.chat ?? (await createChat());
  const under = parent === undefined ? (store.path.at(-1)?.id ?? null) : parent;
  return begin(chat.id, { do: "send", parent: under, text, attachments });
}

async function createChat() {
  const { model, settings, folder } = store.fresh;
  const chat = await api.post("/app/chats", { model: model ?? store.state?.default_model, settings, folder });
  store.set("fresh", { model: null, settings: {}, folder: "" });
  store.set("chat", chat);
  store.set("chats", [chat, ...store.chats.filter((each) => each.id !== chat.id)]);
  store.set("route", { ...store.route, view: "chat", chat: chat.id });
  history.replaceState(null, "", `#/chat/${chat.id}`);
  return chat;
}

/** Another reply to the same question: a sibling. `user`: id of the question. */
export const again = (user) => begin(store.chat.id, { do: "again", message: user });

/** Go on where a reply stopped. */
export const goOn = (reply) => begin(store.chat.id, { do: "continue", message: reply });

/** A sibling of a reply that begins with its first `position` tokens and then has `token` (an id). */
export const branchAtToken = (reply, position, token) =>
  begin(store.chat.id, { do: "token", message: reply, position, token });

async function begin(chat, body) {
  const started = await api.post(chatPath(chat, "/runs"), body);
  if (store.chat?.id !== chat) return started;
  await refreshChat();
  // A short reply may be over before anybody could follow it.
  const reply = store.run ? null : store.messages.find((each) => each.id === started.reply);
  if (reply && reply.state !== "running") store.emit("ended", { state: reply.state, ...reply.meta });
  return started;
}

/** End the open chat's reply; its text stays. */
export async function stop() {
  if (store.run) await api.post(`/app/runs/${encodeURIComponent(store.run.run)}/stop`);
}

/** A new chat with the path to a message. */
export async function branchChat(message) {
  const chat = await api.post(`/app/messages/${encodeURIComponent(message)}/branch`);
  store.set("chats", [chat, ...store.chats]);
  return chat;
}
