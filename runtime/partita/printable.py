"""Text that is not ours, on its way to a person: to a terminal, into a message, or into a file that people look at.

A model, a file or a name can hold escape sequences, characters that turn the direction of writing, and characters that
nobody sees. They are written as escapes (`\\x1b`, `\\u202e`). Not here: text for programs, which stays as it is.
Invariant: what these functions return holds no character of Unicode's categories Cc, Cf, Cs, Zl and Zp but the joiners
of letters and emoji (U+200C, U+200D) and, where lines are meant, line feeds and tabs.
"""

from __future__ import annotations

import unicodedata
from typing import Any

MAX_MESSAGE = 1000  # characters
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # Persian and Hindi are written with them, and half of all emoji


def visible(text: str) -> str:
    """A text of several lines. A carriage return before a line feed belongs to the line's end."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" else _shown(c) for c in text.replace("\r\n", "\n"))


def printable(text: str) -> str:
    """A text as one line, the middle of one with more than MAX_MESSAGE characters left out."""
    text = _shortened(text)
    return text if text.isprintable() else _shortened("".join(map(_shown, text)))


def json_text(document: Any, indent: int | None = None) -> str:
    """A document as JSON that can be looked at, too: what would act on a terminal is escaped as JSON does it."""
    import json  # not needed for help

    text = json.dumps(document, ensure_ascii=False, indent=indent)
    return "".join(json.dumps(c)[1:-1] if c != "\n" and _acts(c) else c for c in text)


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode() if _acts(character) else character


def _acts(character: str) -> bool:
    if character.isprintable():
        return False
    return unicodedata.category(character) in _ACTING and character not in _JOINERS


def _shortened(text: str) -> str:
    half = MAX_MESSAGE // 2 - 2
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]} … {text[-half:]}"
