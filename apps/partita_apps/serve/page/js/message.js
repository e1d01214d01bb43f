/**
 * One message as an element: what somebody wrote, a reply, what a tool answered.
 *
 * Not here: which messages are shown, and where (transcript.js). Holds always: what a person wrote is plain text; a reply
 * that grew here keeps its elements when it ends; nothing can be deleted from here.
 */

import { copyButton, fillBody, GrowingBody } from "./body.js";
import { h, icon, iconButton } from "./dom.js";
import { editForm } from "./edit.js";
import { duration, ending, figures, forgetting, number, plural, waiting } from "./words.js";

const LONG = 1600; // characters of a question beyond which it is folded

/** The view of a message: {id, element, update(message), dress()} and, of a reply, `live(kind, data, run)`. */
export function messageView(message, app) {
  if (message.role === "user") return new Question(message, app);
  if (message.role === "tool") return new ToolAnswer(message);
  return new Reply(message, app);
}

class View {
  constructor(message, kind, label) {
    this.id = message.id;
    this.message = message;
    this.foot = h("div", { class: "message-foot" });
    this.element = h("article", { class: `message ${kind}`, "aria-label": label, dataset: { id: message.id } });
    this.dressed = false;
    this.growing = null; // of a reply that is being written: its text
  }

  /** Put the buttons in, when the message comes near the part that is seen. */
  dress() {
    if (this.dressed) return;
    this.dressed = true;
    this.refoot();
  }

  /** What the server has of it now. */
  update(message) {
    const same = !this.growing && signature(message) === signature(this.message);
    this.message = message;
    if (!same) this.changed();
  }

  changed() {
    if (this.dressed) this.refoot();
  }

  refoot() {}
}

/** What of a message can change after it was made, and is shown. */
function signature({ state, siblings = [], has_trace, meta, html }) {
  return `${state} ${has_trace} ${html === null} ${siblings.join()} ${meta?.tokens} ${meta?.forgotten}`;
}

/** ‹ 2/3 › where a message has siblings; null where it has none. */
function siblings(message, app, what) {
  const ids = message.siblings ?? [];
  if (ids.length < 2) return null;
  const at = ids.indexOf(message.id);
  const go = (step) => async () => {
    try {
      await app.actions.showSibling(ids[at + step]);
      app.shownMessage(ids[at + step])?.querySelector(`.siblings .${step < 0 ? "before" : "after"}:not(:disabled), .siblings button:not(:disabled)`)?.focus();
      app.say(`Version ${at + step + 1} of ${ids.length}`);
    } catch (error) {
      app.fail(error);
    }
  };
  return h(
    "div",
    { class: "siblings", role: "group", "aria-label": `Versions of this ${what}` },
    iconButton("left", "Version before", go(-1), { class: "before", disabled: at <= 0 }),
    h("span", { class: "number" }, `${at + 1}/${ids.length}`),
    iconButton("right", "Next version", go(1), { class: "after", disabled: at >= ids.length - 1 }),
  );
}

function branchButton(message, app) {
  const branch = async () => {
    try {
      const chat = await app.actions.branchChat(message.id);
      app.go(`#/chat/${chat.id}`);
      app.toast("A new chat goes on from here. The one before is as it was.");
    } catch (error) {
      app.fail(error);
    }
  };
  return iconButton("branch", "Branch to a new chat", branch);
}

class Question extends View {
  constructor(message, app) {
    super(message, "user", "You");
    this.app = app;
    this.bubble = h("div", { class: "bubble" });
    this.element.append(this.bubble, this.foot);
    this.show();
  }

  show() {
    const { content, attachments = [] } = this.message;
    const text = h("div", { class: "plain" }, content);
    const long = content.length > LONG;
    if (long) text.classList.add("folded");
    this.bubble.replaceChildren(
      ...(attachments.length ? [h("div", { class: "attachments" }, attachments.map(attachment))] : []),
      text,
      ...(long ? [unfold(text)] : []),
    );
  }

  refoot() {
    const { message, app } = this;
    this.foot.replaceChildren(
      h(
        "div",
        { class: "actions" },
        siblings(message, app, "message") ?? "",
        copyButton("Copy message", () => message.content),
        iconButton("edit", "Edit and send again", () => this.edit(), { "data-action": "edit" }),
        branchButton(message, app),
      ),
    );
  }

  edit() {
    if (this.app.store.run) return this.app.toast("A reply is being written: stop it first, then edit.");
    const done = () => {
      this.element.classList.remove("editing");
      this.show();
      this.foot.querySelector('[aria-label^="Edit"]')?.focus();
    };
    this.element.classList.add("editing");
    this.bubble.replaceChildren(editForm(this.message, this.app, done));
    this.bubble.querySelector("textarea").focus();
  }
}

