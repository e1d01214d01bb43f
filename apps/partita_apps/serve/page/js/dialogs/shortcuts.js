/** The list of all keys, made of the same table that answers them; and the switch for keys by themselves. */

import { COMMANDS, GROUPS, plainKeys, setPlainKeys, shownKeys } from "../commands.js";
import { h } from "../dom.js";
import { hint, openModal } from "./modal.js";

export function openShortcuts(app) {
  const plain = h("input", { type: "checkbox", id: "plain-keys", checked: plainKeys() });
  plain.addEventListener("change", () => setPlainKeys(plain.checked));
  openModal(
    app,
    { name: "shortcuts", title: "Keyboard", wide: true },
    hint("A key by itself works while no text field has the focus. While you type, hold ", chord(["Alt", "Shift"]), " with it."),
    h("label", { class: "check" }, plain, "Keys by themselves"),
    h("div", { class: "shortcut-groups" }, GROUPS.map((group) => section(group, COMMANDS.filter((each) => each.group === group)))),
  );
}

function section(group, commands) {
  const rows = commands.map((each) =>
    h("div", { class: "shortcut" }, h("dt", {}, each.text), h("dd", {}, alternatives(shownKeys(each)))),
  );
  return h("section", {}, h("h3", {}, group), h("dl", {}, rows));
}

function alternatives(keys) {
  return keys.map((each, i) => [i > 0 && " or ", chord(each)]);
}

function chord(keys) {
  return keys.map((each, i) => [i > 0 && " + ", h("kbd", {}, each)]);
}
