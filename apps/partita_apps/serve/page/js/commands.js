/**
 * Everything that a key does, as one table: `keyboard` answers it, the list of shortcuts shows it.
 *
 * Holds always: a command is a letter, by itself outside of text fields and with Alt and Shift anywhere. Browsers have
 * none of these chords: they use Alt+Shift with A, B, I and T only.
 */

import { deleteChat } from "./chatactions.js";
import { newChat } from "./sidebar.js";

const PLAIN = "partita.plain-keys";
export const GROUPS = ["Chats", "This chat", "The page"];

/** Whether letters by themselves are shortcuts; a person who dictates wants them not to be. */
export function plainKeys() {
  return localStorage.getItem(PLAIN) !== "off";
}

export function setPlainKeys(on) {
  if (on) localStorage.removeItem(PLAIN);
  else localStorage.setItem(PLAIN, "off");
}

/** key: of KeyboardEvent, lower case. run(app): returns false where there is nothing to do. */
export const COMMANDS = [
  { key: "n", group: "Chats", text: "New chat", run: newChat },
  { key: "f", also: "/", group: "Chats", text: "Search all chats", run: search },
  { key: "j", group: "Chats", text: "Next chat of the list", run: (app) => neighbour(app, 1) },
  { key: "k", group: "Chats", text: "Previous chat of the list", run: (app) => neighbour(app, -1) },
  { key: "d", group: "Chats", text: "Delete this chat (it can be undone)", run: (app) => ofChat(app, () => deleteChat(app.store.chat, app)) },
  { key: "c", group: "This chat", text: "To the message field", run: (app) => app.focusComposer() },
  { key: "x", shown: [["Esc"], ["X"]], group: "This chat", text: "Stop the reply", run: stop },
  { key: "e", group: "This chat", text: "Edit the last message", run: editLast },
  { key: "r", group: "This chat", text: "Another reply to it", run: again },
  { key: "g", group: "This chat", text: "Go on with the last reply", run: goOn },
  { key: "y", group: "This chat", text: "Copy the last reply", run: copyLast },
  { key: "p", group: "This chat", text: "Inspector of the last reply", run: inspector },
  { key: "o", group: "This chat", text: "Settings of the chat", run: (app) => app.dialog("settings") },
  { key: "m", group: "This chat", text: "Models", run: (app) => app.dialog("models") },
  { key: "s", group: "The page", text: "Show or hide the list of chats", run: toggleSidebar },
  { key: "?", group: "The page", text: "This list", run: (app) => app.dialog("shortcuts") },
];

/** The ways to type a command, each a list of keys that are held together. */
export function shownKeys({ key, also, shown }) {
  return shown ?? [key, also].filter(Boolean).map((each) => [each.toUpperCase()]);
}

function search(app) {
  app.sidebar(true);
  const field = document.getElementById("search");
  field.focus();
  field.select();
}

/** The chat above or below the open one, as the list shows them. */
function neighbour(app, step) {
  const links = [...document.querySelectorAll("#sidebar .chat-row a")];
  const at = links.findIndex((each) => each.hasAttribute("aria-current"));
  const to = at < 0 ? links.at(step > 0 ? 0 : -1) : links[at + step];
  if (!to) return false;
  app.go(to.getAttribute("href"));
  to.scrollIntoView({ block: "nearest" });
}

function ofChat(app, action) {
  if (!app.store.chat) return false;
  action().catch(app.fail);
}

function stop(app) {
  if (!app.store.run) return false;
  app.actions.stop().catch(app.fail);
}

const last = (app, role) => app.store.path.findLast((each) => each.role === role);

function editLast(app) {
  const message = last(app, "user");
  if (!message || app.store.run) return false;
  return press(app, message, "edit");
}

function again(app) {
  const message = last(app, "user");
  if (!message || app.store.run) return false;
  app.actions.again(message.id).catch(app.fail);
}

function goOn(app) {
  const message = last(app, "assistant");
  if (!message || app.store.run) return false;
  app.actions.goOn(message.id).catch(app.fail);
}

function copyLast(app) {
  const message = last(app, "assistant");
  if (!message) return false;
  const copied = navigator.clipboard.writeText(message.content);
  copied.then(() => app.toast("Copied the last reply."), app.fail);
}

function inspector(app) {
  const open = document.getElementById("app").dataset.inspector === "open";
  const message = last(app, "assistant");
  if (open || !message) return void app.inspector(!open);
  app.go(`#/chat/${app.store.chat.id}/inspect/${message.id}`);
}

function toggleSidebar(app) {
  app.sidebar(document.getElementById("app").dataset.sidebar !== "open");
}

/** Press the button of a message that has a `data-action`; whether there is one. */
function press(app, message, action) {
  const button = app.shownMessage(message.id)?.querySelector(`[data-action="${action}"]`);
  button?.click();
  return Boolean(button);
}
