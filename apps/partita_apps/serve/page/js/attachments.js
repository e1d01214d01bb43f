/** The attach button beside the composer and the files that the next message brings along (store.attachments). */

export function mountAttachments(root, app) {}
