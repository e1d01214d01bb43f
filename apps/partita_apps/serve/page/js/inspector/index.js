/**
 * The inspector: a reply token by token, and the cache and the prompt behind it; of the reply that is being written, or
 * of any older one whose trace was kept.
 *
 * Not here: how each part is drawn. Holds always: a run that begins is followed; what is not in sight is not drawn; what
 * costs more than a few tokens is drawn a few times a second at most.
 */

import { h, iconButton } from "../dom.js";
import { number, plural } from "../words.js";
import { CacheView } from "./cache.js";
import { Detail } from "./detail.js";
import { Prompt } from "./prompt.js";
import { Record } from "./record.js";
import { named } from "./shown.js";
import { counted, legend, Tokens } from "./tokens.js";
import { Times } from "./times.js";

const PART = 1000; // tokens that are fetched at once
const SLOW = 250; // milliseconds between two drawings of all but the tokens, and one more for every TOKENS
const TOKENS = 20;

export function mountInspector(root, app) {
  const panel = new Panel(root, app);
  const { store } = app;
  store.on("live", ({ kind, data, run }) => panel.event(kind, data, run));
  store.on("run", () => panel.choose());
  store.on("route", () => panel.choose());
  store.on("path", () => panel.choose());
  store.on("inspector", () => panel.choose());
  panel.run = store.route.inspect ? store.run : null; // an address that names a reply is what was asked for
  panel.choose();
}

class Panel {
  constructor(root, app) {
    Object.assign(this, { root, app, record: null, run: null, slowAt: 0, frame: null });
    this.tokens = new Tokens((position, kept) => this.show(position, kept));
    this.detail = new Detail((position, entry) => this.branch(position, entry));
    this.times = new Times((position) => this.tokens.select(position));
    this.cache = new CacheView();
    this.prompt = new Prompt();
    this.build();
  }

  build() {
    this.which = h("p", { class: "inspector-which faint" });
    this.count = h("p", { class: "small" });
    this.surprise = h("p", { class: "small" });
    this.jump = h("button", { type: "button", class: "button", onClick: () => (this.tokens.nextUnlikely(), this.tokens.element.focus({ preventScroll: true })) }, "Next unlikely token");
    this.empty = h("div", { class: "inspector-empty" });
    this.parts = h(
      "div",
      { class: "inspector-parts" },
      section("Tokens", this.count, this.tokens.element, h("div", { class: "token-tools" }, legend(), this.jump), this.detail.element),
      section("Surprise", this.surprise),
      section("Time per token", this.times.element),
      section("Cache", this.cache.element),
      section("Prompt", this.prompt.element),
    );
    const close = iconButton("close", "Close the inspector", () => this.close());
    this.root.replaceChildren(h("header", { class: "inspector-head" }, h("div", {}, h("h2", {}, "Inspector"), this.which), close), this.empty, this.parts);
  }

  close() {
    this.leaveRoute();
    this.app.inspector(false);
    this.app.focusComposer({ quietly: true });
  }

  /** The address names no reply any more. */
  leaveRoute() {
    const { store } = this.app;
    if (!store.route.inspect) return;
    history.replaceState(null, "", `#/chat/${encodeURIComponent(store.route.chat)}`);
    store.route = { ...store.route, inspect: null };
  }

  get open() {
    return !this.root.hidden;
  }

  /** Show what is to be shown now: a run that has begun, the reply that the address names, else the last one. */
  choose() {
    const { store } = this.app;
    const run = store.run && store.run.chat === store.chat?.id ? store.run : null;
    if (run && run !== this.run) return this.follow(run);
    if (run && !store.route.inspect) return this.render();
    const wanted = store.route.inspect ?? this.last();
    if (wanted === null) this.forget();
    else if (wanted !== this.record?.message) this.load(wanted);
    this.render();
  }

  /** The reply that is looked at, as long as it is in the chat's branch; else the last one with a trace. */
  last() {
    const { path } = this.app.store;
    if (this.record && path.some(({ id }) => id === this.record.message)) return this.record.message;
    return path.findLast(({ role, has_trace }) => role === "assistant" && has_trace)?.id ?? null;
  }

  forget() {
    this.record = null;
    this.why = null;
  }

  start(record) {
    this.record = record;
    this.why = null;
    this.tokens.following = record.live;
    this.tokens.reset(record.tokens);
    this.detail.show(null, null);
    this.slowAt = 0;
  }

  follow(run) {
    this.leaveRoute();
    this.run = run;
    const record = new Record(run.reply);
    record.live = true;
    for (const { kind, data } of run.trace) record.add(kind, data);
    this.start(record);
    this.render();
  }

