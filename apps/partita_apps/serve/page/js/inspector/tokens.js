/**
 * The tokens of a reply, tinted by how sure the model was of each; walked by pointer and keyboard.
 *
 * Not here: what is shown of one token (detail.js). Holds always: only blocks near what is seen have elements, so that
 * 20,000 tokens cost no more than a screenful; the tint is never the only sign (underlines say the same).
 */

import { h } from "../dom.js";
import { number } from "../words.js";
import { breaks, named, percent, step, STEPS, visible } from "./shown.js";

const BLOCK = 200; // tokens
const MARGIN = "400px 0px"; // around what is seen
const HEIGHT = 480; // pixels of a block, before one was measured

export class Tokens {
  /** onShow(position, kept): a token is pointed at, or kept; null: none. */
  constructor(onShow) {
    this.onShow = onShow;
    this.blocks = [];
    this.selected = null;
    this.element = h("div", {
      class: "tokens",
      role: "listbox",
      tabindex: "0",
      "aria-label": "Tokens of the reply",
      onKeydown: (event) => this.key(event),
      onPointerover: (event) => this.point(event),
      onPointerleave: () => this.selected !== null && this.onShow(this.selected, false),
      onScroll: ({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => (this.pinned = scrollHeight - scrollTop - clientHeight < 32),
      onClick: (event) => this.click(event),
      onFocus: () => this.tokens.length && this.selected === null && this.select(0),
    });
    this.observer = new IntersectionObserver((entries) => this.seen(entries), { root: this.element, rootMargin: MARGIN });
    this.tokens = [];
  }

  /** Show a record from its beginning. */
  reset(tokens) {
    this.observer.disconnect();
    this.element.replaceChildren();
    this.element.removeAttribute("aria-activedescendant");
    this.grown = 0;
    this.pinned = true;
    Object.assign(this, { tokens, blocks: [], selected: null, height: HEIGHT });
    this.grow();
  }

  /** Tokens have been added to the end. */
  grow() {
    if (this.grown === this.tokens.length) return;
    this.grown = this.tokens.length;
    while (this.blocks.length * BLOCK < this.tokens.length) this.addBlock();
    for (const block of this.blocks.slice(-2)) if (block.filled !== null) this.fill(block);
    this.follow();
  }

  /** Stay at the end of a reply that is written, unless a person has gone elsewhere. */
  follow() {
    if (this.following && this.pinned) this.element.scrollTop = this.element.scrollHeight;
  }

  addBlock() {
    const start = this.blocks.length * BLOCK;
    const element = h("div", { class: "token-block", role: "presentation", dataset: { start } });
    const block = { element, start, filled: null };
    element.style.height = `${this.height}px`;
    this.blocks.push(block);
    this.element.append(element);
    this.observer.observe(element);
  }

  seen(entries) {
    for (const { target, isIntersecting, boundingClientRect } of entries) {
      const block = this.blocks[target.dataset.start / BLOCK];
      if (!block || block.element !== target) continue;
      if (isIntersecting) this.open(block);
      else this.close(block, boundingClientRect.height);
    }
  }

  open(block) {
    if (block.filled !== null) return;
    block.element.style.height = "";
    block.filled = block.start;
    this.fill(block);
    this.follow();
  }

  /** height: as it was when it went out of sight. */
  close(block, height) {
    if (block.filled === null) return;
    if (block.filled === block.start + BLOCK) this.height = height;
    block.element.style.height = `${height}px`;
    block.element.replaceChildren();
    block.filled = null;
  }

  /** Add the elements that a block lacks. */
  fill(block) {
    const end = Math.min(block.start + BLOCK, this.tokens.length);
    const added = document.createDocumentFragment();
    for (; block.filled < end && this.tokens[block.filled]; block.filled++) {
      added.append(this.chip(block.filled));
      if (breaks(this.tokens[block.filled])) added.append(document.createElement("br"));
    }
    block.element.append(added);
  }

  chip(position) {
    const token = this.tokens[position];
    const chip = document.createElement("span");
    chip.className = classes(token, position === this.selected);
    chip.id = `token-${position}`;
    chip.dataset.position = position;
    chip.setAttribute("role", "option");
    chip.setAttribute("aria-selected", String(position === this.selected));
    chip.setAttribute("aria-label", `${named(token)}, ${percent(token.p)}`);
    chip.textContent = visible(token.text, token.bytes);
    return chip;
  }

  at(position) {
    const block = this.blocks[Math.floor(position / BLOCK)];
    if (!block) return null;
    this.open(block);
    return block.element.querySelector(`#token-${position}`);
  }

  /** Keep a token, bring it into sight, and show it. */
  select(position) {
    if (this.selected !== null) this.mark(this.selected, false);
    this.selected = position;
    this.pinned = false;
    const chip = this.at(position);
    this.mark(position, true);
    chip?.scrollIntoView({ block: "nearest" });
    this.element.setAttribute("aria-activedescendant", `token-${position}`);
    this.onShow(position, true);
  }

  mark(position, on) {
    const chip = document.getElementById(`token-${position}`);
    chip?.classList.toggle("selected", on);
    chip?.setAttribute("aria-selected", String(on));
  }

  /** The next token after the kept one that the model found unlikely; from the first again behind the last. */
  nextUnlikely() {
    const count = this.tokens.length;
    const from = this.selected === null ? 0 : this.selected + 1;
    for (let i = 0; i < count; i++) {
      const position = (from + i) % count;
      const { p, given } = this.tokens[position];
      if (p !== null && p < 0.2 && !given) return this.select(position);
    }
  }

  point(event) {
    if (event.pointerType === "touch") return;
    const chip = event.target.closest(".token");
    if (chip) this.onShow(Number(chip.dataset.position), false);
  }

  click(event) {
    const chip = event.target.closest(".token");
    if (chip) this.select(Number(chip.dataset.position));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.tokens.length) return;
    const last = this.tokens.length - 1;
    const at = this.selected ?? 0;
    const to = {
      ArrowRight: () => Math.min(at + 1, last),
      ArrowLeft: () => Math.max(at - 1, 0),
      ArrowDown: () => this.line(at, 1),
      ArrowUp: () => this.line(at, -1),
      Home: () => 0,
      End: () => last,
      PageDown: () => Math.min(at + BLOCK, last),
      PageUp: () => Math.max(at - BLOCK, 0),
    }[event.key];
    if (!to) return;
    event.preventDefault();
    event.stopPropagation();
    this.select(to());
  }

  /** The token above or below, on the next line. */
  line(position, way) {
    const from = this.at(position)?.getBoundingClientRect();
    const last = this.tokens.length - 1;
    let best = position;
    let row = null;
    let nearest = Infinity;
    for (let i = position + way; from && i >= 0 && i <= last; i += way) {
      const box = this.at(i).getBoundingClientRect();
      if (Math.abs(box.top - from.top) < from.height / 2) continue;
      row ??= box.top;
      if (Math.abs(box.top - row) >= from.height / 2) break;
      const distance = Math.abs(box.left - from.left);
      if (distance < nearest) [best, nearest] = [i, distance];
    }
    return best;
  }
}

function classes(token, selected) {
  const found = ["token", `p-${step(token.p)}`];
  if (token.thought) found.push("thought");
  if (token.control || token.bytes) found.push("control");
  if (token.given) found.push("given");
  if (token.chosen) found.push("chosen");
  if (selected) found.push("selected");
  return found.join(" ");
}

/** What the tints mean. */
export function legend() {
  const steps = STEPS.map(({ name, text }) => h("li", {}, h("span", { class: `token p-${name}`, "aria-hidden": "true" }, "a"), text));
  return h("ul", { class: "legend", "aria-label": "Probability of a token" }, steps);
}

/** How many tokens of which kind, in words. */
export function counted(tokens) {
  const thoughts = tokens.reduce((sum, token) => sum + (token?.thought ? 1 : 0), 0);
  const given = tokens.reduce((sum, token) => sum + (token?.given ? 1 : 0), 0);
  const parts = [`${number(tokens.length)} token${tokens.length === 1 ? "" : "s"}`];
  if (thoughts) parts.push(`${number(thoughts)} of them thought (overlined)`);
  if (given) parts.push(`the first ${number(given)} taken over from another reply (dotted)`);
  return `${parts.join(", ")}.`;
}
