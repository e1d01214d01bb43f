/**
 * The form of a new run: model, data, settings with what each means, what it will take, and the start.
 *
 * Holds always: what is left empty is the server's default; a mistake is shown at its field, in the server's words.
 */

import { h } from "../dom.js";
import { errorLine } from "../dialogs/modal.js";
import { dataPart } from "./data.js";
import { predictionPart } from "./prediction.js";

const NUMBERS = {
  rank: { label: "Rank", hint: "How much the adapter can hold: small for a tone, larger for much that is new.", step: 1, min: 1 },
  learning_rate: { label: "Learning rate", hint: "How far each step goes. If the loss jumps, halve it.", step: "any", min: 0, shown: "0.0002" },
  max_length: { label: "Longest text", hint: "Tokens of an example; what is longer is cut. Shorter needs less memory.", step: 1, min: 2, shown: "1024" },
  batch_size: { label: "Batch", hint: "Examples that are computed at once. 1 needs least memory.", step: 1, min: 1 },
  accumulate: { label: "Accumulated batches", hint: "Batches that make one step together: steadier steps, for time and not for memory.", step: 1, min: 1 },
};

/** Returns {element, show(overview), begin()}. */
export function newRun(app) {
  const state = { overview: null };
  const model = h("select", { class: "select", id: "tuning-model" });
  const name = h("input", { class: "input", id: "tuning-name", type: "text", maxlength: 48, autocomplete: "off", spellcheck: "false", placeholder: "that of the data" });
  const prediction = predictionPart(app, () => asked());
  const data = dataPart(app, () => prediction.changed());
  const inputs = Object.fromEntries(Object.entries(NUMBERS).map(([key, each]) => [key, numberInput(key, each)]));
  const length = lengthPart(() => prediction.changed());
  const sample = h("textarea", { class: "textarea", id: "tuning-sample", rows: 3, placeholder: "taken from the data" });
  const error = errorLine();
  const start = h("button", { type: "submit", class: "button primary" }, "Start training");
  const busy = h("p", { class: "hint", hidden: true });
  const element = h(
    "form",
    { class: "tuning-form", novalidate: true },
    steps(),
    h("fieldset", { class: "tuning-part" }, h("legend", {}, "Model"), field("Learns from your data", model, "The smaller, the faster. Packed weights (4 bits, GGUF) stay packed.")),
    data.element,
    h(
      "fieldset",
      { class: "tuning-part" },
      h("legend", {}, "Settings"),
      h("div", { class: "tune-fields" }, length.element, ...["rank", "learning_rate"].map((key) => field(NUMBERS[key].label, inputs[key], NUMBERS[key].hint))),
      field("Prompts for samples", sample, "One a line. The model answers them before and after, so that you see what it learnt."),
      h(
        "details",
        {},
        h("summary", {}, "More settings"),
        h("div", { class: "tune-fields" }, ...["max_length", "batch_size", "accumulate"].map((key) => field(NUMBERS[key].label, inputs[key], NUMBERS[key].hint)), field("Name of the adapter", name, "Letters, digits, dots and dashes: it is asked as model:name.")),
      ),
    ),
    prediction.element,
    error.element,
    h("div", { class: "tuning-start" }, start, busy),
  );
  const fields = { ...inputs, steps: length.input, epochs: length.input, sample, name, model };

  /** What a person asks for now; null where something is missing. */
  function asked() {
    if (!model.value || !data.chosen) return null;
    const settings = length.value();
    for (const [key, input] of Object.entries(inputs)) if (input.value.trim()) settings[key] = Number(input.value);
    const prompts = sample.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (prompts.length) settings.sample = prompts;
    return { model: model.value, data: data.chosen.id, settings };
  }

  async function submit(event) {
    event.preventDefault();
    clear();
    const body = asked();
    if (!body) return error.show(model.value ? "Choose a file of data first." : "There is no model on this machine yet.");
    start.disabled = true;
    try {
      const run = await app.api.post("/app/tuning/runs", { ...body, name: name.value.trim() });
      name.value = "";
      await app.refresh();
      app.say(`${run.name} has begun.`);
      app.go(`#/tuning/${run.id}`);
    } catch (failure) {
      refuse(failure);
    } finally {
      start.disabled = Boolean(state.overview?.active);
    }
  }

  function refuse(failure) {
    const at = fields[failure.field?.replace(/^settings\./, "").replace(/\[.*/, "")];
    error.show(failure.message);
    if (!at) return;
    at.setAttribute("aria-invalid", "true");
    at.closest("details")?.setAttribute("open", "");
    at.focus();
  }

  function clear() {
    error.show("");
    Object.values(fields).forEach((each) => each.removeAttribute("aria-invalid"));
  }

  element.addEventListener("submit", submit);
  element.addEventListener("input", (event) => {
    event.target.removeAttribute("aria-invalid");
    if (event.target !== name && event.target !== sample) prediction.changed();
  });
  return {
    element,
    show(overview) {
      state.overview = overview;
      showModels(model, app);
      data.show(overview);
      for (const [key, value] of Object.entries(overview.defaults)) if (inputs[key] && value !== null) inputs[key].placeholder = value;
      const active = overview.runs.find(({ id }) => id === overview.active);
      start.disabled = Boolean(active);
      busy.hidden = !active;
      busy.replaceChildren(...(active ? [h("a", { href: `#/tuning/${active.id}` }, active.name), " is being trained. One run at a time."] : []));
    },
    begin: () => prediction.changed(),
  };
}

/** What there is to do, for who is here for the first time. */
function steps() {
  const all = ["Choose a model and a file of examples.", "Look at what it will take, and start.", "Watch the losses fall, compare samples, and use the adapter in a chat."];
  return h("ol", { class: "tuning-steps" }, ...all.map((text) => h("li", {}, text)));
}

function showModels(select, app) {
  const names = app.store.models.filter(({ parent }) => !parent).map(({ id }) => id);
  if (names.join("\n") === [...select.options].map(({ value }) => value).join("\n")) return;
  const before = select.value;
  select.replaceChildren(...names.map((id) => h("option", { value: id }, id)));
  const current = app.store.models.find(({ id }) => id === app.store.model);
  select.value = names.includes(before) ? before : (current?.parent ?? current?.id ?? names[0] ?? "");
}

function numberInput(key, { step, min, shown }) {
  return h("input", { class: "input number", id: `tuning-${key}`, type: "number", inputmode: "decimal", step, min, placeholder: shown ?? "" });
}

/** control: what holds the input, where it does not stand alone. */
function field(label, input, hint, control = input) {
  const note = h("p", { class: "hint", id: `${input.id}-hint` }, hint);
  input.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: input.id }, label), control, note);
}

/** Passes over the data, or steps. */
function lengthPart(changed) {
  const input = h("input", { class: "input number", id: "tuning-length", type: "number", inputmode: "decimal", min: 0, step: "any", placeholder: "3" });
  const unit = h("select", { class: "select", id: "tuning-unit", "aria-label": "Unit of the length" }, h("option", { value: "epochs" }, "passes"), h("option", { value: "steps" }, "steps"));
  unit.addEventListener("change", () => {
    input.placeholder = unit.value === "epochs" ? "3" : "those of 3 passes";
    changed();
  });
  const element = field("Length", input, "A pass reads all examples once; a step changes the adapter once. Too many passes learn the data by heart.", h("div", { class: "tune-pair" }, input, unit));
  return {
    element,
    input,
    value: () => (input.value.trim() ? { [unit.value]: Number(input.value) } : {}),
  };
}
