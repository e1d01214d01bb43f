/** Where a chat is put: one of the folders, a new one, or none. */

import { h } from "../dom.js";
import { attempt, errorLine, hint, openModal, textButton } from "./modal.js";

export function openFolder(app, chat) {
  const error = errorLine();
  const input = h("input", { class: "input", type: "text", id: "folder-name", list: "folder-names", maxlength: 80, autocomplete: "off" });
  input.value = chat.folder;
  const move = textButton("Move", { kind: "primary", type: "submit", form: "folder-form" });
  const out = textButton("No folder", { kind: "quiet", disabled: !chat.folder });
  const form = h(
    "form",
    { id: "folder-form", class: "field" },
    h("label", { for: "folder-name" }, "Folder"),
    input,
    h("datalist", { id: "folder-names" }, app.store.folders.map((name) => h("option", { value: name }))),
    hint("A new name makes a folder; a folder without chats goes by itself."),
  );
  const title = `Move “${chat.title || "Untitled"}”`;
  const dialog = openModal(app, { name: "folder", title, foot: [error.element, out, move] }, form);
  input.focus();
  input.select();
  const put = async (button, folder) => {
    const action = () => app.actions.changeChat(chat.id, { folder }).then(() => app.actions.loadChats());
    if (!(await attempt(button, error, action))) return;
    dialog.close();
    app.say(folder ? `Moved to ${folder}.` : "Moved out of its folder.");
  };
  out.addEventListener("click", () => put(out, ""));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    put(move, input.value.trim());
  });
}
