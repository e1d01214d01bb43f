/** Shortcuts. */

export function mountKeyboard(root, app) {}