  event(kind, data, run) {
    if (run !== this.run || this.record?.message !== run.reply || !this.record.live) return;
    if (kind === "end") this.record.live = this.tokens.following = false;
    else this.record.add(kind, data);
    if (kind === "end") this.slowAt = 0;
    this.render();
  }

  /** What was kept of an older reply, a part after the other. */
  async load(message) {
    const record = new Record(message);
    this.start(record);
    try {
      do {
        const path = `/app/messages/${encodeURIComponent(message)}/trace?from=${record.tokens.length}&count=${PART}`;
        const part = await this.app.api.get(path);
        if (this.record !== record) return;
        record.keep(part);
        if (!part.tokens.length) break;
        this.render();
      } while (record.tokens.length < record.total);
      if (!record.total) this.why = "Nothing was kept of how this reply was written: it came from another program, or from a server without an inspector.";
    } catch (error) {
      if (this.record !== record) return;
      this.why = error.message;
    }
    this.slowAt = 0;
    this.render();
  }

  render() {
    if (this.open) this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    const { record } = this;
    const known = record && (record.version > 0 || record.live) && !this.why;
    this.parts.hidden = !known;
    this.empty.hidden = Boolean(known);
    this.which.textContent = this.title();
    if (!known) return this.nothing();
    this.tokens.grow();
    const now = performance.now();
    const pause = SLOW + record.tokens.length / TOKENS;
    if (now - this.slowAt < pause && this.slowAt) {
      this.late ??= setTimeout(() => ((this.late = null), this.render()), pause);
    } else {
      this.slowAt = now;
      this.slow(record);
    }
    if (this.tokens.selected === null && !this.hovered) this.detail.show(null, null);
    else this.show(this.hovered ?? this.tokens.selected, false);
  }

  slow(record) {
    this.count.textContent = record.tokens.length ? counted(record.tokens) : "The reply has no token yet.";
    this.jump.hidden = !record.tokens.length;
    this.surprise.replaceChildren(...surprise(record));
    this.times.draw(record);
    this.times.mark(this.tokens.selected);
    this.cache.draw(record.state);
    this.prompt.draw(record);
  }

  title() {
    if (!this.record) return "";
    if (this.record.live) return "The reply that is being written";
    const message = this.app.store.messages.find(({ id }) => id === this.record.message);
    return [message?.model, message && new Date(message.created * 1000).toLocaleString()].filter(Boolean).join(", ");
  }

  nothing() {
    const text = this.why
      ? [h("p", {}, this.why)]
      : [
          h("p", {}, "Ask something, and see how the reply comes to be:"),
          h(
            "ul",
            {},
            h("li", {}, "each token, with how sure the model was and what else it might have said,"),
            h("li", {}, "how long each one took,"),
            h("li", {}, "the cache slot by slot, with what stays, what is seen and what is forgotten,"),
            h("li", {}, "and the prompt, as it is read in chunks."),
          ),
        ];
    this.empty.replaceChildren(...(this.record && !this.why ? [h("p", {}, "Fetching what was kept of this reply.")] : text));
  }

  show(position, kept) {
    this.hovered = kept || position === this.tokens.selected ? null : position;
    const token = position === null ? null : this.record?.tokens[position];
    const busy = Boolean(this.app.store.run);
    this.detail.show(token ?? null, position, { kept, busy });
    this.times.mark(position);
  }

  async branch(position, entry) {
    const { app, record } = this;
    const [id, text, , bytes] = entry;
    try {
      await app.actions.branchAtToken(record.message, position, id);
      this.leaveRoute(); // the new reply is what is looked at, even where it has ended already
      this.choose();
      app.toEnd?.();
      app.say(`A new reply goes on with ${named({ text, bytes })}.`);
    } catch (error) {
      app.fail(error);
    }
  }
}

function section(title, ...children) {
  const id = `inspector-${title.toLowerCase().replaceAll(" ", "-")}`;
  return h("section", { class: "inspector-section", "aria-labelledby": id }, h("h3", { id }, title), children);
}

function surprise(record) {
  const found = record.surprise;
  if (!found) return [h("span", { class: "hint" }, "How much the reply surprised the model that wrote it.")];
  const perplexity = Math.exp(found.nats);
  return [
    h("strong", { class: "number" }, `Perplexity ${number(perplexity, perplexity < 100 ? 2 : 0)}. `),
    `Over ${plural(found.count, "token")} the model was as unsure as if it had chosen among ${number(perplexity, perplexity < 10 ? 1 : 0)} equally likely tokens each time (${number(found.nats, 2)} nats a token).`,
  ];
}
