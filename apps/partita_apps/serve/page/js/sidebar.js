/**
 * The list of chats: pinned, in folders, of today, earlier; search above it, the dialogs below.
 *
 * Not here: what is done to a chat (`chatactions`), what search finds (`search`). Holds always: when the list is drawn
 * again, the focus stays on the chat that had it; a name that is being typed and a menu that is open keep it as it is.
 */

import { chatMenu, rename } from "./chatactions.js";
import { h, icon, iconButton } from "./dom.js";
import { isToday, when } from "./format.js";
import { mountSearch } from "./search.js";

const FOLDED = "partita.folded"; // names of folders, in this browser
const PLACES = [
  ["dialog", "models", "model", "Models"],
  ["address", "#/tuning", "tuning", "Fine-tuning"],
];
const MORE = [
  ["dialog", "transfer", "export", "Export and import"],
  ["dialog", "connect", "tool", "Connect a tool"],
  ["dialog", "deleted", "trash", "Recently deleted"],
  ["dialog", "shortcuts", "keyboard", "Keyboard"],
  ["dialog", "about", "theme", "About and colours"],
];

export function mountSidebar(root, app) {
  const fresh = h("button", { type: "button", class: "button new-chat" }, icon("plus"), "New chat");
  fresh.addEventListener("click", () => newChat(app));
  const list = h("div", { class: "chat-list" });
  const found = h("div", { class: "search-results", hidden: true });
  const search = mountSearch(app, found, (searching) => (list.hidden = searching));
  root.append(
    h("div", { class: "sidebar-head" }, fresh, search),
    found,
    list,
    h("div", { class: "sidebar-places" }, PLACES.map((entry) => footButton(app, entry, true))),
    h("div", { class: "sidebar-foot", role: "group", "aria-label": "More" }, MORE.map((entry) => footButton(app, entry, false))),
  );
  const runs = followRuns(app.store);
  const show = () => redraw(list, app, runs);
  for (const name of ["chats", "chat", "folders", "runs"]) app.store.on(name, show);
  list.addEventListener("keydown", (event) => between(event, list));
}

/** A new chat, ready to be written. */
export function newChat(app) {
  app.go("#/");
  app.focusComposer();
}

function footButton(app, [kind, target, name, label], written) {
  const onClick = () => (kind === "dialog" ? app.dialog(target) : app.go(target));
  if (!written) return iconButton(name, label, onClick);
  return h("button", { type: "button", class: "button quiet", onClick }, icon(name), label);
}

/** The chats that have a reply under way, by run; `runs` is said on the store when that changes. */
function followRuns(store) {
  const runs = new Map();
  store.on("state", (state) => {
    runs.clear();
    for (const { run, chat } of state.runs) runs.set(run, chat);
    store.emit("runs");
  });
  store.on("run-state", ({ run, chat, state }) => {
    if (state === "running") runs.set(run, chat);
    else runs.delete(run);
    store.emit("runs");
  });
  return runs;
}

/** The groups that have chats, in their order: [name, kind, chats]. */
export function grouped(chats, folders, now = new Date()) {
  const loose = chats.filter((chat) => !chat.pinned && !chat.folder);
  return [
    ["Pinned", "pinned", chats.filter((chat) => chat.pinned)],
    ...folders.map((name) => [name, "folder", chats.filter((chat) => !chat.pinned && chat.folder === name)]),
    ["Today", "today", loose.filter((chat) => isToday(chat.updated, now))],
    ["Earlier", "earlier", loose.filter((chat) => !isToday(chat.updated, now))],
  ].filter(([, , each]) => each.length);
}

function redraw(list, app, runs) {
  if (list.querySelector("input, [aria-expanded='true']")) return; // drawn again when the name is typed, the menu closed
  const { chats, folders, more } = app.store;
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const running = new Set(runs.values());
  const groups = grouped(chats, folders).map(([name, kind, each]) => group(name, kind, each.map((chat) => row(chat, app, running))));
  list.replaceChildren(...(groups.length ? groups : [nothing()]), ...(more ? [older(app)] : []));
  if (focused) [...list.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused)?.focus();
}

function nothing() {
  return h("p", { class: "empty" }, "Your chats will be here. The first message begins one.");
}

function older(app) {
  const onClick = () => app.actions.loadMoreChats().catch(app.fail);
  return h("button", { type: "button", class: "button quiet older", "data-key": "older", onClick }, "Older chats");
}

function group(name, kind, rows) {
  const chats = h("ul", {}, rows);
  if (kind !== "folder") return h("section", { "aria-label": name }, h("h2", {}, name), chats);
  const summary = h("summary", { "data-key": `folder ${name}` }, icon("chevron"), icon("folder"), h("span", {}, name));
  const details = h("details", { open: !folded().includes(name) }, summary, chats);
  details.addEventListener("toggle", () => {
    const others = folded().filter((each) => each !== name);
    localStorage.setItem(FOLDED, JSON.stringify(details.open ? others : [...others, name]));
  });
  return h("section", { "aria-label": `Folder ${name}` }, details);
}

function folded() {
  try {
    const names = JSON.parse(localStorage.getItem(FOLDED));
    return Array.isArray(names) ? names : [];
  } catch {
    return [];
  }
}

function row(chat, app, running) {
  const title = chat.title || "Untitled";
  const current = app.store.chat?.id === chat.id;
  const mark = running.has(chat.id) && h("span", { class: "running", role: "img", "aria-label": "a reply is being written" });
  const link = h(
    "a",
    { href: `#/chat/${chat.id}`, title, "data-key": chat.id, "aria-current": current ? "page" : null },
    h("span", { class: "chat-title" }, title),
    mark,
    h("time", {}, when(chat.updated)),
  );
  const more = iconButton("more", `Actions for ${title}`, () => chatMenu(more, item, chat, app), {
    "data-key": `menu ${chat.id}`,
    "aria-haspopup": "menu",
    "aria-expanded": false,
  });
  const item = h("li", { class: current ? "chat-row current" : "chat-row" }, link, more);
  item.addEventListener("dblclick", () => rename(item, chat, app));
  link.addEventListener("keydown", (event) => {
    if (event.key !== "F2") return;
    event.preventDefault();
    rename(item, chat, app);
  });
  return item;
}

/** Arrows go from chat to chat. */
function between(event, list) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.target.tagName === "INPUT") return;
  const stops = [...list.querySelectorAll("li > a, summary, .older")].filter((each) => each.checkVisibility());
  const at = stops.indexOf(event.target.closest("li")?.querySelector("a") ?? event.target);
  if (at < 0) return;
  event.preventDefault();
  stops[Math.max(0, Math.min(stops.length - 1, at + step))].focus();
}
