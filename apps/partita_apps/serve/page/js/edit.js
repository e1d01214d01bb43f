/**
 * The form in which a message is written again. The one before stays as a sibling.
 */

import { h } from "./dom.js";

/** message: of a person. done: called when the form is over. */
export function editForm(message, app, done) {
  const text = h("textarea", { class: "textarea", rows: "3", "aria-label": "Edit message", value: message.content });
  const error = h("p", { class: "error", role: "alert" });
  const submit = async (event) => {
    event?.preventDefault();
    if (!text.value.trim()) return;
    try {
      await app.actions.send(text.value, { attachments: message.attachments, parent: message.parent });
      app.toEnd();
      app.focusComposer({ quietly: true });
    } catch (failure) {
      error.textContent = failure.message;
    }
  };
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      done();
    } else if (sends(event)) submit(event);
  });
  return h(
    "form",
    { class: "edit", onSubmit: submit },
    text,
    h(
      "div",
      { class: "edit-foot" },
      h("span", { class: "hint" }, "The message before stays: ‹ › goes between the two."),
      h("button", { type: "button", class: "button", onClick: done }, "Cancel"),
      h("button", { type: "submit", class: "button primary" }, "Send"),
    ),
    error,
  );
}

/** Whether a key sends: Enter, but neither with Shift, nor while an input method composes, nor on a phone's keyboard. */
export function sends(event) {
  if (event.key !== "Enter" || event.shiftKey || event.altKey || event.isComposing || event.keyCode === 229) return false;
  return event.ctrlKey || event.metaKey || !matchMedia("(pointer: coarse)").matches;
}
