/**
 * One run: how far it is, its losses, its samples, and what can be done with it.
 *
 * Holds always: while the run goes on, its events keep this true; when they end, the run is asked for once more.
 */

import { h, icon } from "../dom.js";
import { count, memorySize, plural, when } from "../format.js";
import { openModal, textButton } from "../dialogs/modal.js";
import { lossChart } from "./chart.js";
import { samplesView } from "./samples.js";
import { STATES, chosen, duration, loss, phase, resumable } from "./words.js";

const path = (id, rest = "") => `/app/tuning/runs/${encodeURIComponent(id)}${rest}`;

export function runView(id, app) {
  const title = h("h2", { class: "tune-run-title", tabindex: -1 });
  const state = h("span", { class: "tune-run-state" });
  const about = h("p", { class: "hint" });
  const actions = h("div", { class: "tune-run-actions" });
  const message = h("p", { class: "tune-run-message", role: "alert", hidden: true });
  const progress = progressView();
  const chart = lossChart();
  const samples = samplesView();
  const more = h("details", { class: "tune-run-more" });
  const element = h(
    "article",
    { class: "tune-run", "aria-labelledby": "run-title" },
    h("header", { class: "tune-run-head" }, h("div", {}, h("div", { class: "tune-run-line" }, title, state), about), actions),
    message,
    progress.element,
    h("section", { class: "tuning-part", "aria-label": "Loss" }, chart.element),
    samples.element,
    more,
  );
  title.id = "run-title";
  const view = { run: null, train: [], valid: [], stream: null, phase: null, ended: false };

  async function load() {
    view.run = await app.api.get(path(id));
    view.train = view.run.train;
    view.valid = view.run.valid;
    show();
  }

  function show() {
    const { run } = view;
    title.textContent = run.name;
    state.textContent = STATES[run.state];
    state.dataset.state = run.state;
    about.textContent = [run.model, `${run.data} (${plural(run.rows, "row")})`, when(run.created)].join(" · ");
    message.hidden = !run.message;
    message.className = `tune-run-message ${run.state === "failed" ? "error" : ""}`.trim();
    message.textContent = run.message ? `${run.message}${resumable(run) ? ". Resume goes on from where it was saved last." : ""}` : "";
    showActions();
    progress.show(view);
    chart.show({ train: view.train, valid: view.valid, steps: run.steps || 1 });
    samples.show(run.samples);
    showMore(more, run);
  }

  function showActions() {
    const focused = actions.contains(document.activeElement);
    actions.replaceChildren(...buttons(view.run, { stop, resume, use, remove }));
    if (focused) (actions.querySelector("button") ?? title).focus();
  }

  function follow() {
    view.stream?.close();
    view.stream = null;
    if (!view.run.running) return;
    view.stream = app.api.stream(path(id, "/events"), view.run.last, (event) => heard(event));
    view.stream.done.catch(app.fail);
  }

  function heard({ kind, data }) {
    const { run } = view;
    if (kind === "end" || kind === "reset") return again(kind === "end").catch(app.fail);
    if (kind === "phase") view.phase = data;
    if (kind === "note") run.notes = [...run.notes, ...data.lines];
    if (kind === "ready") {
      Object.assign(run, { ready: data, step: data.step, steps: data.steps });
      view.train = view.train.filter(([step]) => step <= data.step); // what was beyond its checkpoint is made again
      view.valid = view.valid.filter(([step]) => step <= data.step);
    }
    if (kind === "samples") run.samples = data.samples;
    if (kind === "valid") view.valid = [...view.valid.filter(([step]) => step < data.step), [data.step, data.loss]];
    if (kind === "step") {
      Object.assign(run, { step: data.step, latest: data });
      view.phase = { what: "training" };
      if (!(data.step <= view.train.at(-1)?.[0])) view.train.push([data.step, data.loss]);
    }
    if (kind === "step" || kind === "valid" || kind === "phase") {
      progress.show(view);
      chart.show({ train: view.train, valid: view.valid, steps: run.steps || 1 });
    } else show();
  }

  async function again(ended) {
    view.phase = null;
    await load();
    if (ended) {
      app.say(`The run ${view.run.name}: ${STATES[view.run.state].toLowerCase()}.`);
      await app.refresh();
    } else follow();
  }

  const act = (rest, then) => async (event) => {
    event.currentTarget.disabled = true;
    try {
      await then(await app.api.post(path(id, rest)));
    } catch (error) {
      app.fail(error);
      await load();
    }
  };
  const stop = act("/stop", async () => {
    app.say("Stopping: the step is finished and saved.");
    view.phase = { what: "stopping" };
    view.run.stopping = true;
    show();
  });
  const resume = act("/resume", async () => {
    view.phase = null;
    await load();
    follow();
    await app.refresh();
  });
  const use = act("/use", async ({ model }) => {
    await app.actions.loadState();
    app.go("#/");
    await app.actions.openChat(null);
    await app.actions.setModel(model);
    app.toast(`${model} answers in this chat.`);
    app.focusComposer();
  });

  function remove() {
    const erase = textButton("Delete the run", { kind: "primary danger" });
    const keep = textButton("Keep it", { onClick: () => dialog.close() });
    const { name, used } = view.run;
    const dialog = openModal(
      app,
      { name: "confirm", title: `Delete ${name}?`, foot: [keep, erase] },
      h("p", {}, `Its adapter, checkpoints and numbers are removed for good.${used ? ` ${view.run.model}:${name} can no longer be asked.` : ""}`),
    );
    erase.addEventListener("click", async () => {
      erase.disabled = true;
      try {
        await app.api.post(path(id, "/delete"));
        dialog.close();
        await app.refresh();
        if (used) await app.actions.loadState();
        app.go("#/tuning");
        app.say(`${name} was deleted.`);
      } catch (error) {
        dialog.close();
        app.fail(error);
      }
    });
  }

  return {
    id,
    element,
    async begin() {
      await load();
      follow();
      title.focus({ preventScroll: true });
    },
    end: () => view.stream?.close(),
  };
}

