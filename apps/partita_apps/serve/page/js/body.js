/**
 * The text of a reply, whole or while it grows: closed blocks are the server's HTML, the open one is plain text.
 *
 * Holds always: closed blocks are never touched again; an open block is text nodes of at most CHUNK characters or one
 * line, so that a long one costs no more than a short one; text is shown within a few frames of its coming.
 */

import { fragment, h, iconButton } from "./dom.js";

const CHUNK = 2000;
const BLOCKS = 12; // of a part: parts that are out of sight cost nothing
const PIECES = 400; // nodes of a piece of code
const FENCE = /^\s{0,3}(?:```+|~~~+)[^\n]*\n?/;
const calm = () => document.hidden || matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Nodes of closed blocks: code with a head that names its language and copies it; tables that scroll by themselves. */
function closedBlocks(html) {
  const nodes = fragment(html);
  for (const figure of nodes.querySelectorAll("figure.code")) dressCode(figure);
  if (nodes.querySelector("msqrt, mroot")) lookForMathFont();
  for (const table of nodes.querySelectorAll("table")) {
    const scroll = h("div", { class: "table-scroll", tabindex: "0", role: "group", "aria-label": "Table" });
    table.replaceWith(scroll);
    scroll.append(table);
  }
  return nodes;
}

/** Browsers draw roots with a font that has measures for formulas; where there is none, lines stand for them. */
function lookForMathFont() {
  const root = document.documentElement;
  if (root.dataset.roots) return;
  const math = (name) => document.createElementNS("http://www.w3.org/1998/Math/MathML", name);
  const [probe, sqrt, letter] = [math("math"), math("msqrt"), math("mi")];
  letter.textContent = "d";
  sqrt.append(letter);
  probe.append(sqrt);
  document.body.append(probe);
  root.dataset.roots = sqrt.getBoundingClientRect().width - letter.getBoundingClientRect().width > 2 ? "font" : "lines";
  probe.remove();
}

function dressCode(figure) {
  const pre = figure.querySelector("pre");
  const language = figure.querySelector("figcaption")?.textContent ?? "";
  const copy = copyButton("Copy code", () => pre.textContent.replace(/\n$/, ""));
  pre.tabIndex = 0;
  inPieces(pre.querySelector("code"));
  figure.replaceChildren(h("figcaption", { class: "code-head" }, h("span", {}, language || "code"), copy), pre);
}

/** Long code as pieces of whole lines, so that only those in sight are laid out. */
function inPieces(code) {
  if (code.childNodes.length < 2 * PIECES) return;
  const pieces = [];
  let piece = [];
  for (const node of [...code.childNodes]) {
    piece.push(node);
    if (piece.length < PIECES) continue;
    const line = node.textContent.lastIndexOf("\n");
    const whole = line === node.textContent.length - 1;
    if (line < 0 || (!whole && node.nodeType !== Node.TEXT_NODE)) continue;
    const rest = whole ? null : node.splitText(line + 1);
    pieces.push(piece);
    piece = rest ? [rest] : [];
  }
  if (piece.length) pieces.push(piece);
  code.replaceChildren(...pieces.map((nodes) => h("span", { class: "piece" }, nodes)));
}

/** Put closed blocks behind those of `body` (before `end`), in parts. */
function addBlocks(body, nodes, end) {
  let part = end ? end.previousElementSibling : body.lastElementChild;
  for (const node of [...nodes.children]) {
    if (!part || part.childElementCount >= BLOCKS) body.insertBefore((part = h("div", { class: "part" })), end);
    part.append(node);
  }
}

/** A whole reply's HTML in place of what `body` has. */
export function fillBody(body, html) {
  body.replaceChildren();
  addBlocks(body, closedBlocks(html), null);
}

/** A button that copies what `text()` gives and says so on itself for a moment. */
export function copyButton(label, text, props = {}) {
  const button = iconButton("copy", label, async () => {
    const done = await copy(text());
    const use = button.querySelector("use");
    use.setAttribute("href", done ? "#icon-check" : "#icon-close");
    button.setAttribute("aria-label", done ? "Copied" : "Could not be copied");
    setTimeout(() => {
      use.setAttribute("href", "#icon-copy");
      button.setAttribute("aria-label", label);
    }, 1600);
  }, props);
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // not on this machine's own address, or not allowed
  }
}

/** A reply that grows. `element` is put where its text belongs. */
export class GrowingBody {
  #open = h("div", { class: "open-block" });
  #text = ""; // of the open block, as far as it is shown
  #pending = ""; // of the open block, not shown yet
  #frame = null;
  #node = null;
  #code = false;

  constructor() {
    this.element = h("div", { class: "prose growing" }, this.#open);
  }

  /** Text that is appended to the open block. once: at once, not spread over frames. */
  append(text, once = false) {
    this.#pending += text;
    if (once || calm()) this.#flush();
    else this.#frame ??= requestAnimationFrame(() => this.#reveal());
  }

  /** Blocks that have closed; `rest` is what the open block has now. again: `html` is of all blocks, in their place. */
  close(html, rest, again = false) {
    this.#pending = "";
    if (again) this.element.replaceChildren(this.#open);
    addBlocks(this.element, closedBlocks(html), this.#open);
    this.#restart(rest);
  }

  /** No more is coming: what is open is shown as it is. */
  end() {
    this.#flush();
    if (!this.#text) this.#open.remove();
    this.element.classList.remove("growing");
  }

  #flush() {
    const text = this.#pending;
    this.#pending = "";
    this.#show(text);
  }

  #reveal() {
    this.#frame = null;
    const length = Math.max(2, Math.ceil(this.#pending.length / 5));
    const text = this.#pending.slice(0, length);
    this.#pending = this.#pending.slice(length);
    this.#show(text);
    if (this.#pending) this.#frame = requestAnimationFrame(() => this.#reveal());
  }

  #restart(text) {
    this.#open.replaceChildren();
    this.#open.classList.remove("code-open");
    this.#text = "";
    this.#node = null;
    this.#code = false;
    this.#show(text);
  }

  #show(text) {
    if (!text) return;
    const before = this.#text;
    this.#text += text;
    if (!this.#code && FENCE.test(this.#text) && this.#text.includes("\n")) return this.#beginCode();
    if (!before) text = text.replace(/^\n+/, "");
    this.#add(text);
  }

  /** A fenced block looks like one before it closes. */
  #beginCode() {
    this.#code = true;
    this.#node = null;
    this.#open.replaceChildren();
    this.#open.classList.add("code-open");
    this.#add(this.#text.replace(FENCE, ""));
  }

  #add(text) {
    if (!text) return;
    if (this.#node && this.#node.length > CHUNK) {
      const line = text.indexOf("\n");
      if (line >= 0) {
        this.#node.appendData(text.slice(0, line));
        this.#node = null;
        text = text.slice(line + 1);
      }
    }
    if (this.#node) this.#node.appendData(text);
    else {
      this.#node = document.createTextNode(text);
      this.#open.append(h("div", {}, this.#node));
    }
  }
}
