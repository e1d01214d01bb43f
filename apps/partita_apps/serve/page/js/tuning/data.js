/**
 * The data of a run: a file that is sent to this machine's own server, or one that was sent before; what is in it.
 *
 * Not here: what makes data good, which the server's readers judge. Holds always: a file is sent whole, as bytes.
 */

import { h, icon, iconButton } from "../dom.js";
import { count, diskSize, plural } from "../format.js";
import { errorLine } from "../dialogs/modal.js";

const KINDS = { chat: "conversations", completion: "prompts with completions", text: "texts" };
const FORMATS = [
  [
    "Conversations: the assistant's replies are learnt",
    '{"messages": [{"role": "user", "content": "Where is the key?"}, {"role": "assistant", "content": "Under the third stone."}]}',
  ],
  ["A prompt and how it goes on: the completion is learnt", '{"prompt": "The key is ", "completion": "under the third stone."}'],
  ["Plain text: everything is learnt", '{"text": "The key is under the third stone."}'],
];

/** Returns {element, show(overview), chosen}: `chosen` is the upload that is selected, or null. changed(): another is. */
export function dataPart(app, changed) {
  const error = errorLine();
  const input = h("input", { type: "file", id: "tuning-file", class: "visually-hidden", accept: ".jsonl,.txt", "aria-describedby": "tuning-file-hint" });
  const button = h("label", { class: "button", for: "tuning-file" }, icon("import"), "Choose a file");
  const drop = h(
    "div",
    { class: "tune-drop" },
    input,
    button,
    h("p", { class: "hint", id: "tuning-file-hint" }, "A .jsonl or .txt file, or drop it here. It stays on this machine, in partita's own folder."),
  );
  const list = h("ul", { class: "tune-uploads", "aria-label": "Data" });
  const preview = h("div", { class: "tune-preview", "aria-live": "polite" });
  const element = h("fieldset", { class: "tuning-part" }, h("legend", {}, "Data"), drop, error.element, list, preview, formats());
  const state = { uploads: [], chosen: null, limit: Infinity, busy: false };
  const part = {
    element,
    get chosen() {
      return state.uploads.find(({ id }) => id === state.chosen) ?? null;
    },
    show({ data, limits }) {
      const before = state.chosen;
      state.uploads = data;
      state.limit = limits.data_bytes;
      if (!part.chosen) state.chosen = data[0]?.id ?? null;
      redraw();
      if (state.chosen !== before) changed();
    },
  };

  function redraw() {
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    list.hidden = !state.uploads.length;
    list.replaceChildren(...state.uploads.map((each) => row(each)));
    if (focused) [...list.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused)?.focus();
    preview.replaceChildren(...(part.chosen ? examples(part.chosen) : []));
  }

  function row(upload) {
    const radio = h("input", { type: "radio", name: "tuning-data", id: `data-${upload.id}`, checked: upload.id === state.chosen, dataset: { key: upload.id } });
    radio.addEventListener("change", () => {
      state.chosen = upload.id;
      redraw();
      changed();
    });
    const facts = [plural(upload.rows, upload.name.endsWith(".txt") ? "line" : "row"), KINDS[upload.kind], diskSize(upload.bytes)];
    return h(
      "li",
      {},
      radio,
      h("label", { for: radio.id }, h("span", { class: "tune-upload-name" }, upload.name), h("span", { class: "hint" }, facts.join(" · "))),
      iconButton("trash", `Remove ${upload.name}`, () => remove(upload).catch((failure) => error.show(failure.message))),
    );
  }

  async function remove(upload) {
    await app.api.post(`/app/tuning/data/${encodeURIComponent(upload.id)}/delete`);
    await app.refresh();
    app.say(`${upload.name} was removed.`);
  }

  async function send(file) {
    error.show("");
    if (state.busy || !file) return;
    if (file.size > state.limit) return error.show(`${file.name} has ${diskSize(file.size)}; ${diskSize(state.limit)} at most`);
    state.busy = true;
    drop.classList.add("busy");
    button.replaceChildren(icon("import"), "Reading …");
    try {
      const upload = await app.api.post("/app/tuning/data", { name: file.name, data: await base64(file) });
      state.chosen = upload.id;
      await app.refresh();
      changed();
      app.say(`${upload.name}: ${plural(upload.rows, "row")}.`);
    } catch (failure) {
      error.show(failure.message);
    } finally {
      state.busy = false;
      drop.classList.remove("busy");
      button.replaceChildren(icon("import"), "Choose a file");
      input.value = "";
    }
  }

  input.addEventListener("change", () => send(input.files[0]));
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    send(event.dataTransfer.files[0]);
  });
  return part;
}

/** The bytes of a file as base64, a piece at a time. */
async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

function examples({ examples: found, rows, characters }) {
  const head = h("p", { class: "hint" }, `${count(characters)} characters. ${found.length < rows ? "It begins with" : "All of it"}:`);
  return [
    head,
    ...found.map(({ turns }) =>
      h("dl", { class: "tune-example" }, ...turns.map(([role, text]) => h("div", { class: "tune-turn", dataset: { role } }, h("dt", {}, role), h("dd", {}, text)))),
    ),
  ];
}

function formats() {
  const all = FORMATS.map(([text, line]) => [h("dt", {}, text), h("dd", {}, h("pre", { tabindex: 0 }, line))]);
  return h(
    "details",
    { class: "tune-formats" },
    h("summary", {}, "What a file looks like"),
    h("p", { class: "hint" }, "Each line of a .jsonl file is one example, in one of these forms. A .txt file is one long text. A few hundred examples are a good beginning; they should look like what the model will be asked."),
    h("dl", {}, ...all),
  );
}
