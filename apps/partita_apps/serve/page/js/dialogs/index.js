/** All dialogs by name; sets app.dialog. */

export function mountDialogs(root, app) {}
