/**
 * The frame: header, the two sides, views, notices. Knows no chat.
 *
 * Holds always: a side that is not shown cannot be reached by keyboard; on a phone one side covers the page at a time,
 * and Escape closes it.
 */

import { h, icon, iconButton } from "./dom.js";

const PHONE = "(max-width: 48rem)";
const NARROW = "(max-width: 68rem)";

/** Returns {model, transcript, composer}: elements for the parts. */
export function mountLayout(root, app) {
  const { store } = app;
  const $ = (id) => document.getElementById(id);
  const model = h("div", { class: "header-model" });
  const extra = h("div", { class: "header-extra", id: "header-extra" });
  const transcript = h("div", { class: "transcript-slot" });
  const composer = h("div", { class: "composer-slot" });
  const chat = h("div", { class: "chat", id: "chat" }, transcript, composer);
  const tuning = h("div", { class: "tuning", id: "tuning", hidden: true });
  const sidebarButton = iconButton("menu", "Chats", () => app.sidebar(root.dataset.sidebar !== "open"), { "aria-controls": "sidebar" });
  const inspectorButton = iconButton("inspect", "Inspector", () => app.inspector(root.dataset.inspector !== "open"), { "aria-controls": "inspector" });
  $("header").replaceChildren(sidebarButton, model, extra, inspectorButton);
  $("view").append(chat, tuning);

  const show = (side, button, open) => {
    root.dataset[side] = open ? "open" : "closed";
    const element = $(side);
    element.hidden = side === "inspector" && !open;
    element.inert = !open;
    button.setAttribute("aria-expanded", String(open));
    $("scrim").hidden = !covering(root);
  };
  app.sidebar = (open) => {
    show("sidebar", sidebarButton, open);
    if (!matchMedia(PHONE).matches) localStorage.setItem("partita.sidebar", open ? "open" : "closed");
    else if (open) $("sidebar").querySelector("button, a, input")?.focus();
  };
  app.inspector = async (open) => {
    if (open) await app.loadInspector();
    show("inspector", inspectorButton, open);
    store.emit("inspector", open);
  };
  $("scrim").addEventListener("click", () => closeSides(root, app));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || !covering(root) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    closeSides(root, app);
  });

  const fit = () => app.sidebar(!matchMedia(PHONE).matches && localStorage.getItem("partita.sidebar") !== "closed");
  matchMedia(PHONE).addEventListener("change", fit);
  fit();
  show("inspector", inspectorButton, false);

  store.on("route", ({ view, inspect }) => {
    chat.hidden = view !== "chat";
    tuning.hidden = view !== "tuning";
    inspectorButton.hidden = view !== "chat";
    $("view").setAttribute("aria-label", view === "chat" ? "Chat" : "Fine-tuning");
    if (matchMedia(PHONE).matches && root.dataset.sidebar === "open") app.sidebar(false);
    if (inspect) app.inspector(true);
    else if (view !== "chat") app.inspector(false);
  });
  mountNotices(app);
  $("skip").addEventListener("click", () => app.focusComposer());
  return { model, transcript, composer };
}

/** Whether a side lies over the rest. */
function covering(root) {
  const phone = matchMedia(PHONE).matches && root.dataset.sidebar === "open";
  return phone || (matchMedia(NARROW).matches && root.dataset.inspector === "open");
}

function closeSides(root, app) {
  for (const side of ["sidebar", "inspector"]) {
    if (root.dataset[side] !== "open" || (side === "sidebar" && !matchMedia(PHONE).matches)) continue;
    app[side](false);
    document.querySelector(`#header [aria-controls="${side}"]`).focus();
  }
}

/** Have a toast go after some time, but not while the pointer or the focus is on it. */
function goAfter(toast, close, milliseconds) {
  let timer = setTimeout(close, milliseconds);
  const hold = () => clearTimeout(timer);
  const go = () => {
    hold();
    timer = setTimeout(close, milliseconds);
  };
  for (const kind of ["pointerenter", "focusin"]) toast.addEventListener(kind, hold);
  for (const kind of ["pointerleave", "focusout"]) toast.addEventListener(kind, go);
}

/** Toasts, failures, and the line that says that the server is gone. */
function mountNotices(app) {
  const notice = document.getElementById("notice");
  const toasts = document.getElementById("toasts");
  app.toast = (text, { action = null, onAction = () => {}, seconds = 6, kind = "plain" } = {}) => {
    const close = () => toast.remove();
    const toast = h(
      "div",
      { class: `toast ${kind}`, role: kind === "danger" ? "alert" : "status" },
      h("span", { class: "toast-text" }, text),
      action && h("button", { type: "button", class: "button quiet", onClick: () => (close(), onAction()) }, action),
      iconButton("close", "Close", close),
    );
    toasts.append(toast);
    if (kind !== "danger") goAfter(toast, close, seconds * 1000);
    return close;
  };
  app.fail = (error) => {
    if (error.name === "AbortError") return;
    if (error.locked) return app.store.set("connection", "locked");
    if (error.gone) return app.store.set("connection", "lost");
    if (error.name !== "ApiError") console.error(error);
    app.toast(error.message, { kind: "danger" });
  };
  app.store.on("failure", app.fail);
  let gone = false;
  app.store.on("connection", (state) => {
    notice.hidden = state !== "lost";
    if (state === "lost") {
      notice.replaceChildren(icon("warning"), h("span", {}, "The server does not answer. This page connects again by itself as soon as it runs: ", h("code", {}, "partita serve")));
    } else if (gone && state === "open") app.say("Connected again.");
    gone = state === "lost";
  });
}
