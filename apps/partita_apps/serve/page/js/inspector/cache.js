/**
 * The cache of a reply, drawn slot by slot: sinks, what the newest token sees, what it sees no longer, what is free.
 *
 * Not here: which token is where (slots.js). Holds always: colours are those of the legend's swatches, in either theme;
 * where there are many slots a cell is several of them, and the legend says how many.
 */

import { h } from "../dom.js";
import { memory, number, plural } from "../words.js";
import { count, KINDS, newest, slot, totals } from "./slots.js";

const PITCH = 8; // pixels from cell to cell
const MOST = 1200; // cells of one drawing

export class CacheView {
  constructor() {
    this.element = h("div", { class: "cache" });
    this.grids = [];
    this.shape = "";
    this.observer = new ResizeObserver(() => this.paint());
    const again = () => requestAnimationFrame(() => this.paint());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    new MutationObserver(again).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  }

  /** state: of the cache, null where nothing is known of it yet. */
  draw(state) {
    if (state === this.state && this.shape) return;
    this.state = state;
    const shape = state ? JSON.stringify(state.layers.map(({ count, sinks, window, turns }) => [count, sinks, window, turns])) : "none";
    if (shape !== this.shape) this.build(shape);
    if (!state) return;
    this.words.textContent = words(state);
    this.grids.forEach((grid, i) => grid.update(state, state.layers[i]));
  }

  build(shape) {
    this.shape = shape;
    this.observer.disconnect();
    if (!this.state) {
      this.grids = [];
      this.element.replaceChildren(h("p", { class: "hint" }, "While a reply is written, its cache is drawn here slot by slot: the first tokens that stay, those that the model sees, those that it forgets, and what is free."));
      return;
    }
    this.words = h("p", { class: "small" });
    this.grids = this.state.layers.map(() => new Grid());
    this.element.replaceChildren(this.words, ...this.grids.map((grid) => grid.element));
    this.grids.forEach((grid) => this.observer.observe(grid.canvas));
  }

  paint() {
    this.grids.forEach((grid) => grid.paint());
  }
}

/** The slots of one kind of layer. */
class Grid {
  constructor() {
    this.title = h("h4", {});
    this.canvas = h("canvas", { class: "slots", role: "img", onPointermove: (event) => this.point(event), onPointerleave: () => (this.pointed.textContent = "") });
    this.swatches = Object.fromEntries(KINDS.map((kind) => [kind, h("span", { class: `swatch ${kind}`, "aria-hidden": "true" })]));
    this.pointed = h("p", { class: "hint number pointed" });
    this.legend = h("ul", { class: "legend slots-legend" });
    this.element = h("figure", { class: "grid" }, this.title, this.canvas, this.pointed, this.legend);
    for (const kind of KINDS) this.swatches[kind].hidden = false;
  }

  update(state, layer) {
    Object.assign(this, { state, layer });
    const found = totals(state, layer);
    this.per = Math.max(1, 2 ** Math.ceil(Math.log2(count(layer) / MOST)));
    const range = layer.window === null ? "see every token" : `see ${plural(layer.window + layer.sinks, "token")}`;
    this.title.textContent = state.layers.length > 1 ? `${plural(layer.count, "layer")} that ${range}` : `${plural(layer.count, "layer")}, ${plural(count(layer), "slot")} each`;
    this.lines(found);
    this.canvas.setAttribute("aria-label", `${this.title.textContent}: ${[...this.legend.children].map((line) => line.textContent).join("; ")}`);
    this.paint();
  }

