/**
 * The settings of a chat: its instructions, how replies are sampled, presets.
 *
 * Holds always: what nobody chose is empty and shows the default, and whose it is; only what a person chose is kept.
 */

import { h } from "../dom.js";
import { FIELDS, LENGTH, SAMPLING, shownDefault } from "./fields.js";
import { attempt, errorLine, hint, openModal, textButton } from "./modal.js";
import { presetChooser, presetKeeper } from "./presets.js";

/** Open the settings of the chat that is shown, or of the one that begins with the next message. */
export async function openSettings(app) {
  const { store } = app;
  const { defaults } = await app.api.get(`/app/defaults?model=${encodeURIComponent(store.model ?? "")}`);
  const error = errorLine();
  const form = settingsForm(defaults, store.settings);
  const chooser = presetChooser(app, form, error);
  const cancel = textButton("Cancel", { kind: "quiet" });
  const save = textButton("Save", { kind: "primary", type: "submit", form: "settings-form" });
  const element = h(
    "form",
    { id: "settings-form", class: "settings", novalidate: true },
    chooser.element,
    form.system,
    group("Sampling", SAMPLING, form),
    group("Length and template", LENGTH, form),
    presetKeeper(app, form, error, chooser.show),
  );
  const dialog = openModal(
    app,
    { name: "settings", title: "Settings", foot: [error.element, cancel, save] },
    hint(`For ${store.chat ? "this chat" : "the next chat"}, with ${store.model}. An empty field takes the default.`),
    element,
  );
  cancel.addEventListener("click", () => dialog.close());
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!(await attempt(save, error, () => app.actions.setSettings(form.read())))) return;
    dialog.close();
    app.toast("Settings saved.");
  });
}

/** The form's fields: read() gives what was chosen and raises Error for what cannot be read; show(settings) fills them. */
function settingsForm(defaults, chosen) {
  const rows = new Map(FIELDS.map((field) => [field.name, settingRow(field, defaults[field.name])]));
  const input = h("textarea", { id: "setting-system", class: "textarea", rows: 3, placeholder: "None" });
  const system = h(
    "div",
    { class: "field" },
    h("label", { for: "setting-system" }, "Instructions"),
    input,
    hint("What the model is told before the conversation (system prompt)."),
  );
  const shown = new Set(["system", ...rows.keys()]);
  const rest = Object.fromEntries(Object.entries(chosen).filter(([name]) => !shown.has(name))); // the terminal's own
  const form = {
    system,
    row: (name) => rows.get(name).element,
    read() {
      const found = input.value.trim() ? { ...rest, system: input.value } : { ...rest };
      for (const [name, row] of rows) {
        const value = row.read();
        if (value !== undefined) found[name] = value;
      }
      return found;
    },
    show(settings) {
      input.value = settings.system ?? "";
      for (const [name, row] of rows) row.show(settings[name]);
    },
  };
  form.show(chosen);
  return form;
}

function group(title, fields, form) {
  return h("fieldset", {}, h("legend", {}, title), fields.map((field) => form.row(field.name)));
}

/** A labelled input that is empty while nobody chose, and says whose word holds. fallback: {value, by}. */
function settingRow(field, fallback) {
  const id = `setting-${field.name}`;
  const shown = shownDefault(field, fallback?.value);
  const props = { id, placeholder: shown, "aria-describedby": `${id}-by ${id}-help`, autocomplete: "off" };
  const input = control(field, props);
  const by = h("span", { id: `${id}-by`, class: "setting-by" });
  const reset = textButton("Reset", { kind: "quiet", "aria-label": `${field.label}: take the default, ${shown}` });
  const refresh = () => {
    const own = input.value.trim() !== "";
    by.textContent = own ? `yours; default ${shown}` : `default, ${fallback?.by ?? "partita's"}`;
    by.classList.toggle("own", own);
    reset.hidden = !own;
  };
  input.addEventListener("input", refresh);
  if (field.step) input.addEventListener("keydown", (event) => stepped(event, field, fallback?.value, refresh));
  reset.addEventListener("click", () => {
    input.value = "";
    refresh();
    input.focus();
  });
  const element = h(
    "div",
    { class: field.lines ? "field setting lines" : "field setting" },
    h("div", { class: "setting-head" }, h("label", { for: id }, field.label), by),
    h("div", { class: "setting-value" }, input, reset),
    h("p", { id: `${id}-help`, class: "hint" }, field.help),
  );
  return {
    element,
    read: () => (input.value.trim() === "" ? undefined : field.read(input.value)),
    show(value) {
      input.value = value === undefined || value === null ? "" : field.shown(value);
      refresh();
    },
  };
}

function control(field, { placeholder, ...props }) {
  if (field.choices) {
    const options = [["", `Default: ${placeholder}`], ...field.choices];
    return h("select", { ...props, class: "select" }, options.map(([value, text]) => h("option", { value: String(value) }, text)));
  }
  const shown = { ...props, placeholder };
  if (field.lines) return h("textarea", { ...shown, class: "textarea", rows: 2, spellcheck: "false" });
  return h("input", { ...shown, class: "input", type: "text", inputmode: "decimal" });
}

/** Arrows up and down change a number by its step, from the default where the field is empty. */
function stepped(event, field, fallback, refresh) {
  const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!direction || event.altKey || event.ctrlKey || event.metaKey) return;
  const input = event.target;
  const now = Number(input.value.trim() === "" ? (fallback ?? 0) : input.value);
  if (!Number.isFinite(now)) return;
  event.preventDefault();
  input.value = String(Number((now + direction * field.step).toFixed(4)));
  refresh();
}
