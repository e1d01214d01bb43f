/** Search in all chats, titles and messages, as one types. A result opens its chat at the message. */

import { h, icon } from "./dom.js";
import { count, when } from "./format.js";

const PAUSE = 150; // ms after the last key

/** Returns the field. results: where hits are shown. searching(yes): whether they take the list's place. */
export function mountSearch(app, results, searching) {
  const input = h("input", { type: "search", id: "search", class: "input", placeholder: "Search", "aria-label": "Search all chats" });
  const said = h("p", { class: "hint", role: "status" });
  const list = h("ul", { class: "hits", "aria-label": "Found" });
  results.append(said, list);
  let timer = null;
  let asked = 0;

  async function look() {
    const text = input.value.trim();
    const number = (asked += 1);
    searching(Boolean(text));
    results.hidden = !text;
    if (!text) return;
    try {
      const { hits } = await app.api.get(`/app/search?q=${encodeURIComponent(text)}`);
      if (number !== asked) return; // somebody has typed on
      list.replaceChildren(...hits.map((each) => hit(app, each)));
      said.textContent = hits.length ? `${count(hits.length)} found` : "Nothing found. Search looks for whole words and their beginnings.";
    } catch (error) {
      if (number === asked) said.textContent = error.message;
    }
  }

  function clear() {
    clearTimeout(timer);
    input.value = "";
    look();
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, PAUSE);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && input.value) {
      event.preventDefault();
      clear();
    } else if (event.key === "ArrowDown") {
      event.preventDefault();
      list.querySelector("a")?.focus();
    } else if (event.key === "Enter") list.querySelector("a")?.click();
  });
  list.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.preventDefault();
      clear();
      input.focus();
    } else moved(event, list, input);
  });
  return h("div", { class: "search", role: "search" }, icon("search"), input);
}

/** Show a message of the open chat, whichever branch it is on. */
export async function showMessage(app, id) {
  const { store, actions } = app;
  if (!store.messages.some((each) => each.id === id)) return;
  if (!store.path.some((each) => each.id === id)) await actions.showSibling(id);
  let element = null;
  while (!element && store.route.at === id) {
    await new Promise(requestAnimationFrame); // a long chat is put in in pieces, the newest messages first
    element = app.toMessage(id);
  }
  if (!element) return;
  element.classList.add("found");
  element.addEventListener("animationend", () => element.classList.remove("found"), { once: true });
}

function moved(event, list, input) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const links = [...list.querySelectorAll("a")];
  const to = links.indexOf(document.activeElement) + step;
  (to < 0 ? input : (links[to] ?? links.at(-1))).focus();
}

function hit(app, { chat, message, title, snippet, updated }) {
  const link = h(
    "a",
    { href: message ? `#/chat/${chat}/at/${message}` : `#/chat/${chat}` },
    h("span", { class: "hit-title" }, h("span", {}, marked(message ? title || "Untitled" : snippet)), h("time", {}, when(updated))),
    message && h("span", { class: "hit-text" }, marked(snippet)),
  );
  return h("li", {}, link);
}

/** Text with what matched between \x02 and \x03, as nodes. */
export function marked(text) {
  return text.split("\x02").map((part, i) => {
    if (!i) return part;
    const [inside, ...after] = part.split("\x03");
    return [h("mark", {}, inside), after.join("")];
  });
}
