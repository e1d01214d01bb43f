/** What is done to a chat of the list: rename in place, pin, move, export, delete with a way back. */

import { exportFile, fileName } from "./dialogs/transfer.js";
import { h } from "./dom.js";
import { openMenu } from "./menu.js";

/** The menu behind a chat's button. item: its row, which the list keeps as long as the menu is open. */
export function chatMenu(button, item, chat, app) {
  const exported = (format, ending) => () => exportFile(app, chat.id, format, `${fileName(chat.title)}.${ending}`).catch(app.fail);
  openMenu(button, `Actions for ${chat.title || "Untitled"}`, [
    { text: "Rename", icon: "edit", action: () => rename(item, chat, app) },
    { text: chat.pinned ? "Unpin" : "Pin", icon: "pin", action: () => pin(chat, app).catch(app.fail) },
    { text: "Move to folder …", icon: "folder", action: () => app.dialog("folder", chat) },
    { text: "Export as JSON", icon: "export", action: exported("json", "json") },
    { text: "Export as Markdown", icon: "export", action: exported("markdown", "md") },
    { text: "Delete", icon: "trash", danger: true, action: () => deleteChat(chat, app).catch(app.fail) },
  ], () => app.store.emit("chats", app.store.chats)); // what came meanwhile
}

/** A field in place of the row: Enter or leaving it keeps the name, Escape does not. */
export function rename(item, chat, app) {
  const input = h("input", { type: "text", class: "input rename", "aria-label": "Name of the chat", maxlength: 200 });
  const before = [...item.childNodes];
  input.value = chat.title;
  item.replaceChildren(input);
  input.focus();
  input.select();
  let done = false;
  const finish = async (keep) => {
    if (done) return;
    done = true;
    const title = input.value.trim();
    const focused = document.activeElement === input;
    item.replaceChildren(...before);
    if (focused) item.querySelector("a").focus();
    if (keep && title && title !== chat.title) await app.actions.changeChat(chat.id, { title });
    else app.store.emit("chats", app.store.chats); // what came meanwhile
  };
  input.addEventListener("blur", () => finish(true).catch(app.fail));
  input.addEventListener("keydown", (event) => {
    if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
    event.preventDefault();
    finish(event.key === "Enter").catch(app.fail);
  });
}

async function pin(chat, app) {
  await app.actions.changeChat(chat.id, { pinned: !chat.pinned });
  await app.actions.loadChats();
  app.say(chat.pinned ? "Unpinned." : "Pinned.");
}

/** Delete a chat and offer to undo that. */
export async function deleteChat(chat, app) {
  const shown = app.store.chat?.id === chat.id;
  await app.actions.deleteChat(chat.id);
  if (shown) app.go("#/");
  app.toast(`Deleted “${chat.title || "Untitled"}”.`, { action: "Undo", seconds: 10, onAction: () => undo().catch(app.fail) });

  async function undo() {
    await app.actions.restoreChat(chat.id);
    if (shown) app.go(`#/chat/${chat.id}`);
    app.say(`${chat.title || "Untitled"} is back.`);
  }
}
