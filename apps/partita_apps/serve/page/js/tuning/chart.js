/**
 * The losses of a run, by step: a curve of training, points of validation, numbers under the pointer or by arrow keys,
 * and the same as a table. Draws what it is told; asks nobody.
 *
 * Holds always: series differ in shape, not in colour alone; a curve has a bounded number of points.
 */

import { h, svg } from "../dom.js";
import { loss } from "./words.js";

const HEIGHT = 260;
const MARGIN = { top: 14, right: 14, bottom: 34, left: 46 };
const POINTS = 600;
const ROWS = 40; // of the table

/** Returns {element, show({train, valid, steps})}: lists of [step, loss], and the steps of the whole run. */
export function lossChart() {
  const picture = svg("svg", { class: "tune-loss-picture", height: HEIGHT, "aria-hidden": "true", focusable: "false" });
  const readout = h("p", { class: "tune-loss-readout number", "aria-live": "polite" });
  const frame = h(
    "div",
    { class: "tune-loss-frame", tabindex: 0, role: "group", "aria-label": "Loss by step. Arrow keys read single steps; the table below has the same numbers." },
    picture,
  );
  const body = h("tbody", {});
  const table = h(
    "details",
    { class: "tune-loss-table" },
    h("summary", {}, "The same as a table"),
    h(
      "div",
      { class: "tune-loss-scroll", tabindex: 0, role: "region", "aria-label": "Losses by step" },
      h("table", {}, h("caption", { class: "visually-hidden" }, "Loss by step"), h("thead", {}, h("tr", {}, ...["Step", "Training", "Validation"].map((text) => h("th", { scope: "col" }, text)))), body),
    ),
  );
  const element = h("figure", { class: "tune-loss" }, h("figcaption", { class: "tune-loss-head" }, legend(), readout), frame, table);
  const state = { train: [], valid: [], steps: 1, at: null, width: 0 };
  let asked = 0;
  const redraw = () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      draw(picture, state);
      readout.textContent = words(state);
      if (table.open) fill(body, state);
    });
  };
  new ResizeObserver(([entry]) => {
    state.width = Math.floor(entry.contentRect.width);
    redraw();
  }).observe(frame);
  table.addEventListener("toggle", redraw);
  follow(frame, picture, state, redraw);
  return {
    element,
    show(given) {
      Object.assign(state, given);
      redraw();
    },
  };
}

function legend() {
  const mark = (name) => {
    const drawn = svg("svg", { class: `tune-loss-mark ${name}`, viewBox: "0 0 24 10", width: 24, height: 10, "aria-hidden": "true" });
    drawn.append(svg("path", { d: "M1 5h22" }));
    if (name === "valid") drawn.append(svg("circle", { cx: 12, cy: 5, r: 3 }));
    return drawn;
  };
  return h("ul", { class: "tune-loss-legend" }, h("li", {}, mark("train"), "Training"), h("li", {}, mark("valid"), "Validation (texts it does not learn from)"));
}