function buttons(run, does) {
  const button = (text, name, onClick, kind = "") => h("button", { type: "button", class: `button ${kind}`.trim(), onClick }, icon(name), text);
  if (run.running) return [button(run.stopping ? "End now" : "Stop", "stop", does.stop)];
  const found = [];
  if (run.adapter) found.push(button("Use in a chat", "model", does.use, run.state === "done" ? "primary" : ""));
  if (resumable(run)) found.push(button("Resume", "go-on", does.resume, "primary"));
  found.push(button("Delete", "trash", does.remove, "quiet danger"));
  return found;
}

/** How far the run is: a bar, and the numbers of the latest step. */
function progressView() {
  const what = h("p", { class: "tune-progress-what" });
  const left = h("p", { class: "hint number" });
  const part = h("i", {});
  const bar = h("div", { class: "bar", role: "progressbar", "aria-label": "Steps", "aria-valuemin": 0 }, part);
  const numbers = h("dl", { class: "tune-numbers" });
  const element = h("section", { class: "tuning-part tune-progress", "aria-label": "Progress" }, h("div", { class: "tune-progress-head" }, what, left), bar, numbers);
  return {
    element,
    show({ run, phase: now, valid, train }) {
      const latest = run.latest ?? null;
      what.textContent = run.running ? phase(now ?? { what: "starting" }) : run.steps ? `${plural(run.step, "step")} of ${count(run.steps)}` : "No step was made";
      left.textContent = run.running ? (latest?.left ? `about ${duration(latest.left)} left` : "") : `took ${duration(run.seconds)}`;
      bar.setAttribute("aria-valuemax", run.steps || 1);
      bar.setAttribute("aria-valuenow", run.step);
      part.style.setProperty("--part", `${(100 * run.step) / (run.steps || 1)}%`);
      numbers.replaceChildren(...facts(run, latest, train, valid).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { class: "number" }, value))));
    },
  };
}

function facts(run, latest, train, valid) {
  const found = [];
  if (run.running && run.steps) found.push(["Step", `${count(run.step)} of ${count(run.steps)}`]);
  if (train.length) found.push(["Training loss", loss(train.at(-1)[1])]);
  if (valid.length) found.push(["Validation loss", valid.length > 1 ? `${loss(valid[0][1])} → ${loss(valid.at(-1)[1])}` : loss(valid[0][1])]);
  const speed = latest?.tokens_per_second ?? run.ended?.tokens_per_second;
  if (speed) found.push(["Speed", `${count(speed)} tokens/s`]);
  const memory = latest?.memory ?? run.ended?.peak;
  if (memory) found.push(["Memory, most", memorySize(memory)]);
  return found;
}

function showMore(more, run) {
  const said = chosen(run.settings);
  const lines = [...(said ? [`chosen: ${said}`] : []), ...(run.ready?.words ?? []), ...run.notes];
  more.hidden = !lines.length;
  if (more.childElementCount && more.dataset.lines === String(lines.length)) return;
  more.dataset.lines = lines.length;
  more.replaceChildren(h("summary", {}, "What runs, in words"), h("ul", { class: "tune-run-words" }, ...lines.map((line) => h("li", {}, line.trim()))));
}
