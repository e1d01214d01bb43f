/**
 * Tokens and probabilities as people read them: nothing invisible, nothing that acts on the page. Pure functions.
 */

import { number } from "../words.js";

const NAMED = { " ": "·", "\n": "↵", "\r": "␍", "\t": "⇥" };
// Blanks, control characters, marks of direction and other characters that take no room.
const HIDDEN = /[\s\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufeff\uffa0\ufff9-\ufffc]/gu;

/** A token's text with every blank visible; bytes that are no character alone as such. */
export function visible(text, bytes = "") {
  if (bytes) return `‹${bytes.toUpperCase().match(/../g).join(" ")}›`;
  if (!text) return "∅";
  return text.replace(HIDDEN, (character) => NAMED[character] ?? `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`);
}

/** Whether a line ends with the token. */
export function breaks(token) {
  return token.text.includes("\n");
}

/** 43 %, 0.8 %, < 0.01 %; — where it was not measured. */
export function percent(p) {
  if (p === null || p === undefined) return "—";
  const value = p * 100;
  if (value === 0) return "0 %";
  if (value < 0.01) return "< 0.01 %";
  if (value > 99.9 && value < 100) return "> 99.9 %";
  return `${number(value, value < 1 ? 2 : value < 10 || value > 99 ? 1 : 0)} %`;
}

/** 14 ms, 1.2 s. */
export function time(ms) {
  if (ms >= 10_000) return `${number(ms / 1000)} s`;
  if (ms >= 1000) return `${number(ms / 1000, 1)} s`;
  return `${number(ms, ms < 10 ? 1 : 0)} ms`;
}

/** Steps of the tint, the surest first: from which probability on, and what it is called. */
export const STEPS = [
  { from: 0.9, name: "sure", text: "≥ 90 %" },
  { from: 0.5, name: "likely", text: "≥ 50 %" },
  { from: 0.2, name: "open", text: "≥ 20 %" },
  { from: 0.05, name: "unlikely", text: "≥ 5 %" },
  { from: 0, name: "rare", text: "less" },
];

/** The step of a probability, "unknown" where it was not measured. */
export function step(p) {
  if (p === null || p === undefined) return "unknown";
  return STEPS.find(({ from }) => p >= from).name;
}

/** Bits of surprise: 0 where the token was certain, one more for each halving. */
export function surprise(p) {
  return -Math.log2(Math.max(p, 1.2e-38));
}

/** An ordinary name for a token, for buttons and screen readers. */
export function named(token) {
  return `“${visible(token.text, token.bytes)}”`;
}
