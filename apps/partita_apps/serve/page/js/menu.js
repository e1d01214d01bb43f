/** A menu below a button: a native popover with the keys that menus have. Escape and a press elsewhere close it. */

import { h, icon } from "./dom.js";

const GAP = 4; // pixels around it

/** Open a menu. items: [{text, icon, danger, action}]; closed: called when it is gone. */
export function openMenu(button, label, items, closed) {
  const menu = h("div", { class: "menu", role: "menu", "aria-label": label, popover: "auto" });
  const rows = items.map((item) => menuItem(menu, item));
  menu.append(...rows);
  menu.addEventListener("keydown", (event) => moved(event, rows, menu));
  menu.addEventListener("beforetoggle", (event) => {
    const inside = menu.contains(document.activeElement);
    if (event.newState === "closed" && inside && button.isConnected) button.focus();
  });
  menu.addEventListener("toggle", (event) => {
    if (event.newState === "open") return;
    button.setAttribute("aria-expanded", "false");
    menu.remove();
    closed();
  });
  button.setAttribute("aria-expanded", "true");
  document.body.append(menu);
  menu.showPopover();
  place(menu, button);
  rows[0].focus();
}

function menuItem(menu, item) {
  const onClick = () => {
    menu.hidePopover(); // the focus is back on the button before anything is done
    item.action();
  };
  const kind = item.danger ? "menu-item danger" : "menu-item";
  return h("button", { type: "button", role: "menuitem", tabindex: -1, class: kind, onClick }, icon(item.icon), item.text);
}

function moved(event, rows, menu) {
  const at = rows.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (event.key === "Tab") menu.hidePopover();
  if (to === undefined) return;
  event.preventDefault();
  rows[(to + rows.length) % rows.length].focus();
}

/** Below the button, above it where there is no room, and never outside the window. */
function place(menu, button) {
  const at = button.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  const below = at.bottom + height + GAP <= innerHeight;
  const top = below ? at.bottom + GAP : Math.max(GAP, at.top - height - GAP);
  const left = Math.max(GAP, Math.min(at.right - width, innerWidth - width - GAP));
  menu.style.setProperty("inset", `${top}px auto auto ${left}px`);
}
