/**
 * The attach button beside the composer and the files that the next message brings along (store.attachments).
 *
 * Files come by the button, by drag and drop and by paste; the server reads their text, and refuses what has none.
 * Holds always: what is in store.attachments can be sent as it is; store.attaching counts the files still being read.
 */

import { h, icon, iconButton } from "./dom.js";
import { count, diskSize } from "./format.js";

export function mountAttachments(root, app) {
  const { store } = app;
  const input = h("input", { type: "file", multiple: true, hidden: true, "aria-label": "Files to attach" });
  const button = iconButton("attach", "Attach text files or PDFs", () => input.click());
  const chips = h("ul", { class: "chips", "aria-label": "Attached files", hidden: true });
  const refusals = h("div", { class: "refusals", role: "alert" });
  const attached = h("div", { class: "attached" }, refusals, chips);
  const files = []; // {name, size, part: what is sent, or null while it is read}
  root.append(attached, button, input);

  const show = () => {
    chips.replaceChildren(...files.map((file) => chip(file, () => remove(file))));
    chips.hidden = !files.length;
  };
  const tell = () => {
    store.set("attaching", files.filter((file) => !file.part).length);
    store.set("attachments", files.filter((file) => file.part).map((file) => file.part));
  };
  const remove = (file) => {
    files.splice(files.indexOf(file), 1);
    tell();
    button.focus();
  };
  const add = async (given) => {
    refusals.replaceChildren();
    await Promise.all([...given].map((each) => read(each)));
    app.focusComposer();
  };
  const read = async (given) => {
    const file = { name: given.name, size: given.size, part: null };
    files.push(file);
    tell();
    try {
      refuse(files.length, given.size, store.state.limits);
      const part = await app.api.post("/app/attachments", { name: given.name, data: await base64(given), model: store.model });
      const most = store.state.limits.attachment_characters;
      if (part.characters > most) throw new Error(`it has ${count(part.characters)} characters; at most ${count(most)} can be sent`);
      file.part = part;
    } catch (error) {
      if (files.includes(file)) files.splice(files.indexOf(file), 1);
      refusals.append(refusal(given.name, error.message));
    }
    tell();
  };

  store.on("attachments", (kept) => {
    const gone = files.filter((file) => file.part && !kept.includes(file.part)); // they were sent
    for (const file of gone) files.splice(files.indexOf(file), 1);
    const back = kept.filter((part) => !files.some((file) => file.part === part)); // that was refused
    files.push(...back.map((part) => ({ name: part.name, size: null, part })));
    if (gone.length) refusals.replaceChildren();
    show();
  });
  input.addEventListener("change", () => {
    add(input.files);
    input.value = "";
  });
  takeDropped(document.getElementById("main"), app, add);
  takePasted(app, add);
}

/** Raises Error for one file too many, and for one that is too large to be read. */
function refuse(number, size, limits) {
  if (number > limits.attachments) throw new Error(`at most ${limits.attachments} files go with a message`);
  if (size > limits.attachment_bytes) throw new Error(`it has ${diskSize(size)}; at most ${diskSize(limits.attachment_bytes)} are read`);
}

function chip(file, remove) {
  const { part, name, size } = file;
  const facts = part ? [size !== null && diskSize(size), tokens(part)].filter(Boolean) : ["is being read …"];
  const close = iconButton("close", `Remove ${name}`, remove);
  return h(
    "li",
    { class: part ? "chip" : "chip reading" },
    icon("file"),
    h("span", { class: "chip-name", title: name }, name),
    h("span", { class: "hint" }, facts.join(" · ")),
    part?.note && h("span", { class: "chip-note", title: part.note }, part.note),
    close,
  );
}

function tokens(part) {
  return part.tokens === undefined || part.tokens === null ? `${count(part.characters)} characters` : `${count(part.tokens)} tokens`;
}

function refusal(name, message) {
  const line = h("p", { class: "error" }, h("span", {}, message.includes(name) ? message : `${name}: ${message}`));
  line.append(iconButton("close", `Dismiss what is said of ${name}`, () => line.remove()));
  return line;
}

/** Files that are dropped anywhere on the chat; what else is dragged there is left to the browser. */
function takeDropped(area, app, add) {
  const brings = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files") && app.store.route.view === "chat";
  let inside = 0; // elements entered and not left
  const mark = (change) => {
    inside = change === 0 ? 0 : Math.max(0, inside + change);
    area.classList.toggle("dropping", inside > 0);
  };
  area.addEventListener("dragenter", (event) => brings(event) && mark(1));
  area.addEventListener("dragleave", (event) => brings(event) && mark(-1));
  document.addEventListener("dragover", (event) => brings(event) && event.preventDefault()); // else the file takes the page's place
  document.addEventListener("drop", (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    mark(0);
    if (area.contains(event.target)) add(event.dataTransfer.files);
  });
}

/** Files that are pasted; pasted text stays text. */
function takePasted(app, add) {
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (!files?.length || app.store.route.view !== "chat" || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    add(files);
  });
}

/** A file's bytes as the API takes them. */
function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("the browser cannot read it"));
    reader.readAsDataURL(file);
  });
}
