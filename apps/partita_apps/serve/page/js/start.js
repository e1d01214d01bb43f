/**
 * What stands where no message is: what to do first, where things are kept, what is missing.
 *
 * Holds always: an example is put into the field and never sent by itself.
 */

import { copyButton } from "./body.js";
import { h, icon } from "./dom.js";
import { memory } from "./words.js";

const EXAMPLES = [
  ["Explain", "Explain how a key-value cache speeds up a language model, with a small example."],
  ["Write", "Write a Python function that reads a CSV file and returns the mean of every numeric column."],
  ["Rework", "Make this shorter and friendlier, and keep the facts:\n\n"],
];

/** The element for what the page knows now. */
export function startView(app) {
  const { store } = app;
  if (store.connection === "locked") return locked(app);
  if (store.state === null) return h("div", { class: "start-view" }, h("p", { class: "faint" }, store.connection === "lost" ? "" : "Connecting"));
  if (store.route.chat && store.chat === null) return h("div", {}); // it is on its way
  if (!store.models.length) return noModel();
  return first(app);
}

function command(text) {
  return h("div", { class: "command" }, h("code", {}, text), copyButton("Copy command", () => text));
}

function locked(app) {
  const input = h("input", { class: "input", type: "password", id: "token", autocomplete: "off", spellcheck: "false", required: true });
  const error = h("p", { class: "error", role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    app.api.keepToken(input.value);
    app.store.set("connection", "connecting");
    await app.begin();
    if (app.store.connection !== "locked") return app.focusComposer();
    const again = document.getElementById("token");
    again.closest("form").querySelector(".error").textContent = "This is not the key of the server that runs here.";
    again.focus();
  };
  return h(
    "div",
    { class: "start-view" },
    h("h1", {}, "This page needs its key"),
    h("p", {}, "Only pages that were opened from this machine may read its chats. The quickest way is to let the server open this page; it brings the key along:"),
    command("partita serve --open"),
    h("form", { class: "field unlock", onSubmit: submit },
      h("label", { for: "token" }, "Or paste the key that ", h("code", {}, "partita serve status"), " prints"),
      h("div", { class: "row" }, input, h("button", { type: "submit", class: "button primary" }, "Open")),
      error,
    ),
  );
}

function noModel() {
  return h(
    "div",
    { class: "start-view" },
    h("h1", {}, "No model on this machine yet"),
    h("p", {}, "A model is a file that is fetched once and then works without the internet. This one is small and good for a start:"),
    command("partita models pull"),
    h("p", { class: "faint small" }, "When it is here, this page lists it by itself. ", h("code", {}, "partita models list"), " shows what is on this machine."),
  );
}

function first(app) {
  const { store } = app;
  const examples = EXAMPLES.map(([kind, text]) =>
    h("button", { type: "button", class: "example", onClick: () => app.compose(text) }, h("span", { class: "example-kind" }, kind), h("span", {}, text.trim())),
  );
  return h(
    "div",
    { class: "start-view" },
    h("h1", {}, "What would you like to know?"),
    h("p", { class: "faint" }, ...modelLine(store)),
    h("div", { class: "examples", role: "group", "aria-label": "Examples" }, examples),
    h("p", { class: "faint small kept" }, icon("folder"), h("span", {}, ...historyLine(store.state.history))),
  );
}

function modelLine(store) {
  const model = store.models.find((each) => each.id === store.model);
  if (!model) return ["Choose a model above."];
  const name = h("strong", {}, model.id);
  if (model.state === "loaded") return [name, " answers, on this machine alone. It is loaded."];
  if (model.state === "loading") return [name, " answers, on this machine alone. It is being loaded."];
  const needs = model.predicted ? `: it takes ${memory(model.predicted)} of memory${model.free ? `, ${memory(model.free)} are free` : ""}` : "";
  return [name, ` answers, on this machine alone. It is loaded with your first message${needs}.`];
}

function historyLine(history) {
  if (!history?.on) return ["History is off: chats are gone when the server ends."];
  return ["Chats are kept in ", h("code", {}, history.path), " on this machine, and nowhere else."];
}
