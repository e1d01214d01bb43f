/** What a run would take, before it is started: memory, steps, tokens. Asked of the server whenever the form changes. */

import { h } from "../dom.js";
import { count, memorySize, plural } from "../format.js";

const PAUSE = 700; // milliseconds without a change before the server is asked

/** asked(): the form's content, or null. Returns {element, changed()}. */
export function predictionPart(app, asked) {
  const body = h("div", { class: "tune-prediction-body" });
  const element = h("section", { class: "tuning-part tune-prediction", "aria-labelledby": "prediction-title", "aria-live": "polite" }, h("h2", { id: "prediction-title" }, "What it will take"), body);
  let timer = null;
  let number = 0;
  let last = null;

  function changed() {
    clearTimeout(timer);
    const wanted = asked();
    if (wanted === null) {
      last = null;
      number += 1;
      return say("Choose a model and data, and this says how much memory and how many steps that is.");
    }
    const text = JSON.stringify({ ...wanted, settings: { ...wanted.settings, sample: undefined } });
    if (text === last) return;
    timer = setTimeout(() => ask(wanted, text), PAUSE);
  }

  async function ask(wanted, text) {
    const mine = (number += 1);
    last = text;
    say("Reading model and data …");
    element.setAttribute("aria-busy", "true");
    try {
      const found = await app.api.post("/app/tuning/predict", wanted);
      if (mine === number) body.replaceChildren(...shown(found));
    } catch (failure) {
      if (mine !== number) return;
      last = null;
      if (failure.type === "conflict") return changed();
      body.replaceChildren(h("p", { class: "error" }, failure.message));
    } finally {
      if (mine === number) element.setAttribute("aria-busy", "false");
    }
  }

  function say(text) {
    body.replaceChildren(h("p", { class: "faint small" }, text));
  }

  say("");
  return { element, changed };
}

function shown({ prediction: found, idle, busy }) {
  const { train, valid = null } = found.data;
  const facts = [
    ["Memory", `about ${memorySize(found.needs + found.process)}`],
    ["Free", memorySize(found.free)],
    ["Steps", count(found.steps)],
    ["Tokens", `${count(train.tokens)}, ${count(train.trained)} of them learnt`],
    ["Validation", valid ? plural(valid.documents, "example") : "none"],
    ["Computed by", `${found.backend} on ${found.device}`],
  ];
  return [
    h("dl", { class: "tune-numbers" }, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { class: "number" }, value)))),
    ...remarks(found, idle, busy).map(([kind, text]) => h("p", { class: kind }, text)),
    parts(found),
  ];
}

function remarks(found, idle, busy) {
  const { train } = found.data;
  const all = [];
  if (found.refusal && !busy) all.push([idle ? "small" : "error", found.refusal]);
  if (found.refusal && idle) all.push(["small", `Models that nobody uses hold ${memorySize(idle)}: they are unloaded for the run.`]);
  else if (!found.refusal && found.needs > found.free) all.push(["small", "It fits if activations are computed twice, which is done then: a step takes longer."]);
  if (train.truncated) all.push(["small", `${plural(train.truncated, "example")} cut at ${count(found.max_length)} tokens: ${plural(train.lost, "token")} lost.`]);
  if (train.skipped) all.push(["small", `${plural(train.skipped, "example")} left out: the prompt alone fills ${count(found.max_length)} tokens.`]);
  for (const note of found.notes) all.push(["small", note]);
  all.push(["hint", "How long that takes is known after the first steps."]);
  return all;
}

function parts(found) {
  const names = {
    weights: "The model's weights",
    values: "The adapter",
    optimizer: "Gradients and moments",
    activations: "Activations, kept for the way back",
    logits: "Logits, a part at a time",
    batches: "Batches",
    process: "The process without all that",
  };
  const rows = Object.entries(names).map(([name, text]) => h("tr", {}, h("th", { scope: "row" }, text), h("td", { class: "number" }, memorySize(found[name]))));
  return h("details", {}, h("summary", {}, "Memory in parts"), h("table", { class: "tune-parts" }, h("tbody", {}, ...rows)));
}
