/** The fine-tuning view. */

export function mountTuning(root, app) {}
