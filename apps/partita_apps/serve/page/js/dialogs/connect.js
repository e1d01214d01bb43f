/** How another program uses the models of this server: its addresses, and the command that prints a tool's settings. */

import { h } from "../dom.js";
import { copyable, hint, openModal } from "./modal.js";

const TOOLS = ["codex", "claude-code", "opencode", "aider", "openai"];
const PAGES = [["/openapi.json", "What it understands"], ["/metrics", "Metrics"], ["/health", "Health"]];

export function openConnect(app) {
  const base = location.origin;
  const rows = [
    ["OpenAI's clients (chat, responses, completions)", `${base}/v1`, "the address for OpenAI's clients"],
    ["Anthropic's clients (messages)", base, "the address for Anthropic's clients"],
    ["Model", app.store.model, "the model's name"],
  ];
  openModal(
    app,
    { name: "connect", title: "Connect a tool" },
    h("p", {}, "Editors, agents and programs can use the same models at the same time."),
    h("dl", { class: "facts" }, rows.filter(([, text]) => text).map(([name, text, label]) => fact(name, copyable(app, text, label)))),
    hint("Key: any, unless the server was started with ", h("code", {}, "--api-key"), "."),
    h("h3", {}, "Settings of a tool"),
    h("p", {}, "In a terminal, with address, model and context filled in:"),
    h("p", {}, copyable(app, "partita clients", "the command")),
    hint("It lists all tools that it knows; with a name behind it, it prints the settings of one: ", TOOLS.map(example), "."),
    h("p", { class: "links" }, PAGES.map(link)),
  );
}

function fact(name, value) {
  return [h("dt", {}, name), h("dd", {}, value)];
}

function example(tool, i) {
  return [i > 0 && ", ", h("code", {}, tool)];
}

function link([href, text], i) {
  return [i > 0 && " · ", h("a", { href, target: "_blank", rel: "noopener" }, text)];
}
