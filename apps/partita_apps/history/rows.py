"""Between what the history holds and the rows of its tables: columns, checks, and one row written at a time.

Invariant: whatever text comes in can be written, found and read back; half of a surrogate pair, which no file holds,
and a zero byte, at which SQLite's functions stop, are replaced.
"""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from partita.errors import DataError
from partita.files.bounded import MAX_NESTING, nesting

from .records import ROLES, STATES, Chat, Message

LONGEST_TITLE = 200  # characters
BRIEF = 60
"""Characters of the title that a chat gets from its first text."""
T = TypeVar("T")


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"expected text, got {type(value).__name__}")
    return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def title(value: Any) -> str:
    """One line."""
    return " ".join(text(value).split())[:LONGEST_TITLE]


def brief(content: str) -> str:
    """The title that a text gives to its chat."""
    line = " ".join(content[:1000].split())
    return title(line if len(line) <= BRIEF else f"{line[:BRIEF].rstrip()}…")


def document(value: Any) -> str:
    """As JSON."""
    if nesting(value) > MAX_NESTING:
        raise DataError(f"tables are nested more than {MAX_NESTING} deep")
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"not to be written as JSON: {error}") from None


def ids(value: Iterable[int]) -> bytes:
    found = list(value)
    if not all(isinstance(each, int) and 0 <= each < 1 << 63 for each in found):
        raise DataError("ids of tokens must be integers >= 0")
    return msgspec.msgpack.encode(found)


def one_of(known: tuple[str, ...]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in known:
            raise DataError(f"expected one of {', '.join(known)}, got {value!r}")
        return value

    return check


def moment(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"expected seconds since 1970, got {value!r}")
    return float(value)


OF_CHAT: Mapping[str, Callable[[Any], Any]] = {
    "title": title,
    "model": text,
    "settings": lambda value: document(dict(value)),
    "folder": title,
    "pinned": bool,
    "leaf": lambda value: None if value is None else text(value),
}
"""What can be changed of a chat, and how it is written."""
OF_MESSAGE: Mapping[str, Callable[[Any], Any]] = {
    "content": text,
    "thought": text,
    "calls": lambda value: document(list(value)),
    "attachments": lambda value: document(list(value)),
    "state": one_of(STATES),
    "model": text,
    "meta": lambda value: document(dict(value)),
    "ids": ids,
}


def columns(fields: Mapping[str, Any], known: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Fields as they are written. Raises TypeError for one that cannot be changed, DataError for a wrong value."""
    if unknown := fields.keys() - known.keys():
        raise TypeError(f"cannot change {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    found = {}
    for name, value in fields.items():
        try:
            found[name] = known[name](value)
        except DataError as error:
            raise DataError(f"{name}: {error}", field=name) from None
    return found


def chat_of(row: sqlite3.Row) -> Chat:
    fields = {name: row[name] for name in Chat.__dataclass_fields__}
    return Chat(**{**fields, "settings": json.loads(row["settings"]), "pinned": bool(row["pinned"])})


def message_of(row: sqlite3.Row) -> Message:
    fields = {name: row[name] for name in Message.__dataclass_fields__}
    tables = {name: json.loads(row[name]) for name in ("calls", "attachments", "meta")}
    return Message(**{**fields, **tables, "ids": tuple(msgspec.msgpack.decode(row["ids"]))})


def insert_chat(connection: sqlite3.Connection, fields: Mapping[str, Any]) -> str:
    """A new chat and its id. fields: of OF_CHAT but the leaf, created and updated."""
    now = time.time()
    values = {"title": "", "model": "", "settings": {}, "folder": "", "pinned": False}
    values |= {name: fields[name] for name in values if name in fields}
    moments = {name: moment(fields.get(name, now)) for name in ("created", "updated")}
    return _insert(connection, "chats", columns(values, OF_CHAT) | moments)


def insert_message(connection: sqlite3.Connection, chat: str, fields: Mapping[str, Any], owner: str = "") -> str:
    """A new message and its id. fields: parent, role, those of OF_MESSAGE, created."""
    parent = fields["parent"]
    known = connection.execute("SELECT 1 FROM messages WHERE chat = ? AND id = ?", (chat, parent)).fetchone()
    if parent is not None and known is None:
        raise DataError(f"unknown message {parent!r} in the chat {chat!r}")
    values = {"content": "", "thought": "", "calls": (), "attachments": (), "state": "done"}
    values |= {"model": "", "meta": {}, "ids": ()}
    values |= {name: fields[name] for name in values if name in fields}
    own = {"chat": chat, "parent": parent, "role": one_of(ROLES)(fields["role"]), "owner": owner}
    created = moment(fields.get("created", time.time()))
    return _insert(connection, "messages", columns(values, OF_MESSAGE) | own | {"created": created})


def _insert(connection: sqlite3.Connection, table: str, values: Mapping[str, Any]) -> str:
    ident = secrets.token_hex(8)
    names = ["id", *values]
    marks = ", ".join("?" * len(names))
    connection.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", (ident, *values.values()))
    return ident


def update(connection: sqlite3.Connection, table: str, ident: str, values: Mapping[str, Any]) -> None:
    """Raises DataError for an id that is not there. table: chats or messages."""
    if values:
        query = f"UPDATE {table} SET {', '.join(f'{name} = ?' for name in values)} WHERE id = ? RETURNING 1"
        found = connection.execute(query, (*values.values(), ident)).fetchall()
    else:
        found = connection.execute(f"SELECT 1 FROM {table} WHERE id = ?", (ident,)).fetchall()
    the_one(found, table.removesuffix("s"), ident)


def the_one(found: list[T], what: str, ident: str) -> T:
    if not found:
        raise DataError(f"unknown {what} {ident!r}")
    return found[0]
