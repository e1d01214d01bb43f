"""Conversations as files: messages, settings and the model's name in one JSON document. Written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from partita.errors import DataError
from partita.files.atomic import alone, remove_leftovers_of, whole_file
from partita.files.bounded import parse, read_bytes
from partita.files.typed import Misfit, typed
from partita.printable import json_text

from .settings import Settings

VERSION = 1
_KEY = "partita_conversation"
_LONGEST = 1 << 26  # bytes; a conversation is text
_ROLES = ("user", "assistant")


class _Function(TypedDict):
    name: str
    arguments: dict[str, Any]


class _Call(TypedDict):
    id: str
    type: Literal["function"]
    function: _Function


class Message(TypedDict):
    """One message of a file, with what was thought and called where there is any."""

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[_Call]]


@dataclass(frozen=True)
class _Document:
    model: str
    settings: dict[str, Any]
    messages: list[Message]


@dataclass(frozen=True)
class Saved:
    """One conversation. messages: user and assistant in turn, each a role and a content."""

    model: str
    settings: Settings
    messages: list[dict[str, Any]]


def save(saved: Saved, path: Path) -> None:
    """Raises DataError where that cannot be done; what stood there is then still there."""
    document = {
        _KEY: VERSION,
        "model": saved.model,
        "settings": saved.settings.document(),
        "messages": saved.messages,
    }
    with held(path), whole_file(path, private=True) as partial:
        partial.write_text(json_text(document, indent=1), encoding="utf-8")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """A file that nobody else writes meanwhile, without what killed chats left. DataError where it is in use, or where
    no file can be put."""
    folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        raise DataError(f"{path} cannot be written: there is no folder {folder}: choose another place")
    with alone(path, f"{path} is in use by a running chat: leave that one first, or name another file"):
        remove_leftovers_of(path)
        yield


def load(path: Path) -> Saved:
    """CheckpointError for a file that cannot be read, DataError for one that is no conversation of this version."""
    data = read_bytes(path, _LONGEST)
    try:
        document = parse(data.decode())
    except ValueError:
        document = None
    if not isinstance(document, dict) or _KEY not in document:
        raise DataError(f"{path} is not a saved conversation: give a file that /save has written")
    if document[_KEY] != VERSION:
        raise DataError(f"{path} is a conversation of format {document[_KEY]!r}, and this partita reads {VERSION}")
    try:
        found = typed(document, _Document)
        refuse_unanswered(found.messages)
        return Saved(found.model, Settings.of(found.settings), cast("list[dict[str, Any]]", found.messages))
    except (Misfit, DataError) as error:
        raise DataError(f"{path} is a damaged conversation: {error}") from None


def refuse_unanswered(messages: Sequence[Message]) -> None:
    """DataError for messages that are not of user and assistant in turn, the last one an answer."""
    for i, message in enumerate(messages):
        if message["role"] != _ROLES[i % 2]:
            raise DataError(f"message {i + 1} is not of the {_ROLES[i % 2]}")
    if len(messages) % 2:
        raise DataError("the last message has no answer")
