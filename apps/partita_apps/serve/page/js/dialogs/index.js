/** All dialogs by name; one is open at a time. Sets `app.dialog(name, ...given)`. */

import { openAbout } from "./about.js";
import { openConnect } from "./connect.js";
import { openDeleted } from "./deleted.js";
import { openFolder } from "./folder.js";
import { openModels } from "./models.js";
import { openSettings } from "./settings.js";
import { openShortcuts } from "./shortcuts.js";
import { openTransfer } from "./transfer.js";

const DIALOGS = {
  about: openAbout,
  connect: openConnect,
  deleted: openDeleted,
  folder: openFolder,
  models: openModels,
  settings: openSettings,
  shortcuts: openShortcuts,
  transfer: openTransfer,
};

export function mountDialogs(root, app) {
  app.dialog = async (name, ...given) => {
    root.querySelector("dialog[open]")?.close();
    try {
      await DIALOGS[name](app, ...given);
    } catch (error) {
      app.fail(error);
    }
  };
}
