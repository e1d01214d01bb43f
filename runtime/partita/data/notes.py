"""What a person should know of training data in which nothing is wrong: each thing once, with where it was met first.

Not here: what is wrong, which is a DataError of its line. Invariant: memory does not grow with the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..printable import printable

_MOST = 8  # keys that are named
_LONGEST = 40  # characters of a key that are shown


class Notes:
    """Takes notes of records by their places ("data.jsonl line 3")."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, bool], str] = {}  # (key, of messages?) to place
        self._more = False
        self._letters: tuple[str, str] | None = None

    @property
    def message_keys(self) -> frozenset[str]:
        """Those of messages that are noted already."""
        return frozenset(key for key, of_messages in self._keys if of_messages)

    @property
    def full(self) -> bool:
        """Whether no other key will be named."""
        return self._more

    def unread(self, keys: Iterable[str], place: str, *, of_messages: bool = False) -> None:
        """Keys of a record, or of its messages, that come to nothing."""
        for key in keys:
            if (key, of_messages) in self._keys:
                continue
            if len(self._keys) == _MOST:
                self._more = True
                return
            self._keys[key, of_messages] = place

    def letters(self, literal: str, place: str) -> None:
        """A control token's literal in plain text, which is read as its letters."""
        self._letters = self._letters or (literal, place)

    def lines(self) -> tuple[str, ...]:
        found: list[str] = []
        if self._keys:
            keys = ", ".join(_key(key, of_messages, place) for (key, of_messages), place in self._keys.items())
            found.append(f"nothing reads {keys}{' and more keys' if self._more else ''}")
        if self._letters is not None:
            literal, place = self._letters
            found.append(
                f"control tokens in plain text are read as letters, as {printable(literal[:_LONGEST])} in "
                f"{_short(place)}: `control_tokens` reads them as tokens"
            )
        return tuple(found)


def _key(key: str, of_messages: bool, place: str) -> str:
    shown = printable(json.dumps(key[:_LONGEST], ensure_ascii=False))
    return f"{shown}{' of messages' if of_messages else ''} ({_short(place)})"


def _short(place: str) -> str:
    return printable(Path(place).name)
