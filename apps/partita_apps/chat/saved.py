"""Conversations as files: messages, settings and the model's name in one JSON document. Written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partita.errors import DataError

from .settings import Settings

VERSION = 1
_KEY = "partita_conversation"
_LONGEST = 1 << 26  # bytes; a conversation is text
_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Saved:
    """One conversation. messages: user and assistant in turn, each a role and a content."""

    model: str
    settings: Settings
    messages: list[dict[str, Any]]


def save(saved: Saved, path: Path) -> None:
    """Write, fsync, rename. Raises DataError where that cannot be done; what stood there is then still there."""
    document = {
        _KEY: VERSION,
        "model": saved.model,
        "settings": saved.settings.document(),
        "messages": saved.messages,
    }
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="replace", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as out:
            temporary = Path(out.name)
            json.dump(document, out, ensure_ascii=False, indent=1)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror}: choose another place") from None


def load(path: Path) -> Saved:
    """Raises DataError for a file that cannot be read or is no conversation of this version."""
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
        document = json.loads(data.decode("utf-8")) if len(data) <= _LONGEST else None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or _KEY not in document:
        raise DataError(f"{path} is not a saved conversation: give a file that /save has written")
    if document[_KEY] != VERSION:
        raise DataError(f"{path} is a conversation of format {document[_KEY]!r}, and this partita reads {VERSION}")
    try:
        return Saved(str(document["model"]), Settings.of(document["settings"]), checked(document["messages"]))
    except (KeyError, TypeError, AttributeError, DataError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is a damaged conversation: {what}") from None


def checked(found: Any) -> list[dict[str, Any]]:
    """Messages as they were read from a file. Raises DataError, KeyError or TypeError for what is no conversation."""
    messages = [{"role": message["role"], "content": message["content"]} for message in found]
    for i, message in enumerate(messages):
        if message["role"] != _ROLES[i % 2] or not isinstance(message["content"], str):
            raise DataError(f"message {i + 1} is not a text of the {_ROLES[i % 2]}")
    if len(messages) % 2:
        raise DataError("the last message has no answer")
    return messages
