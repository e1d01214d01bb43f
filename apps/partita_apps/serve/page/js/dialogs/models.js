/**
 * The models of this machine: which are loaded, what each takes on disk and will take in memory, and which one answers.
 * Sizes are the server's; nothing is predicted here.
 */

import { h } from "../dom.js";
import { count, diskSize, memorySize } from "../format.js";
import { attempt, errorLine, hint, openModal, textButton } from "./modal.js";

const LOOK = 700; // ms

export function openModels(app) {
  const error = errorLine();
  const free = h("p", { class: "models-free" });
  const list = h("ul", { class: "models", "aria-label": "Models" });
  const busy = new Set(); // names whose load or unload has been asked for
  const show = () => redraw(app, list, free, error, busy);
  const stops = ["models", "model"].map((name) => app.store.on(name, show));
  show();
  const look = () => app.store.models.some((each) => each.state === "loading") && app.actions.loadState().catch(() => {});
  const timer = setInterval(look, LOOK); // how far a model is comes with the state alone
  const closed = () => {
    clearInterval(timer);
    stops.forEach((stop) => stop());
  };
  openModal(
    app,
    { name: "models", title: "Models", wide: true, closed },
    hint("A model is loaded when it is asked for, and unloaded when another needs its memory."),
    free,
    error.element,
    list,
    hint("More models: ", h("code", {}, "partita models pull NAME"), " in a terminal."),
  );
}

function redraw(app, list, free, error, busy) {
  const { models, model: current } = app.store;
  const focused = document.activeElement?.dataset?.key;
  const rows = models.map((each) => row(app, each, each.id === current, error, busy));
  list.replaceChildren(...(rows.length ? rows : [h("li", { class: "empty" }, "No model is on this machine yet.")]));
  const bytes = models.find((each) => each.free)?.free;
  free.textContent = bytes ? `${memorySize(bytes)} of memory free` : "";
  free.hidden = !bytes;
  if (focused) [...list.querySelectorAll("button")].find((each) => each.dataset.key === focused)?.focus();
}

function row(app, model, current, error, busy) {
  const use = textButton(current ? "In use" : "Use", {
    "data-key": `use ${model.id}`,
    "aria-pressed": current,
    "aria-label": `${current ? "In use" : "Use"}: ${model.id}`,
  });
  use.addEventListener("click", () =>
    attempt(use, error, async () => {
      await app.actions.setModel(model.id);
      app.say(`${model.id} answers from now on.`);
    }),
  );
  const load = model.parent ? null : loadButton(app, model, error, busy);
  return h(
    "li",
    { class: `model${current ? " current" : ""}${model.parent ? " adapter" : ""}` },
    h("div", { class: "model-text" }, name(model), h("p", { class: "hint" }, facts(model).join(" · ")), progress(model)),
    h("div", { class: "model-actions" }, load, use),
  );
}

function name(model) {
  return h(
    "p",
    { class: "model-name" },
    h("span", {}, model.id),
    model.parent ? h("span", { class: "tag" }, "adapter") : h("span", { class: `model-state ${model.state}` }, model.state),
  );
}

function facts(model) {
  if (model.parent) return [`on ${model.parent}`, "takes next to no memory of its own"];
  const found = [`${diskSize(model.size)} on disk`];
  if (model.state === "loaded" && model.memory) found.push(`${memorySize(model.memory)} in memory`);
  if (model.state !== "loaded" && model.predicted) {
    const tight = model.free && model.predicted > model.free ? ", more than is free" : "";
    found.push(`needs about ${memorySize(model.predicted)} of memory${tight}`);
  }
  if (model.context_length) found.push(`context ${count(model.context_length)} tokens`);
  return found;
}

function progress(model) {
  if (model.state !== "loading" || model.parent) return null;
  const [done, total] = model.progress ?? [0, 0];
  const bar = h("progress", { "aria-label": `Loading ${model.id}` });
  if (total) Object.assign(bar, { max: total, value: done });
  return h("p", { class: "model-progress" }, bar, h("span", { class: "hint" }, total ? `${done} of ${total} layers` : "loading"));
}

function loadButton(app, model, error, busy) {
  const loaded = model.state === "loaded";
  const word = loaded ? "Unload" : "Load";
  const fixed = loaded && model.pinned; // the server was started with it
  const button = textButton(word, {
    kind: "quiet",
    "data-key": `load ${model.id}`,
    "aria-label": `${word} ${model.id}`,
    title: fixed ? "The server was started with this model and keeps it loaded" : null,
    disabled: fixed,
    "aria-disabled": busy.has(model.id) || model.state === "loading" || null,
  });
  button.addEventListener("click", async () => {
    if (button.ariaDisabled === "true") return;
    busy.add(model.id);
    await attempt(button, error, () => app.api.post(`/app/models/${word.toLowerCase()}`, { model: model.id }));
    busy.delete(model.id);
    await app.actions.loadState().catch(app.fail);
  });
  return button;
}
