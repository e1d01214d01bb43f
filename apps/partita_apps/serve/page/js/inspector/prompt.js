/**
 * How the prompt was read: what was in the cache already, and the chunks of the rest with their sizes and times.
 */

import { h } from "../dom.js";
import { number, plural } from "../words.js";
import { time } from "./shown.js";

const MANY = 12; // chunks, of which the rest is folded

export class Prompt {
  constructor() {
    this.element = h("div", { class: "prompt" });
    this.drawn = "";
  }

  draw({ chunks }) {
    const drawn = JSON.stringify([chunks.length, chunks.at(-1)]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    if (!chunks.length) {
      this.element.replaceChildren(h("p", { class: "hint" }, "While a prompt is read, its chunks appear here: how many tokens each had, how long it took, and what was in the cache already."));
      return;
    }
    const { total, reused, done } = chunks.at(-1);
    const parts = [
      reused && part("reused", reused, `${plural(reused, "token")} were in the cache`),
      ...chunks.map((chunk, i) => part("chunk", chunk.tokens, `Chunk ${i + 1}: ${plural(chunk.tokens, "token")}`)),
      total > done && part("left", total - done, `${plural(total - done, "token")} left`),
    ];
    const rows = chunks.map(row);
    this.element.replaceChildren(
      h("div", { class: "chunks", "aria-hidden": "true" }, parts.filter(Boolean)),
      h("p", { class: "small" }, words(chunks)),
      h("ol", { class: "chunk-list number" }, rows.slice(0, MANY)),
      rows.length > MANY ? h("details", {}, h("summary", { class: "small" }, `${plural(rows.length - MANY, "more chunk")}`), h("ol", { class: "chunk-list number", start: MANY + 1 }, rows.slice(MANY))) : "",
    );
  }
}

function part(kind, tokens, title) {
  const element = h("span", { class: `chunk-part ${kind}`, title });
  element.style.flexGrow = tokens;
  return element;
}

function words(chunks) {
  const { total, reused } = chunks.at(-1);
  const read = chunks.reduce((sum, chunk) => sum + chunk.tokens, 0);
  const ms = chunks.reduce((sum, chunk) => sum + (chunk.ms ?? 0), 0);
  const found = [`The prompt has ${plural(total, "token")}.`];
  if (reused) found.push(`${number(reused)} of them were still in the cache from before (hatched) and were not read again.`);
  found.push(`${plural(read, "token")} ${read === 1 ? "was" : "were"} read in ${plural(chunks.length, "chunk")}${ms ? `, ${time(ms)} together` : ""}.`);
  return found.join(" ");
}

function row({ tokens, ms }) {
  const speed = ms && tokens > 1 ? `${number((1000 * tokens) / ms)} tokens/s` : "";
  return h("li", {}, h("span", {}, plural(tokens, "token")), h("span", {}, ms ? time(ms) : ""), h("span", { class: "faint" }, speed));
}
