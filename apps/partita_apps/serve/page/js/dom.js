/**
 * Elements from descriptions, and the one place where text becomes HTML.
 *
 * Not here: any state. Holds always: `trusted` is the only Trusted Types policy of the page and gets nothing but HTML
 * that the server rendered and sanitised; all other text goes in as text nodes; no inline styles and no inline handlers.
 */

const SVG = "http://www.w3.org/2000/svg";
const policy = globalThis.trustedTypes?.createPolicy("partita", { createHTML: (html) => html });

/** HTML that the server rendered and sanitised, as the browser wants it. Never for anything else. */
export function trusted(html) {
  return policy ? policy.createHTML(html) : html;
}

/** Put the server's HTML into an element, in place of what it has. */
export function setHtml(element, html) {
  element.innerHTML = trusted(html);
}

/** The server's HTML as nodes that can be put anywhere. */
export function fragment(html) {
  const template = document.createElement("template");
  setHtml(template, html);
  return template.content;
}

const PROPERTIES = new Set(["value", "checked", "disabled", "indeterminate", "selected", "textContent", "htmlFor"]);

/**
 * An element. `props`: attributes; `class`; `dataset: {}`; `onClick: fn` and the like are listeners; false, null and
 * undefined are left out, true is an attribute without a value (`aria-…` and `data-…` are written out).
 * `children`: nodes, text, numbers, lists of them; null, false and undefined are left out.
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name === "dataset") Object.assign(element.dataset, value);
    else if (name.startsWith("on") && typeof value === "function") element.addEventListener(name.slice(2).toLowerCase(), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else attribute(element, name, value);
  }
  add(element, children);
  return element;
}

function attribute(element, name, value) {
  if (value === null || value === undefined) return;
  const spoken = name.startsWith("aria-") || name.startsWith("data-");
  if (value === false && !spoken) return;
  element.setAttribute(name, value === true && !spoken ? "" : String(value));
}

function add(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(element, child);
    else if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

/** One of the <symbol>s of index.html, by its name without `icon-`; hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon; `label` is its name and its tooltip. */
export function iconButton(name, label, onClick, props = {}) {
  const { class: extra = "", ...rest } = props;
  return h(
    "button",
    { type: "button", class: `button icon-button ${extra}`.trim(), "aria-label": label, title: label, onClick, ...rest },
    icon(name),
  );
}

/** An SVG element, for drawings. As `h`, without listeners. */
export function svg(tag, props, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props ?? {})) attribute(element, name, value);
  add(element, children);
  return element;
}
