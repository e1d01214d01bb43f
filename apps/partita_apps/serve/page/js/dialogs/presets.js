/** Presets: settings under a name. Using one fills the form of the settings, which is saved as any other change of it. */

import { h } from "../dom.js";
import { attempt, hint, textButton } from "./modal.js";

/** The row that fills a form from a preset: {element, show(selected)}. form: its read() and show(settings). */
export function presetChooser(app, form, error) {
  const presets = () => app.store.state.presets; // {name: settings}
  const select = h("select", { class: "select", id: "preset" });
  const use = textButton("Use");
  const drop = textButton("Delete", { kind: "quiet", "aria-label": "Delete the preset" });
  const refresh = () => (use.disabled = drop.disabled = !select.value);

  function show(selected) {
    const names = Object.keys(presets());
    const first = h("option", { value: "" }, names.length ? "None" : "None yet: save one below");
    select.replaceChildren(first, ...names.map((each) => h("option", { value: each }, each)));
    select.value = names.includes(selected) ? selected : "";
    select.disabled = !names.length;
    refresh();
  }

  select.addEventListener("change", refresh);
  use.addEventListener("click", () => {
    form.show(presets()[select.value]);
    app.say(`Preset ${select.value} filled in.`);
  });
  drop.addEventListener("click", async () => {
    const name = select.value;
    const action = () => changed(app, "/app/presets/drop", { name });
    if (await attempt(drop, error, action)) app.toast(`Preset ${name} deleted.`);
    show(name);
  });
  show("");
  const row = h("div", { class: "preset-row" }, select, use, drop);
  return { element: h("div", { class: "field preset-use" }, h("label", { for: "preset" }, "Preset"), row), show };
}

/** The row that keeps what is in the form under a name. show(name): tells the chooser. */
export function presetKeeper(app, form, error, show) {
  const input = h("input", { class: "input", type: "text", id: "preset-name", maxlength: 80, autocomplete: "off" });
  const save = textButton("Save as preset", { disabled: true });
  input.addEventListener("input", () => (save.disabled = !input.value.trim()));
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return; // it would save the settings
    event.preventDefault();
    save.click();
  });
  save.addEventListener("click", async () => {
    const name = input.value.trim();
    const action = async () => changed(app, "/app/presets", { name, settings: form.read() });
    if (!(await attempt(save, error, action))) return;
    app.toast(`Preset ${name} saved.`);
    show(name);
  });
  return h(
    "div",
    { class: "field preset-keep" },
    h("label", { for: "preset-name" }, "Keep these settings under a name"),
    h("div", { class: "preset-row" }, input, save),
    hint("A name that is there already takes these settings."),
  );
}

async function changed(app, path, body) {
  await app.api.post(path, body);
  await app.actions.loadState();
}
