/**
 * The field that messages are written in, with Send and Stop.
 *
 * Not here: attachments (attachments.js mounts beside the field). Holds always: what was written is not lost, neither by a
 * reload (a draft a chat, on this machine) nor by a message that the server refused; what is sent before the server has
 * said what there is waits for that, and goes to the chat that the address names; Escape stops a reply and keeps it.
 */

import { h, iconButton } from "./dom.js";
import { sends } from "./edit.js";

const DRAFT = "partita.draft.";

/** Returns {attach}: the element for the attach button and what is attached. */
export function mountComposer(root, app) {
  const { store, actions } = app;
  const field = h("textarea", { class: "composer-field", id: "composer", rows: "1", "aria-label": "Message", placeholder: "Write a message", enterkeyhint: "send", autocomplete: "off" });
  const attach = h("div", { class: "composer-attach" });
  const send = iconButton("send", "Send", () => submit(), { class: "primary send" });
  const stop = iconButton("stop", "Stop", () => end(), { class: "primary stop", hidden: true, "aria-keyshortcuts": "Escape" });
  const hint = h("p", { class: "composer-hint hint" });
  const form = h("form", { class: "composer", onSubmit: (event) => (event.preventDefault(), submit()) }, attach, field, h("div", { class: "composer-buttons" }, send, stop));
  root.append(form, hint);

  let chat = store.route.chat; // that the field is for: the one of the address
  let waiting = false; // for the chat to be open, to be sent then
  const open = () => store.state !== null && (store.chat?.id ?? null) === chat;
  const key = () => DRAFT + (chat ?? "new");
  const grow = () => {
    if (CSS.supports("field-sizing", "content")) return;
    field.style.setProperty("height", "auto");
    field.style.setProperty("height", `${field.scrollHeight}px`);
  };
  const changed = () => {
    waiting = false;
    grow();
    refresh();
    keepDraft(key(), field.value);
  };
  const put = (text) => {
    field.value = text;
    changed();
  };
  const refresh = () => {
    const run = store.run !== null;
    const files = store.attachments.length > 0;
    stop.hidden = !run;
    send.hidden = run;
    send.disabled = (!field.value.trim() && !files) || store.attaching > 0 || !store.models.length;
    hint.textContent = hintOf(run, waiting);
  };

  const submit = async () => {
    const text = field.value;
    const attachments = store.attachments;
    if (!open() && text.trim()) {
      waiting = true;
      return refresh();
    }
    if (send.disabled) return;
    if (store.run) return app.say("A reply is being written. Stop it first.");
    put("");
    store.set("attachments", []);
    send.disabled = true;
    try {
      app.toEnd();
      await actions.send(text, { attachments });
    } catch (error) {
      if (!field.value) put(text);
      if (!store.attachments.length) store.set("attachments", attachments);
      app.fail(error);
    }
    refresh();
    app.focusComposer({ quietly: true });
  };
  const end = async () => {
    stop.disabled = true;
    try {
      await actions.stop();
    } catch (error) {
      app.fail(error);
    } finally {
      stop.disabled = false;
    }
  };

  field.addEventListener("input", changed);
  field.addEventListener("keydown", (event) => {
    if (!sends(event)) return;
    event.preventDefault();
    submit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing || !store.run) return;
    if (document.querySelector("dialog[open], :popover-open")) return;
    event.preventDefault();
    end();
  });
  form.addEventListener("pointerdown", (event) => {
    if (event.target === form) (event.preventDefault(), field.focus());
  });

  /** quietly: only where no other field, dialog or side has the focus, and no keyboard would pop up. */
  app.focusComposer = ({ quietly = false } = {}) => {
    if (quietly && (matchMedia("(pointer: coarse)").matches || busyElsewhere(root))) return;
    field.focus({ preventScroll: true });
  };
  /** Put a text into the field, for a person to go on with. */
  app.compose = (text) => {
    put(text);
    field.focus();
    field.setSelectionRange(text.length, text.length);
  };

  /** Send what waited for its chat. */
  const opened = () => {
    if (waiting && open()) {
      waiting = false;
      queueMicrotask(submit); // behind what else a chat that opens sets: its run
    }
    refresh();
  };

  store.on("route", (route) => {
    if (route.view !== "chat" || route.chat === chat) return;
    chat = route.chat;
    waiting = false;
    field.value = localStorage.getItem(key()) ?? "";
    grow();
    refresh();
    app.focusComposer({ quietly: true });
  });
  let ran = false;
  store.on("run", (run) => {
    refresh();
    if (ran && !run) app.focusComposer({ quietly: true });
    ran = run !== null;
  });
  store.on("attachments", refresh);
  store.on("path", opened);
  store.on("models", opened);
  field.value = localStorage.getItem(key()) ?? "";
  refresh();
  app.focusComposer({ quietly: true }); // who opens the page may type at once
  return { attach };
}

function hintOf(run, waiting) {
  if (waiting) return "This is sent as soon as the server answers.";
  if (run) return "Esc stops the reply and keeps what is there.";
  return "Enter sends, Shift+Enter begins a line. Replies are made by a model and can be wrong.";
}

function keepDraft(key, text) {
  if (text.trim()) localStorage.setItem(key, text);
  else localStorage.removeItem(key);
}

/** Whether a person is doing something outside of the chat. */
function busyElsewhere(root) {
  const active = document.activeElement;
  if (document.querySelector("dialog[open], :popover-open")) return true;
  if (!active || active === document.body || root.contains(active)) return false;
  return active.matches("input, textarea, select, [contenteditable]") || active.closest("#sidebar, #inspector, #dialogs") !== null;
}
