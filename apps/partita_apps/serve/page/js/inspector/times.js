/**
 * The time between tokens as a line, with its median and its slowest one. Many tokens share a column, which is as high as
 * their slowest.
 */

import { h, svg } from "../dom.js";
import { named, time } from "./shown.js";

const WIDTH = 320;
const HEIGHT = 56;
const COLUMNS = 160;

export class Times {
  /** onSelect(position): a place of the line was clicked. */
  constructor(onSelect) {
    this.line = svg("path", { class: "spark-line" });
    this.area = svg("path", { class: "spark-area" });
    this.median = svg("line", { class: "spark-median", x1: 0, x2: WIDTH });
    this.slowest = svg("circle", { class: "spark-slowest", r: 3 });
    this.here = svg("line", { class: "spark-here", y1: 0, y2: HEIGHT });
    this.drawing = svg(
      "svg",
      { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      this.area,
      this.line,
      this.median,
      this.here,
      this.slowest,
    );
    this.words = h("p", { class: "small" });
    this.element = h("div", { class: "times" }, this.drawing, this.words);
    this.drawing.addEventListener("click", (event) => {
      const box = this.drawing.getBoundingClientRect();
      const part = (event.clientX - box.left) / box.width;
      if (this.count) onSelect(Math.min(Math.floor(part * this.count), this.count - 1));
    });
    this.count = 0;
  }

  draw(record) {
    const { tokens, times } = record;
    this.count = tokens.length;
    this.drawing.toggleAttribute("hidden", !times);
    if (!times) {
      this.words.replaceChildren(h("span", { class: "hint" }, "From the second token on, a line here shows how long each one took."));
      return;
    }
    const slowest = tokens[times.slowest];
    const height = (ms) => HEIGHT - 4 - (ms / slowest.ms) * (HEIGHT - 10);
    const columns = Math.min(COLUMNS, tokens.length);
    const points = [];
    for (let i = 0; i < columns; i++) {
      let most = null;
      const end = Math.floor(((i + 1) * tokens.length) / columns);
      for (let j = Math.floor((i * tokens.length) / columns); j < end; j++) if (!tokens[j].given && tokens[j].ms !== null) most = Math.max(most, tokens[j].ms);
      if (most === null) continue; // nothing was measured here
      points.push(`${(((i + 0.5) * WIDTH) / columns).toFixed(1)} ${height(most).toFixed(1)}`);
    }
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${points[0].split(" ")[0]} ${HEIGHT}L${points.join("L")}L${points.at(-1).split(" ")[0]} ${HEIGHT}Z`);
    for (const end of ["y1", "y2"]) this.median.setAttribute(end, height(times.median));
    this.slowest.setAttribute("cx", ((times.slowest + 0.5) * WIDTH) / tokens.length);
    this.slowest.setAttribute("cy", height(slowest.ms));
    const text = `Median ${time(times.median)} (dashed); slowest ${time(slowest.ms)}: token ${times.slowest + 1}, ${named(slowest)}.`;
    this.words.textContent = text;
    this.drawing.setAttribute("aria-label", `Time per token. ${text}`);
  }

  /** Mark a token's place; null: none. */
  mark(position) {
    this.here.toggleAttribute("hidden", position === null);
    if (position === null || !this.count) return;
    for (const end of ["x1", "x2"]) this.here.setAttribute(end, ((position + 0.5) * WIDTH) / this.count);
  }
}
