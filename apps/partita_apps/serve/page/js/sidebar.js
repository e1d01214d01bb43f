/** The list of chats: folders, search, new chat, actions on a chat. */

export function mountSidebar(root, app) {}
