/**
 * The fine-tuning view: a form for a new run, or one run, beside the list of all.
 *
 * Holds always: what is shown is the server's word, asked for again when it says that something changed; an address
 * (`#/tuning`, `#/tuning/RUN`) opens what it names.
 */

import { h, icon } from "../dom.js";
import { newRun } from "./form.js";
import { runView } from "./run.js";
import { runsView } from "./runs.js";

export async function mountTuning(root, app) {
  const title = h("h1", { tabindex: -1 }, "Fine-tuning");
  const fresh = h("a", { class: "button", href: "#/tuning" }, icon("plus"), "New run");
  const main = h("div", { class: "tuning-main" });
  const runs = runsView();
  const lead = h("p", { class: "tuning-lead" }, "Teach a model from your own texts, on this machine. A run leaves a small adapter beside the model, which itself stays as it is.");
  root.replaceChildren(
    h("div", { class: "tuning-page" }, h("header", { class: "tuning-head" }, h("div", {}, title, lead), fresh), h("div", { class: "tuning-columns" }, main, runs.element)),
  );
  const state = { overview: null, shown: null };
  const form = newRun({ ...app, refresh, overview: () => state.overview });

  async function refresh() {
    state.overview = await app.api.get("/app/tuning");
    runs.show(state.overview.runs, app.store.route.run);
    form.show(state.overview);
    return state.overview;
  }

  async function route() {
    if (app.store.route.view !== "tuning") return leave();
    const id = app.store.route.run ?? null;
    fresh.hidden = id === null;
    lead.hidden = id !== null;
    if (state.overview === null) await refresh();
    runs.show(state.overview.runs, id);
    if (id === null) {
      leave();
      main.replaceChildren(form.element);
      form.begin();
    } else if (state.shown?.id !== id) {
      leave();
      const shown = (state.shown = runView(id, { ...app, refresh }));
      main.replaceChildren(shown.element);
      await shown.begin();
    }
  }

  function leave() {
    state.shown?.end();
    state.shown = null;
  }

  const failed = (error) => {
    if (error.status === 404 && app.store.route.run) app.go("#/tuning");
    app.fail(error);
  };
  let timer = null;
  app.store.on("tuning", () => {
    timer ??= setTimeout(() => {
      timer = null;
      if (app.store.route.view === "tuning") refresh().catch(app.fail);
      else state.overview = null;
    }, 150);
  });
  app.store.on("route", () => route().catch(failed));
  app.store.on("models", () => state.overview && form.show(state.overview));
  await route().catch(failed);
}
