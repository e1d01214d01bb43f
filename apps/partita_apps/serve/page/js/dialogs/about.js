/** What this is, its colours, where conversations are kept, and how to keep none. */

import { h } from "../dom.js";
import { setTheme, theme, THEMES } from "../theme.js";
import { copyable, hint, openModal } from "./modal.js";

export function openAbout(app) {
  const { version, history } = app.store.state;
  openModal(
    app,
    { name: "about", title: "About partita" },
    h("p", {}, `Language models on this machine, version ${version}. Nothing that is written here leaves it.`),
    themes(),
    h("h3", {}, "History"),
    history.on ? kept(app, history.path) : h("p", {}, "This server keeps no history: chats are gone when it ends."),
  );
}

function kept(app, path) {
  return [
    h("p", {}, "The chats of this page and of ", h("code", {}, "partita chat"), " are in one file, which only you can read:"),
    h("p", {}, copyable(app, path, "the path of the history")),
    hint(
      "A deleted chat can be restored for 30 days. In a terminal, ",
      h("code", {}, "partita chat --no-history"),
      " and ",
      h("code", {}, "/set history off"),
      " keep nothing.",
    ),
  ];
}

function themes() {
  const radios = THEMES.map((name) => {
    const input = h("input", { type: "radio", name: "theme", value: name, checked: theme() === name });
    input.addEventListener("change", () => setTheme(name));
    return h("label", {}, input, h("span", {}, name[0].toUpperCase() + name.slice(1)));
  });
  return h("fieldset", { class: "segmented" }, h("legend", {}, "Colours"), h("div", { class: "segments" }, radios));
}
