/** The field that messages are written in. Returns {attach}: the element for attachments. */

import { h } from "./dom.js";

export function mountComposer(root, app) {
  return { attach: h("div", { class: "composer-attach" }) };
}
