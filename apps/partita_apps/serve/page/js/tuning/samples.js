/** What the model says to the same prompts before and after, side by side; below, how the data goes on, if it is known. */

import { h } from "../dom.js";

export function samplesView() {
  const list = h("ol", { class: "tune-samples" });
  const element = h(
    "section",
    { class: "tuning-part", hidden: true, "aria-labelledby": "samples-title" },
    h("h2", { id: "samples-title" }, "Samples"),
    h("p", { class: "hint" }, "The most probable reply to the same prompt, without chance: what differs is what was learnt."),
    list,
  );
  return {
    element,
    show(samples) {
      element.hidden = !samples.length;
      list.replaceChildren(...samples.map(sample));
    },
  };
}

function sample({ prompt, before, after, expected }) {
  return h(
    "li",
    { class: "tune-sample" },
    h("p", { class: "tune-sample-prompt" }, h("span", { class: "label" }, "Prompt"), h("span", { class: "tune-sample-text" }, prompt)),
    h("div", { class: "tune-sample-pair" }, reply("Before", before), after === null ? waiting() : reply("After", after, "after")),
    expected !== null && h("details", {}, h("summary", {}, "How the data goes on"), h("p", { class: "tune-sample-text" }, expected)),
  );
}

function reply(title, text, kind = "") {
  return h("div", { class: `tune-sample-reply ${kind}`.trim() }, h("h3", {}, title), h("p", { class: "tune-sample-text" }, text || "(nothing)"));
}

function waiting() {
  return h("div", { class: "tune-sample-reply" }, h("h3", {}, "After"), h("p", { class: "faint" }, "At the end of the run."));
}
