/**
 * What all dialogs share: a native modal <dialog> with a title and a close button, a sheet on a phone.
 *
 * The browser keeps the focus inside and gives it back; here is what happens where the opener is gone by then.
 */

import { h, iconButton } from "../dom.js";

let number = 0;

/**
 * Show a dialog and return it. name: for its style. foot: buttons below what scrolls. closed(): called when it has gone.
 * The title gets the focus, so that it is read first and no keyboard pops up on a phone.
 */
export function openModal(app, { name, title, wide = false, foot = [], closed }, ...content) {
  const id = `dialog-${(number += 1)}`;
  const dialog = h(
    "dialog",
    { class: `dialog dialog-${name}${wide ? " wide" : ""}`, "aria-labelledby": id },
    h("header", { class: "dialog-head" }, h("h2", { id, tabindex: -1, autofocus: true }, title), iconButton("close", "Close", () => dialog.close())),
    h("div", { class: "dialog-body" }, content),
    foot.length > 0 && h("footer", { class: "dialog-foot" }, foot),
  );
  closeOutside(dialog);
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (document.activeElement === document.body) app.focusComposer();
    closed?.();
  });
  document.getElementById("dialogs").append(dialog);
  dialog.showModal();
  return dialog;
}

/** A press that begins and ends beside the dialog closes it; one that selects text and slips out does not. */
function closeOutside(dialog) {
  let began = null;
  dialog.addEventListener("pointerdown", (event) => (began = event.target));
  dialog.addEventListener("click", (event) => event.target === dialog && began === dialog && dialog.close());
}

/** A line for what went wrong, read aloud when it changes; `show("")` hides it. */
export function errorLine() {
  const element = h("p", { class: "error", role: "alert", hidden: true });
  const show = (text) => {
    element.textContent = text;
    element.hidden = !text;
  };
  return { element, show };
}

/**
 * Do something that may fail; what fails is said in the line. Returns whether it went well.
 *
 * Until it is done its button does nothing: aria-disabled, since a button that is disabled loses the focus.
 */
export async function attempt(button, error, action) {
  if (button.ariaDisabled === "true") return false;
  error.show("");
  button.ariaDisabled = "true";
  try {
    await action();
    return true;
  } catch (failure) {
    error.show(failure.message);
    return false;
  } finally {
    button.ariaDisabled = null;
  }
}

/** A button with text. kind: more classes of `.button`. */
export function textButton(text, { kind = "", ...props } = {}) {
  return h("button", { type: "button", class: `button ${kind}`.trim(), ...props }, text);
}

/** A line to copy, with the button that does. label: what it is. */
export function copyable(app, text, label) {
  return h("span", { class: "copyable" }, h("code", {}, text), copyButton(app, text, label));
}

/** Lines to copy, below their title. */
export function copyBlock(app, title, text) {
  const head = h("figcaption", {}, h("span", {}, title), copyButton(app, text, title));
  return h("figure", { class: "copy-block" }, head, h("pre", { tabindex: 0, "aria-label": title }, text));
}

function copyButton(app, text, label) {
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    app.toast(`Copied ${label}.`);
  };
  return iconButton("copy", `Copy ${label}`, () => copy().catch(app.fail));
}

/** A paragraph in small, faint letters. */
export function hint(...content) {
  return h("p", { class: "hint" }, content);
}
