"""Readers of values: JSON, and lists, objects, strings, numbers and words as Python and Gemma write them.

Invariants: a value is read in time and memory linear in its text, or Malformed is raised; nothing is evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64  # of nested values
PYTHON_WORDS = {"True": True, "False": False, "None": None}


class Malformed(ValueError):
    """Why a text is no call."""


_WORDS = {"true": True, "false": False, "null": None, **PYTHON_WORDS}
QUOTE = '<|"|>'
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
NAME = re.compile(r"[^\W\d][\w.-]*")


class Values:
    """place: where in the text the next value is looked for."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def skip(self) -> None:
        self.place = blank(self.text, self.place)

    def take(self, literal: str) -> bool:
        self.skip()
        found = self.text.startswith(literal, self.place)
        self.place += len(literal) * found
        return found

    def match(self, pattern: re.Pattern[str]) -> str | None:
        self.skip()
        found = pattern.match(self.text, self.place)
        self.place = self.place if found is None else found.end()
        return None if found is None else found[0]

    def need(self, literal: str) -> None:
        if not self.take(literal):
            raise Malformed(f"there is no {literal} where one should be")

    def items(self, end: str, item: Callable[[], None]) -> None:
        """What stands between commas up to `end`; a comma may stand in front of the end, too."""
        while not self.take(end):
            item()
            if not self.take(","):
                self.need(end)
                return

    def value(self, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise Malformed("values are nested too deeply")
        if self.take("["):
            return self.array("]", depth)
        if self.take("("):
            return self.array(")", depth)
        if self.take("{"):
            return self.object(depth)
        string = self.string()
        if string is not None:
            return string
        if word := self.match(NAME):
            if word not in _WORDS:
                raise Malformed("a word that is no value")
            return _WORDS[word]
        number = self.match(_NUMBER)
        try:
            return int(number) if number and number.lstrip("+-").isdigit() else float(number or "")
        except ValueError:
            raise Malformed("there is no value where one should be") from None

    def array(self, end: str, depth: int) -> list[Any]:
        """The rest of a list, behind its bracket."""
        found: list[Any] = []
        self.items(end, lambda: found.append(self.value(depth + 1)))
        return found

    def object(self, depth: int = 0) -> dict[str, Any]:
        """The rest of an object, behind its brace."""
        found: dict[str, Any] = {}

        def pair() -> None:
            key = self.string()
            key = (self.match(re.compile(r"[^:,{}\[\]]+")) or "").strip() if key is None else key
            self.need(":")
            found[key] = self.value(depth + 1)

        self.items("}", pair)
        return found

    def string(self) -> str | None:
        if self.take(QUOTE):
            end = self.text.find(QUOTE, self.place)
            begin, self.place = self.place, end + len(QUOTE)
            if end < 0:
                raise Malformed("a string does not end")
            return self.text[begin:end]
        quote = next((quote for quote in ('"', "'") if self.take(quote)), None)
        if quote is None:
            return None
        found = re.compile(rf"(?:[^{quote}\\]|\\.)*+{quote}", re.DOTALL).match(self.text, self.place)
        if found is None:
            raise Malformed("a string does not end")
        self.place = found.end()
        return re.sub(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", _unescaped, found[0][:-1], flags=re.DOTALL)


def json_value(text: str, place: int) -> tuple[Any, int]:
    """The JSON value at a place, and the place behind it. A line end inside a string is taken: models write them."""
    try:
        return json.JSONDecoder(strict=False, parse_constant=_constant).raw_decode(text, place)
    except (ValueError, RecursionError):
        raise Malformed("not valid JSON") from None


def _constant(name: str) -> Any:
    raise Malformed("NaN and Infinity are no JSON")


def blank(text: str, place: int, also: str = "") -> int:
    """The first place from here on that holds no white space, and none of the characters `also`."""
    while place < len(text) and (text[place].isspace() or text[place] in also):
        place += 1
    return place


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES.get(code, code)