/** The pointer and the arrow keys choose a step. */
function follow(frame, picture, state, redraw) {
  const choose = (at) => {
    if (state.at === at) return;
    state.at = at;
    redraw();
  };
  frame.addEventListener("pointermove", (event) => {
    const { left } = picture.getBoundingClientRect();
    const inner = state.width - MARGIN.left - MARGIN.right;
    choose(nearest(state, ((event.clientX - left - MARGIN.left) / inner) * Math.max(state.steps, 1)));
  });
  frame.addEventListener("pointerleave", () => choose(null));
  frame.addEventListener("blur", () => choose(null));
  frame.addEventListener("keydown", (event) => {
    const all = known(state);
    if (!all.length || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const last = all.length - 1;
    const here = state.at === null ? last + 1 : all.indexOf(state.at);
    const next = { ArrowLeft: here - 1, ArrowRight: state.at === null ? last : here + 1, Home: 0, End: last }[event.key];
    choose(all[Math.min(Math.max(next, 0), last)]);
  });
}

/** All steps of which there is a number, in order. */
function known({ train, valid }) {
  return [...new Set([...train, ...valid].map(([step]) => step))].sort((a, b) => a - b);
}

function nearest(state, step) {
  let best = null;
  for (const each of known(state)) if (best === null || Math.abs(each - step) < Math.abs(best - step)) best = each;
  return best;
}

/** The numbers at the chosen step, or the latest ones. */
function words({ train, valid, at }) {
  if (!train.length && !valid.length) return "Losses appear here with the first step.";
  const of = (points) => (at === null ? points.at(-1) : points.find(([step]) => step === at));
  const [trained, validated] = [of(train), of(valid)];
  const step = at ?? Math.max(trained?.[0] ?? 0, validated?.[0] ?? 0);
  const parts = [];
  if (trained) parts.push(`training ${loss(trained[1])}`);
  if (validated) parts.push(`validation ${loss(validated[1])}${at === null && validated[0] !== step ? ` (step ${validated[0]})` : ""}`);
  return `Step ${step}: ${parts.join(", ")}`;
}

function fill(body, { train, valid }) {
  const rows = new Map();
  const take = (points, place) => {
    for (const [step, value] of thinned(points, ROWS)) {
      if (!rows.has(step)) rows.set(step, [null, null]);
      rows.get(step)[place] = value;
    }
  };
  take(train, 0);
  take(valid, 1);
  const sorted = [...rows].sort(([a], [b]) => a - b);
  body.replaceChildren(...sorted.map(([step, values]) => h("tr", {}, h("th", { scope: "row" }, step), ...values.map((value) => h("td", {}, loss(value))))));
}

/** At most so many points, each the mean of neighbours. */
export function thinned(points, most = POINTS) {
  const width = Math.ceil(points.length / most);
  if (width <= 1) return points;
  const found = [];
  for (let at = 0; at < points.length; at += width) {
    const group = points.slice(at, at + width);
    found.push([group.at(-1)[0], group.reduce((sum, [, value]) => sum + value, 0) / group.length]);
  }
  return found;
}

// --- the picture

function draw(picture, state) {
  const { train, valid, steps, at, width } = state;
  picture.replaceChildren();
  if (width < 120) return;
  picture.setAttribute("width", width);
  picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const values = [...train, ...valid].map(([, value]) => value);
  const scale = scales(values, steps, width);
  axes(picture, scale, width);
  if (!values.length) return;
  const curve = (points) => points.map(([step, value], i) => `${i ? "L" : "M"}${scale.x(step).toFixed(1)} ${scale.y(value).toFixed(1)}`).join("");
  picture.append(svg("path", { class: "tune-curve train", d: curve(thinned(train)) }));
  picture.append(svg("path", { class: "tune-curve valid", d: curve(valid) }));
  for (const [step, value] of thinned(valid, 60)) picture.append(svg("circle", { class: "tune-point valid", cx: scale.x(step), cy: scale.y(value), r: 3.5 }));
  if (train.length === 1) picture.append(svg("circle", { class: "tune-point train", cx: scale.x(train[0][0]), cy: scale.y(train[0][1]), r: 2.5 }));
  if (at !== null) cursor(picture, state, scale);
}

function cursor(picture, { train, valid, at }, scale) {
  const x = scale.x(at);
  picture.append(svg("path", { class: "tune-cursor", d: `M${x} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}` }));
  for (const [points, name] of [[train, "train"], [valid, "valid"]]) {
    const found = points.find(([step]) => step === at);
    if (found) picture.append(svg("circle", { class: `tune-chosen ${name}`, cx: x, cy: scale.y(found[1]), r: 5 }));
  }
}

function scales(values, steps, width) {
  const low = values.length ? Math.min(...values) : 0;
  const high = values.length ? Math.max(...values) : 1;
  const room = Math.max((high - low) * 0.06, 0.01);
  const marks = ticks(low - room, high + room, 5);
  const [bottom, top] = [Math.min(low - room, marks[0]), Math.max(high + room, marks.at(-1))];
  const [inner, tall] = [width - MARGIN.left - MARGIN.right, HEIGHT - MARGIN.top - MARGIN.bottom];
  return {
    marks,
    steps: ticks(0, Math.max(steps, 1), width < 480 ? 4 : 8).filter(Number.isInteger),
    x: (step) => MARGIN.left + (inner * step) / Math.max(steps, 1),
    y: (value) => MARGIN.top + tall * (1 - (value - bottom) / (top - bottom)),
  };
}

/** Round numbers between two. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let value = Math.ceil(low / width) * width; value <= high + width * 1e-9; value += width) found.push(Number(value.toPrecision(12)));
  return found;
}

function axes(picture, scale, width) {
  const bottom = HEIGHT - MARGIN.bottom;
  for (const value of scale.marks) {
    const y = scale.y(value);
    picture.append(svg("path", { class: "tune-grid", d: `M${MARGIN.left} ${y}H${width - MARGIN.right}` }));
    picture.append(svg("text", { class: "tune-tick", x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, Number(value.toPrecision(4))));
  }
  for (const step of scale.steps) picture.append(svg("text", { class: "tune-tick", x: scale.x(step), y: bottom + 16, "text-anchor": "middle" }, step));
  picture.append(svg("text", { class: "tune-tick", x: width - MARGIN.right, y: bottom + 30, "text-anchor": "end" }, "step"));
  picture.append(svg("path", { class: "tune-axis", d: `M${MARGIN.left} ${bottom}H${width - MARGIN.right}` }));
}