function unfold(text) {
  const button = h("button", { type: "button", class: "button quiet", "aria-expanded": false, onClick: () => {
    const folded = text.classList.toggle("folded");
    button.textContent = folded ? "Show all" : "Show less";
    button.setAttribute("aria-expanded", String(!folded));
  } }, "Show all");
  return button;
}

/** A file that went with a message; the server keeps its text. */
function attachment({ name, characters }) {
  return h("span", { class: "chip attachment" }, icon("file"), h("span", { class: "ellipsis" }, name), h("span", { class: "faint number" }, plural(characters ?? 0, "character")));
}

class ToolAnswer extends View {
  constructor(message) {
    super(message, "tool", "Answer of a tool");
    this.element.append(h("details", { class: "call" }, h("summary", {}, icon("tool"), h("span", {}, "Answer of the tool")), h("pre", { tabindex: "0" }, message.content)));
  }
}

class Reply extends View {
  constructor(message, app) {
    super(message, "assistant", message.model ? `Reply of ${message.model}` : "Reply");
    this.app = app;
    this.thought = null;
    this.calls = h("div", { class: "calls" });
    this.note = h("div", { class: "reply-note" });
    this.progress = null;
    this.growing = message.state === "running" ? new GrowingBody() : null;
    this.body = this.growing?.element ?? h("div", { class: "prose" });
    if (!this.growing) this.fill(message);
    this.element.append(this.body, this.calls, this.note, this.foot);
    this.annotate();
  }

  fill({ html, content, thought, calls = [] }) {
    if (html === null) this.body.replaceChildren(h("div", { class: "plain" }, content)); // it comes with the next look
    else fillBody(this.body, html);
    if (thought) this.think(thought);
    for (const call of calls) this.calls.append(callView(call.function ?? call));
  }

  /** Text of thoughts, folded; made when the first of it comes. */
  think(text) {
    if (!this.thought) {
      this.thought = { label: h("span", {}), text: document.createTextNode("") };
      this.element.prepend(h("details", { class: "thought" }, h("summary", {}, icon("chevron"), this.thought.label), h("div", { class: "thought-text" }, this.thought.text)));
    }
    this.thought.text.appendData(text);
    this.nameThought();
  }

  /** run: that was followed while it thought, null where only what was kept is known. */
  nameThought(run = null) {
    if (!this.thought) return;
    const known = run !== null && run.thoughtFrom !== null && !run.caughtUp;
    const tokens = this.message.meta?.thought_tokens;
    const after = known ? `Thought for ${duration((run.thoughtUntil - run.thoughtFrom) / 1000)}` : "Thoughts";
    this.thought.label.textContent = tokens ? `${after} · ${plural(tokens, "token")}` : after;
  }

  /** An event of the run that writes this reply. */
  live(kind, data, run) {
    if (!this.growing) return;
    if (kind === "thought") {
      this.think(data.text);
      this.thought.label.textContent = "Thinking";
    }
    if (kind === "text") this.growing.append(data.text, run.catchingUp);
    if (kind === "block") this.growing.close(data.html, data.rest, data.again);
    if (kind === "call") this.calls.append(callView(data));
    if (kind === "end") this.end(data, run);
    else this.tell(kind, run);
  }

  /** What is going on, below the text: what it waits for, or how far it is. */
  tell(kind, run) {
    this.progress ??= new Progress(this.foot);
    this.progress.show(run);
    if (run.phase !== "thinking" && kind !== "tokens") this.nameThought(run);
  }

  end(data, run) {
    this.growing.end();
    this.growing = null;
    this.progress = null;
    this.message = { ...this.message, state: data.state, meta: { ...this.message.meta, ...data } };
    this.nameThought(run);
    this.annotate();
    this.dressed = true;
    this.refoot();
  }

  changed() {
    const { message } = this;
    if (this.growing && message.state !== "running" && this.app.store.run?.reply !== message.id) {
      // It ended while nobody listened: what the server kept is the whole of it.
      this.growing = this.progress = null;
      this.body.classList.remove("growing");
      this.calls.replaceChildren();
      this.element.querySelector(".thought")?.remove();
      this.thought = null;
      this.fill(message);
    }
    if (this.growing) return;
    const unread = !this.body.textContent || this.body.firstElementChild?.classList.contains("plain");
    if (unread && message.html) fillBody(this.body, message.html); // the server's word also for a view that came too late
    this.annotate();
    super.changed();
  }

