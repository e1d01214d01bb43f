/** Light, dark or as the system is: data-theme on the root element; kept in this browser. The colours are CSS. */

const KEY = "partita.theme";
export const THEMES = ["system", "light", "dark"];

export function theme() {
  const kept = localStorage.getItem(KEY);
  return THEMES.includes(kept) ? kept : "system";
}

/** Show one of THEMES and keep it. */
export function setTheme(name) {
  if (name === "system") localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, name);
  show(document.documentElement);
}

function show(root) {
  if (theme() === "system") delete root.dataset.theme;
  else root.dataset.theme = theme();
}

/** What was kept is shown, also when another tab changes it. */
export function mountTheme(root) {
  show(root);
  addEventListener("storage", (event) => event.key === KEY && show(root));
}
