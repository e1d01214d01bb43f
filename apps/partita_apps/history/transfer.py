"""Chats on their way out of a history and into one: a JSON document of whole trees, and Markdown of what was said.

Not here: traces, which are large and of one machine. Invariant: what comes in is judged as a stranger's file: typed,
bounded, and a tree; nothing of it is written before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from partita.errors import DataError
from partita.files.typed import Misfit, typed

from .records import INTERRUPTED, RUNNING, Chat, Message
from .rows import document as json_of
from .rows import insert_chat, insert_message, title, update

KEY, VERSION = "partita_history", 1
MOST_CHATS, MOST_MESSAGES = 100_000, 1_000_000
_NAMES = {"user": "You", "tool": "Tool"}


@dataclass(frozen=True)
class _Attachment:
    name: str
    type: str = "text/plain"
    text: str = ""


@dataclass(frozen=True)
class _Message:
    id: str
    role: str
    parent: str | None = None
    content: str = ""
    thought: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    attachments: list[dict[str, Any]] = field(default_factory=list)
    state: str = "done"
    model: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    created: float = 0.0


@dataclass(frozen=True)
class _Chat:
    title: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    pinned: bool = False
    created: float = 0.0
    updated: float = 0.0
    leaf: str | None = None
    messages: list[_Message] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """What a file holds. presets: settings by their names."""

    chats: list[_Chat]
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Any) -> Document:
        """Raises DataError for what is no export of this version, or a damaged one."""
        if not isinstance(document, dict) or KEY not in document:
            raise DataError("not an export of a history: give a file that the page has exported")
        if document[KEY] != VERSION:
            raise DataError(f"the export is of format {document[KEY]!r}, and this partita reads {VERSION}")
        try:
            found = typed(document, cls)
            for chat in found.chats:
                for message in chat.messages:
                    typed(message.attachments, list[_Attachment], "attachments")
        except Misfit as error:
            raise DataError(f"the export is damaged: {error}") from None
        if len(found.chats) > MOST_CHATS or sum(len(chat.messages) for chat in found.chats) > MOST_MESSAGES:
            raise DataError(
                f"the export has more than {MOST_CHATS} chats or {MOST_MESSAGES} messages: take it in parts"
            )
        return found


def exported(
    chats: Sequence[tuple[Chat, Sequence[Message]]], presets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The document."""
    trees = []
    for chat, messages in chats:
        own = {name: value for name, value in chat.document().items() if name not in ("id", "deleted")}
        rows = [{name: v for name, v in each.document().items() if name != "chat"} for each in messages]
        trees.append({**own, "messages": rows})
    return {KEY: VERSION, "chats": trees, "presets": dict(presets)}


def insert(connection: sqlite3.Connection, chat: _Chat) -> str:
    """One chat with its tree, under new ids. Raises DataError, and what was written then has to go."""
    own = {
        name: getattr(chat, name) for name in ("title", "model", "settings", "folder", "pinned", "created", "updated")
    }
    fresh, known = insert_chat(connection, own), dict[str, str]()
    for each in chat.messages:
        if each.parent is not None and each.parent not in known:
            raise DataError(f"the export is damaged: the parent of message {each.id!r} does not stand before it")
        if each.id in known:
            raise DataError(f"the export is damaged: message {each.id!r} appears twice in a chat")
        parent = None if each.parent is None else known[each.parent]
        state = INTERRUPTED if each.state == RUNNING else each.state
        known[each.id] = insert_message(connection, fresh, {**vars(each), "parent": parent, "state": state})
    if chat.leaf is not None and chat.leaf not in known:
        raise DataError(f"the export is damaged: a chat goes on from message {chat.leaf!r}, which is not in it")
    last = next(reversed(known.values()), None) if chat.leaf is None else known[chat.leaf]
    update(connection, "chats", fresh, {"leaf": last})
    return fresh


def presets(found: Document) -> Generator[tuple[str, str], None, None]:
    """Names and settings as they are written; those without a name are left out."""
    for name, settings in found.presets.items():
        if title(name):
            yield title(name), json_of(settings)


def markdown(chat: Chat, path: Sequence[Message]) -> str:
    """A heading for each message, what was thought folded away."""
    parts = [f"# {chat.title or 'Untitled'}"]
    for each in path:
        name = _NAMES.get(each.role) or each.model or chat.model or "Assistant"
        parts.append(f"## {' '.join(name.split())}")
        parts += [f"*Attached: {' '.join(str(file.get('name', '')).split())}*" for file in each.attachments]
        if each.thought:
            parts.append(f"<details><summary>Thoughts</summary>\n\n{each.thought.strip()}\n\n</details>")
        parts += [f"```json\n{json_of(call)}\n```" for call in each.calls]
        parts += [each.content.strip()] if each.content.strip() else []
        if each.state not in ("done", RUNNING):
            parts.append(f"*({each.state})*")
    return "\n\n".join(parts) + "\n"
