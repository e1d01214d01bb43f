/**
 * Numbers and states in words, the same everywhere on the page. Pure functions.
 */

const GROUPED = new Intl.NumberFormat("en-US");

/** 1,234; decimals: digits behind the point. */
export function number(value, decimals = 0) {
  return decimals ? value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }) : GROUPED.format(Math.round(value));
}

export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${Math.round(count) === 1 ? one : many}`;
}

/** Bytes of memory: binary steps, as the commands print them. */
export function memory(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  for (; bytes >= 1024 && step < units.length - 1; step++) bytes /= 1024;
  return `${number(bytes, step && bytes < 10 ? 1 : 0)} ${units[step]}`;
}

/** 0.8 s, 12 s, 3 min 5 s. */
export function duration(seconds) {
  if (seconds < 10) return `${number(seconds, Number.isInteger(seconds) ? 0 : 1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** What a run waits for, as one line, and how much of it is done (0 to 1, null where nobody knows). left: seconds. */
export function waiting({ what, done = 0, total = 0, reused = 0, left: seconds = null }) {
  const part = total ? Math.min(done / total, 1) : null;
  const left = seconds && seconds >= 1 ? `, about ${duration(Math.round(seconds))} left` : "";
  if (what === "loading") {
    return { text: total ? `Loading the model: ${done} of ${plural(total, "layer")}${left}` : "Loading the model", part };
  }
  if (what === "queue") return { text: "Waiting until the model has room for this reply", part: null };
  const known = reused ? ` (${number(reused)} were still in the cache)` : "";
  return { text: total ? `Reading ${number(done)} of ${plural(total, "token")}${known}${left}` : "Reading the prompt", part };
}

/** What the figures of a reply are, in order: [{text, title}]. `meta`: as an `end` event, what is missing left out. */
export function figures(meta) {
  const found = [];
  const put = (known, text, title) => known !== null && known !== undefined && found.push({ text: text(known), title });
  put(meta.tokens_per_second || null, (rate) => `${number(rate, rate < 100 ? 1 : 0)} tokens/s`, "Tokens a second while the reply was written");
  put(meta.tokens, (tokens) => plural(tokens, "token"), meta.thought_tokens ? `${plural(meta.thought_tokens, "token")} of them thought` : "Length of the reply");
  put(meta.seconds || null, duration, "From the question to the end of the reply");
  const context = meta.context;
  put(context ? (meta.held ?? null) : null, (held) => `${number(Math.min(held, context))} of ${number(context)} context`, "Tokens that the model's cache holds of this chat, and how many fit");
  put(meta.cache_bytes || null, (bytes) => `${memory(bytes)} cache`, "Memory of this chat's keys and values");
  return found;
}

/** A plain word where the ring has begun to forget; null before. */
export function forgetting({ forgotten = 0, context = 0 }) {
  if (!forgotten) return null;
  return `The context of ${number(context)} tokens is full: the model no longer sees the oldest ${plural(forgotten, "token")} of this chat.`;
}

/** Why a reply ends where it ends; null where it came to its own end. */
export function ending(message) {
  if (message.state === "stopped") return "You stopped this reply.";
  if (message.state === "length") return "The reply reached its limit of tokens.";
  if (message.state === "interrupted") return "The server ended while this reply was written. What was there is kept.";
  return null;
}