  /** What a person has to know of this reply: that it failed, was cut short, or that the beginning was forgotten. */
  annotate() {
    const { message } = this;
    const meta = message.meta ?? {};
    const lines = [];
    if (message.state === "failed") lines.push(this.failure(errorOf(meta)));
    const ended = ending(message);
    if (ended) lines.push(h("p", { class: "note" }, h("span", {}, ended), this.button("Continue", "go-on", "goOn", message.id)));
    const forgot = forgetting(meta);
    if (forgot) lines.push(h("p", { class: "note warn" }, icon("warning"), h("span", {}, forgot)));
    for (const warning of meta.warnings ?? []) lines.push(h("p", { class: "note warn" }, icon("warning"), h("span", {}, warning)));
    if (message.state === "done" && !message.content && !this.body.textContent.trim() && !this.calls.childElementCount) {
      lines.push(h("p", { class: "note" }, "The model said nothing."));
    }
    this.note.replaceChildren(...lines);
  }

  failure(text) {
    return h(
      "div",
      { class: "failure" },
      icon("warning"),
      h("div", {}, h("strong", {}, "This reply failed"), h("p", {}, text)),
      this.button("Try again", "again", "again", this.message.parent),
    );
  }

  button(label, name, action, id) {
    return h("button", { type: "button", class: "button", onClick: () => this.act(action, id) }, icon(name), label);
  }

  async act(action, id) {
    if (this.app.store.run) return this.app.toast("A reply is being written: stop it first.");
    try {
      await this.app.actions[action](id);
      this.app.toEnd();
      this.app.focusComposer({ quietly: true });
    } catch (error) {
      this.app.fail(error);
    }
  }

  refoot() {
    if (this.growing) return;
    const { message, app } = this;
    const inspect = message.has_trace && iconButton("inspect", "Inspect tokens", () => app.go(`#/chat/${message.chat}/inspect/${message.id}`));
    this.foot.replaceChildren(
      h(
        "div",
        { class: "actions" },
        siblings(message, app, "reply") ?? "",
        copyButton("Copy reply", () => this.message.content || this.body.innerText),
        iconButton("again", "Write another reply", () => this.act("again", message.parent)),
        message.state !== "failed" && iconButton("go-on", "Continue this reply", () => this.act("goOn", message.id)),
        branchButton(message, app),
        inspect,
      ),
      h(
        "ul",
        { class: "figures", "aria-label": "Figures of this reply" },
        message.model && h("li", { class: "ellipsis", title: "The model that replied" }, message.model),
        figures(message.meta ?? {}).map(({ text, title }) => h("li", { class: "number", title }, text)),
      ),
    );
  }
}

function errorOf(meta) {
  return meta.error?.message || "Nothing is known of why.";
}

/** The line below a reply that is being written. */
class Progress {
  constructor(foot) {
    this.dots = h("span", { class: "dots" }, h("i", {}), h("i", {}), h("i", {}));
    this.text = h("span", { class: "number" });
    this.fill = h("i", {});
    this.bar = h("div", { class: "bar", role: "progressbar", "aria-label": "Progress", "aria-valuemin": "0", "aria-valuemax": "100" }, this.fill);
    foot.replaceChildren(h("div", { class: "progress" }, this.dots, this.text, this.bar));
  }

  show(run) {
    const { text, part } = run.wait ? waiting(run.wait) : { text: writing(run), part: null };
    if (this.text.textContent !== text) this.text.textContent = text;
    this.bar.hidden = part === null;
    if (part === null) return;
    this.fill.style.setProperty("--part", `${part * 100}%`);
    this.bar.setAttribute("aria-valuenow", String(Math.round(part * 100)));
    this.bar.setAttribute("aria-valuetext", text);
  }
}

function writing(run) {
  const { cache, tokens, rate } = run;
  const said = [run.phase === "thinking" ? "Thinking" : run.phase === "connecting" ? "" : "Writing"];
  if (tokens) said.push(plural(tokens, "token"));
  if (rate) said.push(`${number(rate, 1)} tokens/s`);
  if (cache?.context) said.push(`${number(cache.held)} of ${number(cache.context)} context`);
  return said.filter(Boolean).join(" · ");
}

function callView({ name, arguments: given }) {
  const pretty = typeof given === "string" ? indent(given) : JSON.stringify(given, null, 2);
  return h(
    "details",
    { class: "call" },
    h("summary", {}, icon("tool"), h("span", {}, "Asks for the tool ", h("code", {}, name))),
    h("pre", { tabindex: "0" }, pretty),
  );
}

function indent(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // not complete, or not JSON: as the model wrote it
  }
}
