/** Chats out and in: this one or all, as JSON (the whole tree, which can be imported again) or Markdown. */

import { h } from "../dom.js";
import { plural } from "../format.js";
import { attempt, errorLine, hint, openModal, textButton } from "./modal.js";

export function openTransfer(app) {
  const error = errorLine();
  const outcome = h("p", { class: "outcome", role: "status" });
  const file = h("input", { type: "file", id: "import-file", accept: ".json,application/json" });
  const button = textButton("Import", { kind: "primary", type: "submit" });
  const form = h("form", { class: "import" }, h("label", { for: "import-file" }, "A JSON file that partita exported"), file, button);
  const dialog = openModal(
    app,
    { name: "transfer", title: "Export and import" },
    h("section", { "aria-labelledby": "export-title" }, h("h3", { id: "export-title" }, "Export"), exports(app, error)),
    h(
      "section",
      { "aria-labelledby": "import-title" },
      h("h3", { id: "import-title" }, "Import"),
      hint("Chats of the file are added to yours; nothing is replaced."),
      form,
    ),
    error.element,
    outcome,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    outcome.replaceChildren();
    await attempt(button, error, async () => {
      const { chats } = await app.api.post("/app/import", { document: await readDocument(file.files[0]) });
      form.reset();
      await app.actions.loadChats();
      outcome.append(...imported(chats, dialog));
    });
  });
}

function exports(app, error) {
  const chat = app.store.chat;
  const one = chat ? [["This chat", chat.id, fileName(chat.title)]] : [];
  return [...one, ["All chats", null, "partita-chats"]].map(([label, id, name]) =>
    h(
      "div",
      { class: "export-row" },
      h("span", {}, label),
      [["JSON", "json", "json"], ["Markdown", "markdown", "md"]].map(([shown, format, ending]) => {
        const button = textButton(shown, { "aria-label": `${label} as ${shown}` });
        const action = () => exportFile(app, id, format, `${name}.${ending}`);
        button.addEventListener("click", () => attempt(button, error, action));
        return button;
      }),
    ),
  );
}

/** Ask for an export and have the browser keep it as a file. chat: its id, null for all. */
export async function exportFile(app, chat, format, name) {
  const query = chat === null ? `format=${format}` : `chat=${encodeURIComponent(chat)}&format=${format}`;
  const url = URL.createObjectURL(new Blob([await app.api.text(`/app/export?${query}`)], { type: "application/octet-stream" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser may not have begun to read it
  app.say(`Exported as ${name}.`);
}

/** A title as a name of a file. */
export function fileName(title) {
  const safe = title.normalize("NFKC").replace(/[^\p{L}\p{N} _-]+/gu, "").trim().replace(/\s+/g, "-");
  return safe.slice(0, 60) || "chat";
}

async function readDocument(file) {
  if (!file) throw new Error("Choose a file first.");
  try {
    return JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON: choose a file that was exported as JSON.`);
  }
}

function imported(chats, dialog) {
  if (!chats.length) return ["The file has no chats."];
  const link = h("a", { href: `#/chat/${chats[0].id}`, onClick: () => dialog.close() }, chats[0].title || "Untitled");
  return [`${plural(chats.length, "chat")} imported: `, link, chats.length > 1 ? " and others." : "."];
}
