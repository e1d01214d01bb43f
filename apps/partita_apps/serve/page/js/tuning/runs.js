/** The list of all runs. */

import { h } from "../dom.js";
import { when } from "../format.js";
import { STATES, duration } from "./words.js";

export function runsView() {
  const list = h("ul", { class: "tune-runs" });
  const element = h("section", { class: "tuning-runs", "aria-labelledby": "runs-title" }, h("h2", { id: "runs-title" }, "Runs"), list);
  return {
    element,
    show(runs, open) {
      element.hidden = !runs.length;
      list.replaceChildren(...runs.map((run) => row(run, run.id === open)));
    },
  };
}

function row(run, current) {
  const facts = [run.model, run.state === "running" ? `since ${when(run.created)}` : `${when(run.created)}, ${duration(run.seconds)}`];
  return h(
    "li",
    {},
    h(
      "a",
      { href: `#/tuning/${run.id}`, class: "tune-run-link", "aria-current": current ? "page" : null },
      h("span", { class: "tune-run-name" }, run.name, run.used && h("span", { class: "tag" }, "in use")),
      h("span", { class: "tune-run-state", dataset: { state: run.state } }, STATES[run.state]),
      h("span", { class: "hint tune-run-facts" }, facts.join(" · ")),
    ),
  );
}
