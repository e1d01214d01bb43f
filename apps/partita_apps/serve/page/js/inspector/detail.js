/**
 * One token of a reply: how probable it was, how long it took, what else the model might have said, and the way to have
 * it said. Knows nothing of other tokens.
 */

import { h, icon } from "../dom.js";
import { number } from "../words.js";
import { named, percent, surprise, time, visible } from "./shown.js";

export class Detail {
  /** onBranch(position, entry): go on from here with a runner-up [id, text, p, bytes]. */
  constructor(onBranch) {
    this.onBranch = onBranch;
    this.element = h("div", { class: "token-detail", role: "group", "aria-label": "The token" });
    this.shown = null;
  }

  /** token at a position, null: what one would see. busy: whether no branch can be begun now. */
  show(token, position, { kept = false, busy = false } = {}) {
    const shown = token && `${position} ${busy} ${kept}`;
    if (shown && shown === this.shown) return;
    this.shown = shown;
    if (!token) {
      this.element.replaceChildren(h("p", { class: "hint" }, "Point at a token, or walk through them with the arrow keys: here you see what else the model might have said. A click keeps the token."));
      return;
    }
    this.element.replaceChildren(
      h(
        "div",
        { class: "token-head" },
        h("span", { class: "token-name" }, visible(token.text, token.bytes)),
        h("span", { class: "number faint" }, `token ${number(position + 1)}, id ${token.id}`),
      ),
      h("p", { class: "token-words" }, words(token)),
      this.runnersUp(token, position, busy),
    );
  }

  runnersUp(token, position, busy) {
    if (!token.top.length) return h("p", { class: "hint" }, "What else it might have been was not measured.");
    const entries = token.top.some(([id]) => id === token.id) ? token.top : [...token.top, [token.id, token.text, token.p, token.bytes]];
    const most = Math.max(...entries.map(([, , p]) => p ?? 0), 1e-9);
    return h(
      "ol",
      { class: "runners", "aria-label": "What the model might have said here" },
      entries.map((entry) => this.runner(entry, token, position, busy, most)),
    );
  }

  runner(entry, token, position, busy, most) {
    const [id, text, p, bytes = ""] = entry;
    const own = id === token.id;
    const bar = h("span", { class: "runner-bar", "aria-hidden": "true" }, h("i"));
    bar.firstChild.style.setProperty("--part", `${(100 * (p ?? 0)) / most}%`);
    const label = `Continue from here with ${named({ text, bytes })}`;
    const action = own
      ? h("span", { class: "runner-own", title: "This is what was said" }, icon("check"), h("span", { class: "visually-hidden" }, "said"))
      : h(
          "button",
          { type: "button", class: "button icon-button", "aria-label": label, title: busy ? "A reply is being written: stop it first" : label, disabled: busy, onClick: () => this.onBranch(position, entry) },
          icon("branch"),
        );
    return h(
      "li",
      { class: own ? "runner own" : "runner" },
      h("span", { class: "runner-text" }, visible(text, bytes)),
      bar,
      h("span", { class: "runner-p number" }, percent(p)),
      action,
    );
  }
}

function words(token) {
  const parts = [];
  if (token.p === null) parts.push("Its probability was not measured");
  else parts.push(`Probability ${percent(token.p)}, surprise ${number(surprise(token.p), 1)} bit${surprise(token.p) === 1 ? "" : "s"}`);
  if (token.chosen) parts.push("chosen by you");
  else if (token.given) parts.push("taken over from another reply");
  else if (token.ms === null) parts.push("the first one, computed with the end of the prompt");
  else parts.push(time(token.ms));
  if (token.thought) parts.push("part of a thought");
  if (token.ends) parts.push("it ended the reply");
  else if (token.control) parts.push("a control token");
  return `${parts.join(", ")}.`;
}
