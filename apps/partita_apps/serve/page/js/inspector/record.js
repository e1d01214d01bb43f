/**
 * What is known of one reply: its tokens, its cache over time, the chunks of its prompt. Knows no elements.
 *
 * Holds always: a token stands at its position in the reply, whatever order parts came in; figures are of measured
 * tokens alone (those that a branch was begun with were not computed again).
 */

export class Record {
  tokens = [];
  /** States of the cache, oldest first. */
  states = [];
  chunks = [];
  /** Tokens that the reply will have when all parts are fetched. */
  total = 0;
  live = false;
  /** How often it has changed. */
  version = 0;

  /** message: id of the reply. */
  constructor(message) {
    this.message = message;
  }

  /** An event of a run. */
  add(kind, data) {
    if (kind === "tokens") this.put(data.from, data.tokens);
    else if (kind === "cache") this.states = [...this.states.slice(-255), data];
    else if (kind === "wait" && data.what === "prompt") this.chunk(data);
    else return;
    this.version++;
  }

  put(from, tokens) {
    for (let i = 0; i < tokens.length; i++) this.tokens[from + i] = tokens[i];
    this.total = Math.max(this.total, this.tokens.length);
  }

  /** A part of what the server has kept. */
  keep({ from, total, tokens, cache, prefill }) {
    this.put(from, tokens);
    Object.assign(this, { states: cache, chunks: prefill, total });
    this.version++;
  }

  /** A chunk of the prompt has been read. */
  chunk({ done, total, reused = 0, seconds }) {
    const ms = seconds ? seconds * 1000 : null;
    const before = this.chunks.at(-1)?.done ?? reused;
    if (done > before) this.chunks.push({ done, total, reused, ms, tokens: done - before });
  }

  get state() {
    return this.states.at(-1) ?? null;
  }

  get promptTokens() {
    return this.chunks.at(-1)?.total ?? null;
  }

  /** Mean surprise in nats of what the model chose, and of how many tokens; null before there is one. */
  get surprise() {
    let sum = 0;
    let count = 0;
    for (const token of this.tokens) {
      if (!token || token.given || token.p === null) continue;
      sum -= Math.log(Math.max(token.p, 1.2e-38));
      count++;
    }
    return count ? { nats: sum / count, count } : null;
  }

  /** {median, slowest: position} of the time between tokens; null where none was measured. */
  get times() {
    const { tokens } = this;
    const measured = new Float64Array(tokens.length);
    let count = 0;
    let slowest = -1;
    for (let position = 0; position < tokens.length; position++) {
      const { ms, given } = tokens[position];
      if (ms === null || given) continue;
      measured[count++] = ms;
      if (slowest < 0 || ms > tokens[slowest].ms) slowest = position;
    }
    if (!count) return null;
    return { median: measured.subarray(0, count).sort()[count >> 1], slowest };
  }
}
