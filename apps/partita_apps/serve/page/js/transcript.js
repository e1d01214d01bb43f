/** The messages of the open chat. */

export function mountTranscript(root, app) {}
