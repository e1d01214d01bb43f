/**
 * Shortcuts: which command a key stands for, and where it counts. What commands do is in `commands`.
 *
 * Holds always: while a dialog or a menu is open, or a key was answered by what has the focus, nothing happens here;
 * Ctrl and the command key are the browser's. Escape is answered by what it closes or stops.
 */

import { COMMANDS, plainKeys } from "./commands.js";

export function mountKeyboard(root, app) {
  root.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || event.repeat || covered()) return;
    const command = commandOf(event);
    if (command && command.run(app) !== false) event.preventDefault();
  });
}

function covered() {
  return document.querySelector("dialog[open], .menu:popover-open") !== null;
}

function commandOf(event) {
  if (event.ctrlKey || event.metaKey) return null;
  if (event.altKey) return event.shiftKey ? find(letter(event)) : null;
  return plainKeys() && !types(event.target) ? find(event.key.toLowerCase()) : null;
}

function find(key) {
  return COMMANDS.find((each) => each.key === key || each.also === key);
}

/** The key's letter: with Alt, a Mac gives another character, and then the place on the keyboard says it. */
function letter({ key, code }) {
  if (/^[a-z?]$/i.test(key)) return key.toLowerCase();
  return code === "Slash" ? "?" : code.replace(/^Key/, "").toLowerCase();
}

/** Whether letters are text there. */
function types(target) {
  return target.isContentEditable || /^(TEXTAREA|SELECT)$/.test(target.tagName) || (target.tagName === "INPUT" && !/^(checkbox|radio|button|range|file)$/.test(target.type));
}
