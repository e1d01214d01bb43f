/** Which model answers, in the header, with the way to the others and to the chat's settings. */

import { h, icon, iconButton } from "./dom.js";

export function mountModels(root, app) {
  const { store } = app;
  const name = h("span", { class: "model-button-name" });
  const state = h("span", { class: "model-button-state" });
  const button = h("button", { type: "button", class: "button quiet model-button", "aria-haspopup": "dialog" }, name, state, icon("chevron"));
  button.addEventListener("click", () => app.dialog("models"));
  root.append(button, iconButton("settings", "Settings of this chat", () => app.dialog("settings"), { "aria-haspopup": "dialog" }));
  const show = () => {
    const model = store.models.find((each) => each.id === store.model);
    name.textContent = store.model ?? "No model";
    state.textContent = !model || model.state === "loaded" ? "" : model.state === "loading" ? "loading" : "not loaded";
    button.title = model ? `${store.model}: ${model.state}` : "Choose a model";
  };
  for (const changed of ["models", "chat", "fresh", "model", "state"]) store.on(changed, show);
  show();
}
