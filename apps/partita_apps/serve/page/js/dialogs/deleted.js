/** Chats that were deleted: each can be restored, or erased for good, which is asked once more. */

import { h } from "../dom.js";
import { when } from "../format.js";
import { attempt, errorLine, hint, openModal, textButton } from "./modal.js";

export async function openDeleted(app) {
  const error = errorLine();
  const list = h("ul", { class: "deleted-chats", "aria-label": "Deleted chats" });
  const show = async () => {
    const { chats } = await app.api.get("/app/chats?deleted=1");
    const rows = chats.map((chat) => row(app, chat, error, show));
    list.replaceChildren(...(rows.length ? rows : [h("li", { class: "empty" }, "Nothing was deleted in the last 30 days.")]));
  };
  await show();
  openModal(
    app,
    { name: "deleted", title: "Recently deleted" },
    hint("Chats stay here for 30 days, then they are gone."),
    error.element,
    list,
  );
}

function row(app, chat, error, show) {
  const title = chat.title || "Untitled";
  const restore = textButton("Restore", { "aria-label": `Restore ${title}` });
  const erase = textButton("Erase", { kind: "quiet", "aria-label": `Erase ${title}` });
  const done = async (said) => {
    await show();
    document.querySelector("dialog.dialog-deleted")?.querySelector("li button, .icon-button")?.focus(); // its row is gone
    app.say(said);
  };
  restore.addEventListener("click", () =>
    attempt(restore, error, async () => {
      await app.actions.restoreChat(chat.id);
      await done(`${title} is back.`);
    }),
  );
  erase.addEventListener("click", () => {
    if (!erase.classList.contains("danger")) {
      erase.textContent = "Erase for good?";
      erase.setAttribute("aria-label", `Erase ${title} for good`);
      erase.classList.replace("quiet", "danger");
      return;
    }
    attempt(erase, error, async () => {
      await app.actions.eraseChat(chat.id);
      await done(`${title} is gone.`);
    });
  });
  return h(
    "li",
    {},
    h("span", { class: "deleted-title" }, title, h("small", { class: "hint" }, `deleted ${when(chat.deleted)}`)),
    restore,
    erase,
  );
}
