/** Light, dark or as the system is: data-theme on the root element. */

export function mountTheme(root, app) {}
