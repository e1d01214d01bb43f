"""Tokens outside a vocabulary's own segmentation: control tokens, and literals that are always taken whole.

Not here: who encodes the text between them. Invariant: where several literals fit at one place, the longest counts; the
cost of finding them grows with the text, however many there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError

MAX_ADDED = 1 << 17  # the most in a published file are 65,536, for sounds
_MAX_DEPTH = 50  # literals that begin with one another: nested in an expression, which Python reads recursively
_SPACE = r"[^\S\x1c-\x1f]"  # white space as Unicode has it, which Python sees in four separators too


@dataclass(frozen=True)
class Added:
    """A token as tokenizer files describe it.

    special: a control token. lstrip, rstrip: white space before, after it belongs to it. single_word: found only where
    no letter or digit stands beside it. normalized: looked for in the text after normalizers, not before.
    """

    literal: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @classmethod
    def read(cls, entry: Mapping[str, Any], *, normalized: bool = False) -> Added:
        """From an entry of `added_tokens` or `added_tokens_decoder`. ValueError, TypeError for another form."""
        flags = {name: entry.get(name) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}
        flags = {"special": False, "normalized": normalized} | {k: v for k, v in flags.items() if v is not None}
        if not isinstance(entry["content"], str) or not all(isinstance(value, bool) for value in flags.values()):
            raise TypeError("an added token whose content is no text, or whose flags are neither true nor false")
        return cls(entry["content"], **flags)

    def for_library(self) -> Any:
        """As the `tokenizers` library takes it."""
        from tokenizers import AddedToken

        return AddedToken(
            self.literal,
            single_word=self.single_word,
            lstrip=self.lstrip,
            rstrip=self.rstrip,
            normalized=self.normalized,
            special=self.special,
        )

    @property
    def has_neighbours(self) -> bool:
        """Whether what stands beside it matters."""
        return self.lstrip or self.rstrip or self.single_word


class Literals:
    """Finds the literals of `tokens` in a text. described: those of which more is known than the literal."""

    def __init__(self, tokens: Mapping[str, int], described: Mapping[str, Added] = MappingProxyType({})) -> None:
        self._tokens = tokens
        self._described = {name: added for name, added in described.items() if added.has_neighbours}

    @cached_property  # on demand: thousands of literals take tens of milliseconds
    def pattern(self) -> re.Pattern[str]:
        """One group that matches any of them."""
        names = sorted(name for name in self._tokens if name)
        return re.compile(f"({_any_of(names, 0, 0)})" if names else r"((?!))")

    def split(self, text: str) -> Iterator[tuple[int, str, int | None]]:
        """(where it begins, text, its token if it is one) of consecutive parts, without empty ones."""
        end = 0
        for found in self.pattern.finditer(text):
            begin, stop = found.span()
            described = self._described.get(found[0])
            if described and (described.single_word and _touches_word(text, begin, stop)):
                continue
            if described and described.lstrip:
                begin = _before(text, begin)
            if described and described.rstrip:
                stop = _after(text, stop)
            if begin > end:
                yield end, text[end:begin], None
            yield max(begin, end), found[0], self._tokens[found[0]]
            end = max(stop, end)
        if end < len(text):
            yield end, text[end:], None


def _touches_word(text: str, begin: int, stop: int) -> bool:
    return re.match(r"\w", text[begin - 1 : begin]) is not None or re.match(r"\w", text[stop : stop + 1]) is not None


def _before(text: str, at: int) -> int:
    while at > 0 and re.match(_SPACE, text[at - 1]):
        at -= 1
    return at


def _after(text: str, at: int) -> int:
    while at < len(text) and re.match(_SPACE, text[at]):
        at += 1
    return at


def _any_of(names: Sequence[str], at: int, depth: int) -> str:
    """An expression for what sorted names have after their first `at` characters, which they share."""
    if depth > _MAX_DEPTH:
        raise CheckpointError(
            f"more than {_MAX_DEPTH} control tokens begin with one another, as {names[0][:40]!r} does"
        )
    ends = len(names[0]) == at
    branches: list[str] = []
    begin = int(ends)
    while begin < len(names):
        stop = begin + 1
        while stop < len(names) and names[stop][at] == names[begin][at]:
            stop += 1
        shared = _shared(names[begin], names[stop - 1], at)
        branches.append(re.escape(names[begin][at:shared]) + _any_of(names[begin:stop], shared, depth + 1))
        begin = stop
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)}){'?' * ends}"


def _shared(a: str, b: str, at: int) -> int:
    """How far two names agree; between two in order, so do all."""
    while at < min(len(a), len(b)) and a[at] == b[at]:
        at += 1
    return at
