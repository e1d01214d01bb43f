/** The model's name in the header, and the switcher behind it. */

export function mountModels(root, app) {}
