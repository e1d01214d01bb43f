/** How another program uses the models of this server: its addresses, and the settings of the tools that are known. */

import { h } from "../dom.js";
import { copyable, copyBlock, errorLine, hint, openModal } from "./modal.js";

const PAGES = [["/openapi.json", "What it understands"], ["/metrics", "Metrics"], ["/health", "Health"]];

export function openConnect(app) {
  const { url, needs_key: keyed } = app.store.state;
  const rows = [
    ["OpenAI's clients (chat, responses, completions)", `${url}/v1`, "the address for OpenAI's clients"],
    ["Anthropic's clients (messages)", url, "the address for Anthropic's clients"],
    ["Model", app.store.model, "the model's name"],
  ];
  openModal(
    app,
    { name: "connect", title: "Connect a tool", wide: true },
    h("p", {}, "Editors, agents and programs can use the same models at the same time."),
    h("dl", { class: "facts" }, rows.filter(([, text]) => text).map(([name, text, label]) => fact(name, copyable(app, text, label)))),
    hint(keyed ? "Key: the one that the server was started with." : "Key: any, since the server was started without one."),
    toolPicker(app),
    h("p", { class: "links" }, PAGES.map(link)),
  );
}

function fact(name, value) {
  return [h("dt", {}, name), h("dd", {}, value)];
}

function link([href, text], i) {
  return [i > 0 && " · ", h("a", { href, target: "_blank", rel: "noopener" }, text)];
}

/** A list of tools, and below it the settings of the one that is chosen, with this server's address, model and context. */
function toolPicker(app) {
  const { clients } = app.store.state;
  const error = errorLine();
  const shown = h("div", { class: "tool" });
  const options = [["", "Choose one"], ...clients.map(({ name, title }) => [name, title])];
  const select = h("select", { class: "select", id: "tool" }, options.map(([value, text]) => h("option", { value }, text)));
  select.addEventListener("change", async () => {
    const name = select.value;
    shown.replaceChildren();
    if (!name) return;
    error.show("");
    try {
      const found = await app.api.get(`/app/clients/${name}?model=${encodeURIComponent(app.store.model ?? "")}`);
      if (select.value === name) shown.replaceChildren(...settingsOf(app, found)); // another may be chosen by now
    } catch (failure) {
      error.show(failure.message);
    }
  });
  return h("section", {}, h("div", { class: "field" }, h("label", { for: "tool" }, "Settings of a tool"), select), error.element, shown);
}

function settingsOf(app, { command, tested, files, environment, start, steps, python, notes }) {
  const variables = Object.entries(environment).map(([name, value]) => `export ${name}=${value}`);
  return [
    steps.length > 0 && h("ol", {}, steps.map((step) => h("li", {}, step))),
    files.map(({ path, text }) => copyBlock(app, path, text)),
    variables.length > 0 && copyBlock(app, "In a terminal, before it starts", variables.join("\n")),
    start && copyBlock(app, "To start it", start),
    python && copyBlock(app, "In Python", python),
    notes.map((note) => hint(note)),
    hint(`${capital(tested)}. The same in a terminal: `, h("code", {}, command)),
  ].flat().filter(Boolean);
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
