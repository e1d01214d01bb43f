"""The history of chats: trees of messages that are added to and never cut. The only writer of its file.

Not here: what a reply is made of, and who shows it. Invariants: a message's parent is of its own chat and older, so
that each chat is a forest; nothing that was said goes but by `erase` and `purge`; a reply that is being written belongs
to the process that began it, and counts as interrupted once that process is gone.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from partita.errors import DataError

from ..paths import data_folder
from . import owner, transfer
from .database import Database
from .records import INTERRUPTED, RUNNING, Chat, Hit, Message
from .rows import (
    LONGEST_TITLE,
    OF_CHAT,
    OF_MESSAGE,
    brief,
    chat_of,
    columns,
    document,
    insert_chat,
    insert_message,
    message_of,
    the_one,
    title,
    update,
)
from .search import found

FILE = "history.sqlite3"
KEPT_DAYS = 30
"""How long a deleted chat can be had back."""
_PATH = """
WITH RECURSIVE path (id, parent, depth) AS (
    SELECT id, parent, 0 FROM messages WHERE chat = :chat AND id = :leaf
    UNION ALL
    SELECT m.id, m.parent, depth + 1 FROM messages m JOIN path ON m.chat = :chat AND m.id = path.parent
)
SELECT messages.* FROM messages JOIN path ON messages.id = path.id ORDER BY depth DESC
"""
_RUNNING = "SELECT id, owner FROM messages WHERE state = 'running'"


class History:
    """Threads and processes may share one file; each transaction is short. Every method raises DataError where the file
    cannot be used, and for ids that it does not hold."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._me = owner.me()

    @classmethod
    def open(cls, path: Path | None = None) -> History:
        """The history in a file, by default that of this user. Chats deleted long ago go, and what a process that is no
        more was writing counts as interrupted."""
        history = cls(Database(data_folder() / FILE if path is None else path))
        try:
            history.recover()
            history.purge(time.time() - KEPT_DAYS * 86_400)
        except BaseException:
            history.close()
            raise
        return history

    @classmethod
    def in_memory(cls) -> History:
        """One that is gone with this process, and never on a disk."""
        return cls(Database(None))

    @property
    def file(self) -> Path | None:
        """None of one in memory."""
        return self._database.path

    def close(self) -> None:
        self._database.close()

    def changes(self) -> int:
        """Another number than before, once anybody has written: this process or another one."""
        return self._database.changes()

    def recover(self) -> list[str]:
        """Ids of the replies that were being written by processes that are gone; they are interrupted now."""
        if all(row["owner"] == self._me for row in self._database.rows(_RUNNING)):
            return []
        with self._database.writing() as connection:
            owners = {row["id"]: row["owner"] for row in connection.execute(_RUNNING)}
            living = {each for each in set(owners.values()) if each == self._me or owner.lives(each)}
            found = [ident for ident, each in owners.items() if each not in living]
            for ident in found:
                update(connection, "messages", ident, {"state": INTERRUPTED, "owner": ""})
        return found

    # Chats

    def chats(
        self, *, folder: str | None = None, deleted: bool = False, limit: int = 200, before: str | None = None
    ) -> list[Chat]:
        """Pinned ones first, then those in which something was said last. before: the `cursor` of the last one that is
        known, to go on behind it. folder: None for all."""
        query = f"SELECT * FROM chats WHERE deleted IS {'NOT ' if deleted else ''}NULL"
        values: list[Any] = []
        if folder is not None:
            query, values = f"{query} AND folder = ?", [folder]
        if before is not None:
            query, values = f"{query} AND (pinned, updated, id) < (?, ?, ?)", [*values, *_place(before)]
        query += " ORDER BY pinned DESC, updated DESC, id DESC LIMIT ?"
        return [chat_of(row) for row in self._database.rows(query, [*values, limit])]

    def latest(self, limit: int) -> list[Chat]:
        """The chats in which something was said last, pinned or not."""
        query = "SELECT * FROM chats WHERE deleted IS NULL ORDER BY updated DESC, n DESC LIMIT ?"
        return [chat_of(row) for row in self._database.rows(query, [limit])]

    def folders(self) -> list[str]:
        query = "SELECT DISTINCT folder FROM chats WHERE deleted IS NULL AND folder <> '' ORDER BY folder"
        return [row["folder"] for row in self._database.rows(query)]

    def chat(self, ident: str) -> Chat:
        return chat_of(the_one(self._database.rows("SELECT * FROM chats WHERE id = ?", [ident]), "chat", ident))

    def create(
        self, *, model: str, title: str = "", settings: Mapping[str, Any] | None = None, folder: str = ""
    ) -> Chat:
        fields = {"title": title, "model": model, "settings": settings or {}, "folder": folder}
        with self._database.writing() as connection:
            ident = insert_chat(connection, fields)
        return self.chat(ident)

    def change(self, ident: str, **fields: Any) -> Chat:
        """Another title, model, folder, leaf, other settings, or pinned or not."""
        values = columns(fields, OF_CHAT)
        with self._database.writing() as connection:
            if (leaf := values.get("leaf")) is not None:
                found = connection.execute("SELECT 1 FROM messages WHERE chat = ? AND id = ?", (ident, leaf)).fetchall()
                the_one(found, "message", leaf)
            update(connection, "chats", ident, values)
        return self.chat(ident)

    def delete(self, ident: str) -> None:
        """Out of the lists. `restore` brings it back for KEPT_DAYS days."""
        with self._database.writing() as connection:
            update(connection, "chats", ident, {"deleted": time.time()})

    def restore(self, ident: str) -> Chat:
        with self._database.writing() as connection:
            update(connection, "chats", ident, {"deleted": None})
        return self.chat(ident)

    def erase(self, ident: str) -> None:
        """For good, from the file's unused pages, too."""
        with self._database.writing() as connection:
            found = connection.execute("DELETE FROM chats WHERE id = ? RETURNING 1", (ident,)).fetchall()
            the_one(found, "chat", ident)
        self._database.scrub()

    def purge(self, older_than: float) -> int:
        """Erase what was deleted before a time, and say how many chats."""
        if not self._database.rows("SELECT 1 FROM chats WHERE deleted < ? LIMIT 1", [older_than]):
            return 0
        with self._database.writing() as connection:
            count = connection.execute("DELETE FROM chats WHERE deleted < ?", (older_than,)).rowcount
        self._database.scrub()
        return count

    def branch(self, message: str) -> Chat:
        """A new chat that holds what led to a message, as copies, and goes on from there."""
        last = self.message(message)
        chat, path = self.chat(last.chat), self.path(last.chat, message)
        with self._database.writing() as connection:
            name = f"{chat.title[: LONGEST_TITLE - 9]} (branch)".strip()
            own = {"title": name, "model": chat.model, "settings": chat.settings, "folder": chat.folder}
            fresh, parent = insert_chat(connection, own), None
            for each in path:
                state = INTERRUPTED if each.state == RUNNING else each.state
                ident = insert_message(connection, fresh, {**each.document(), "parent": parent, "state": state})
                copied = "INSERT INTO traces (message, rows) SELECT ?, rows FROM traces WHERE message = ?"
                connection.execute(copied, (ident, each.id))
                parent = ident
            update(connection, "chats", fresh, {"leaf": parent})
        return self.chat(fresh)

    # Messages

    def messages(self, chat: str) -> list[Message]:
        """The whole tree, parents before those that follow them."""
        self.chat(chat)
        return self._found("SELECT * FROM messages WHERE chat = :chat ORDER BY n", {"chat": chat})

    def path(self, chat: str, leaf: str | None = None) -> list[Message]:
        """From a first message to a leaf, by default the one that the chat goes on from."""
        found = self.chat(chat)
        last = found.leaf if leaf is None else leaf
        path = self._found(_PATH, {"chat": chat, "leaf": last})
        if last is not None:
            the_one(path, "message", last)
        return path

    def message(self, ident: str) -> Message:
        return the_one(self._found("SELECT * FROM messages WHERE id = :id", {"id": ident}), "message", ident)

    def add(self, chat: str, *, parent: str | None, role: str, **fields: Any) -> Message:
        """A message behind its parent, from which the chat goes on from now on. The first text of an untitled chat is
        its title. fields: of `write`."""
        with self._database.writing() as connection:
            name = the_one(connection.execute("SELECT title FROM chats WHERE id = ?", (chat,)).fetchall(), "chat", chat)
            mine = self._me if fields.get("state") == RUNNING else ""
            ident = insert_message(connection, chat, {**fields, "parent": parent, "role": role}, mine)
            values = {"leaf": ident, "updated": time.time()}
            if role == "user" and not name["title"]:
                values["title"] = brief(fields.get("content", ""))
            update(connection, "chats", chat, values)
        return self.message(ident)

    def write(self, ident: str, **changes: Any) -> None:
        """More of a reply: its content, thought, calls, attachments, ids, model, state, meta."""
        values = columns(changes, OF_MESSAGE)
        if "state" in values:
            values["owner"] = self._me if values["state"] == RUNNING else ""
        with self._database.writing() as connection:
            update(connection, "messages", ident, values)
            if "state" in values:
                query = "UPDATE chats SET updated = ? WHERE id = (SELECT chat FROM messages WHERE id = ?)"
                connection.execute(query, (time.time(), ident))

    # Traces and presets

    def trace(self, message: str) -> list[dict[str, Any]]:
        """The table of a reply's tokens; empty where none was kept."""
        self.message(message)
        found = self._database.rows("SELECT rows FROM traces WHERE message = ?", [message])
        return msgspec.msgpack.decode(zlib.decompress(found[0]["rows"])) if found else []

    def put_trace(self, message: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep it, in the place of one that was kept before."""
        self.message(message)
        packed = zlib.compress(msgspec.msgpack.encode(list(rows)))
        with self._database.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO traces (message, rows) VALUES (?, ?)", (message, packed))

    def traced(self, chat: str) -> frozenset[str]:
        """Ids of the messages of a chat that have a trace."""
        query = "SELECT message FROM traces JOIN messages ON messages.id = message WHERE chat = ?"
        return frozenset(row["message"] for row in self._database.rows(query, [chat]))

    def presets(self) -> dict[str, dict[str, Any]]:
        """Settings by the names they were given, in the order of the names."""
        rows = self._database.rows("SELECT name, settings FROM presets ORDER BY name")
        return {row["name"]: json.loads(row["settings"]) for row in rows}

    def put_preset(self, name: str, settings: Mapping[str, Any]) -> None:
        """Keep it, in the place of one of the same name. Raises DataError for no name."""
        if not title(name):
            raise DataError("a preset needs a name", field="name")
        with self._database.writing() as connection:
            values = (title(name), document(dict(settings)))
            connection.execute("INSERT OR REPLACE INTO presets (name, settings) VALUES (?, ?)", values)

    def drop_preset(self, name: str) -> None:
        with self._database.writing() as connection:
            query = "DELETE FROM presets WHERE name = ? RETURNING 1"
            the_one(connection.execute(query, (name,)).fetchall(), "preset", name)

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Titles and messages that hold every word of a text, titles first, newer ones first. Any text will do."""
        return found(self._database, text, limit)

    # Files

    def export(self, chats: Iterable[str] | None = None) -> dict[str, Any]:
        """A document with whole trees, of all chats that are not deleted if not told which. Traces are not in it."""
        found = self._every() if chats is None else [self.chat(ident) for ident in chats]
        return transfer.exported(
            [(chat, self.messages(chat.id)) for chat in found], self.presets() if chats is None else {}
        )

    def import_(self, document: Any) -> list[Chat]:
        """The chats of such a document under new ids, all or, where one cannot be used, none. Raises DataError."""
        found = transfer.Document.of(document)
        with self._database.writing() as connection:
            fresh = [transfer.insert(connection, chat) for chat in found.chats]
            for name, settings in transfer.presets(found):
                connection.execute("INSERT OR IGNORE INTO presets (name, settings) VALUES (?, ?)", (name, settings))
        return [self.chat(ident) for ident in fresh]

    def markdown(self, chat: str) -> str:
        """The path of a chat that is shown, for people."""
        return transfer.markdown(self.chat(chat), self.path(chat))

    def _every(self) -> list[Chat]:
        return [chat_of(row) for row in self._database.rows("SELECT * FROM chats WHERE deleted IS NULL ORDER BY n")]

    def _found(self, query: str, values: dict[str, Any]) -> list[Message]:
        """Messages, after a look whether those that are being written still are."""
        rows = self._database.rows(query, values)
        running = {row["owner"] for row in rows if row["state"] == RUNNING} - {self._me}
        if not all(map(owner.lives, running)) and self.recover():
            rows = self._database.rows(query, values)
        return [message_of(row) for row in rows]


def _place(cursor: str) -> tuple[bool, float, str]:
    try:
        return msgspec.json.decode(cursor, type=tuple[bool, float, str])
    except (msgspec.MsgspecError, UnicodeError):
        raise DataError("unknown place in the list of chats: leave `before` out", field="before") from None
