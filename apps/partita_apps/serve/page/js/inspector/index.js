/** The inspector: tokens, cache, prefill. */

export function mountInspector(root, app) {}
