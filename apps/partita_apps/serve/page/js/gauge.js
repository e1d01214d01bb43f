/**
 * How much of the context the open chat takes, in the header; in another colour once the ring has begun to forget.
 */

import { h } from "./dom.js";
import { forgetting, memory, number } from "./words.js";

export function mountGauge(root, app) {
  const { store } = app;
  const fill = h("i", {});
  const text = h("span", { class: "number" });
  const gauge = h("div", { class: "gauge", hidden: true }, h("div", { class: "bar" }, fill), text);
  root.append(gauge);

  const show = (facts) => {
    gauge.hidden = !facts?.context;
    if (gauge.hidden) return;
    const { held = 0, context } = facts;
    const bytes = facts.bytes ?? facts.cache_bytes;
    const forgot = forgetting(facts);
    text.textContent = `${number(Math.min(held, context))} / ${number(context)}`;
    gauge.title = `${number(Math.min(held, context))} of ${number(context)} tokens of context are used.${bytes ? ` They take ${memory(bytes)}.` : ""}${forgot ? ` ${forgot}` : ""}`;
    gauge.classList.toggle("full", Boolean(forgot));
    fill.style.setProperty("--part", `${Math.min(100, (100 * held) / context)}%`);
  };
  const last = () => show(store.path.findLast((each) => each.role === "assistant" && (each.meta?.context || each.meta?.usage?.context))?.meta);
  store.on("path", last);
  store.on("route", ({ view }) => (root.hidden = view !== "chat"));
  store.on("live", ({ kind, data }) => {
    if (kind === "cache" || kind === "end") show(data);
  });
}
