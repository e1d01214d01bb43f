/**
 * Which token lies in which slot of a cache, from the numbers that the server tells. Pure functions; the rule is the
 * cache's own: the token at p behind the sinks goes into slot (p - sinks) % turns, and the last writer is there.
 */

/** What a slot may be. */
export const KINDS = ["sink", "seen", "behind", "free", "later"];

/** Slots that a kind of layer has, sinks first, also those that there is no memory for yet. */
export function count(layer) {
  return layer.sinks + (layer.turns ?? layer.slots);
}

/** The token in a slot and what it is to the newest one: {kind, position}, position null where there is none. */
export function slot(state, layer, index) {
  const { seen, reached } = state;
  if (index < layer.sinks) return index < seen ? { kind: "sink", position: index } : { kind: "free", position: null };
  const place = index - layer.sinks;
  const written = reached - layer.sinks; // behind the sinks, ever
  let behind = place;
  if (layer.turns !== null && written > place) behind += Math.floor((written - 1 - place) / layer.turns) * layer.turns;
  const position = layer.sinks + behind;
  if (place >= written || position >= seen) return { kind: place < layer.slots ? "free" : "later", position: null };
  const visible = layer.window === null || position >= seen - layer.window;
  return { kind: visible ? "seen" : "behind", position };
}

/** The slot of the newest token; null where there is none. */
export function newest(state, layer) {
  const position = state.seen - 1;
  if (position < 0) return null;
  if (position < layer.sinks) return position;
  const behind = position - layer.sinks;
  return layer.sinks + (layer.turns === null ? behind : behind % layer.turns);
}

/** How many slots are of each kind. */
export function totals(state, layer) {
  const found = { sink: 0, seen: 0, behind: 0, free: 0, later: 0 };
  for (let i = 0; i < count(layer); i++) found[slot(state, layer, i).kind]++;
  return found;
}