  lines(found) {
    const { bits } = this.state;
    const packed = bits.keys < 16 || bits.values < 16;
    const ring = packed ? `keys in ${bits.keys} bits, values in ${bits.values}` : `in ${bits.keys} bits`;
    const lines = [
      found.sink && ["sink", `${plural(found.sink, "first token")}, kept for ever in ${bits.sinks} bits${packed ? ", never quantized" : ""}`],
      ["seen", `${plural(found.seen, "token")} that the newest one sees, ${ring}`],
      found.behind && ["behind", `${plural(found.behind, "token")} that it sees no longer, to be overwritten`],
      found.free && ["free", `${plural(found.free, "free slot")}`],
      found.later && ["later", `${plural(found.later, "slot")} without memory until it is needed`],
    ].filter(Boolean);
    this.packed = packed;
    this.legend.replaceChildren(
      ...lines.map(([kind, text]) => h("li", {}, this.swatches[kind], text)),
      h("li", {}, h("span", { class: "swatch newest", "aria-hidden": "true" }), "the newest token"),
      this.per > 1 ? h("li", {}, h("span", { class: "swatch cell", "aria-hidden": "true" }), `a cell is ${this.per} slots`) : "",
    );
  }

  paint() {
    const { canvas, state, layer, per } = this;
    const width = canvas.clientWidth;
    if (!state || !width) return;
    const cells = Math.ceil(count(layer) / per);
    this.columns = Math.max(1, Math.floor((width + 1) / PITCH));
    const height = Math.ceil(cells / this.columns) * PITCH;
    const ratio = globalThis.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const colours = Object.fromEntries(KINDS.map((kind) => [kind, colour(this.swatches[kind])]));
    for (let cell = 0; cell < cells; cell++) this.cell(context, cell, colours);
    const head = newest(state, layer);
    if (head !== null) {
      context.strokeStyle = getComputedStyle(canvas).color;
      context.lineWidth = 1.5;
      const [x, y] = this.place(Math.floor(head / per));
      context.strokeRect(x - 0.25, y - 0.25, PITCH - 0.5, PITCH - 0.5);
    }
  }

  place(cell) {
    return [(cell % this.columns) * PITCH, Math.floor(cell / this.columns) * PITCH];
  }

  /** A cell's slots side by side in it, each as high as it is full: a quantized one is lower. */
  cell(context, cell, colours) {
    const { state, layer, per } = this;
    const end = Math.min((cell + 1) * per, count(layer));
    const found = { sink: 0, seen: 0, behind: 0, free: 0, later: 0 };
    for (let i = cell * per; i < end; i++) found[slot(state, layer, i).kind]++;
    const [left, top] = this.place(cell);
    const size = PITCH - 1;
    let x = left;
    for (const kind of KINDS) {
      if (!found[kind]) continue;
      const width = (size * found[kind]) / (end - cell * per);
      context.fillStyle = colours[kind];
      if (kind === "free" || kind === "later") {
        context.fillRect(x, kind === "free" ? top : top + size / 2 - 0.5, width, kind === "free" ? size : 1);
      } else {
        const height = this.packed && kind !== "sink" ? Math.round(size * 0.6) : size;
        context.fillRect(x, top + size - height, width, height);
        if (kind === "behind") context.clearRect(x, top + size - height + 2, width, 1.5);
      }
      x += width;
    }
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / PITCH);
    const first = (Math.floor((event.clientY - box.top) / PITCH) * this.columns + column) * this.per;
    if (!this.state || column >= this.columns || first < 0 || first >= count(this.layer)) return (this.pointed.textContent = "");
    const last = Math.min(first + this.per, count(this.layer)) - 1;
    const { kind, position } = slot(this.state, this.layer, first);
    const held = position === null ? (kind === "later" ? "no memory yet" : "free") : `token ${number(position + 1)} of the chat`;
    this.pointed.textContent = first === last ? `Slot ${number(first + 1)}: ${held}` : `Slots ${number(first + 1)} to ${number(last + 1)}: from ${held} on`;
  }
}

function colour(swatch) {
  // what is not in the document has no colours yet
  return swatch.isConnected ? getComputedStyle(swatch).color : "transparent";
}

function words(state) {
  const { context, held, forgotten, bytes, kv, seen } = state;
  const found = [];
  found.push(context ? `${number(held)} of ${plural(context, "token")} are held` : `${plural(held, "token")} are held`);
  found[0] += `, ${memory(bytes)}, format ${kv}.`;
  if (forgotten > 0) found.push(`The context is full: of ${number(seen)} tokens so far the first ones stay, and ${number(forgotten)} are forgotten.`);
  return found.join(" ");
}
