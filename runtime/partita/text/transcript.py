"""Token ids of a conversation that grows. Knows no model and no cache.

A reply's text, tokenized again, need not give the ids that were generated, and every id that differs would be fed to
the model once more with all that follows. So what was generated is kept as generated, as long as the rendered
conversation begins with the same text.

Invariant: the ids given for a conversation decode to its rendered text, whatever was kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .chat_template import ChatTemplate, Message, chat_parts, one_bos
from .tokenizer import Tokenizer

Parts = Sequence[tuple[str, bool]]


class Transcript:
    """Encodes a conversation again and again as it grows; only what is new is tokenized.

    Any messages may be given at any time: where the text parts from what is known, known ids end. Templates that change
    earlier messages (`<think>` left out) therefore cost a second encoding and never a wrong one.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate):
        self._tokenizer, self._template = tokenizer, template
        self._text = ""
        self._trust = ""  # one character for each of the text: "1" where control tokens may be read from it
        self._ids: list[int] = []
        self._places = [(0, 0)]  # (characters, ids) at which the ids can be cut, ascending

    def encode(self, messages: Sequence[Message], /, **variables: Any) -> list[int]:
        """Ids of the conversation with the beginning of a reply, one BOS in front where the model was trained with one.

        Raises TemplateError where the template does not take these messages.
        """
        return self.encode_parts(chat_parts(self._tokenizer, self._template, messages, **variables))

    def encode_parts(self, parts: Parts) -> list[int]:
        """The same for a conversation that was rendered before, by `chat_parts`."""
        text, trust = _flat(parts)
        known = self._known(text, trust)
        while self._places[-1][0] > known:
            self._places.pop()
        characters, count = self._places[-1]
        new = self._tokenizer.encode_parts(_after(parts, characters), continues=count > 0)
        self._text, self._trust, self._ids = text, trust, self._ids[:count] + new
        self._places.append((len(text), len(self._ids)))
        return one_bos(self._tokenizer, list(self._ids))

    def known(self, parts: Parts) -> int:
        """How many characters at the beginning of a rendered conversation have been encoded here before."""
        return self._known(*_flat(parts))

    @property
    def length(self) -> int:
        """Characters of the conversation that is known."""
        return len(self._text)

    def copy(self) -> Transcript:
        """One that knows the same and grows by itself."""
        other = Transcript(self._tokenizer, self._template)
        other._text, other._trust = self._text, self._trust
        other._ids, other._places = list(self._ids), list(self._places)
        return other

    def resume(self, ids: Sequence[int], messages: Sequence[Message], /, **variables: Any) -> None:
        """Know the ids that a cache holds, which was filled with these messages and perhaps some more.

        What they decode to is what they stand for, so the work is theirs and not that of rendering every turn.
        """
        rendered = chat_parts(self._tokenizer, self._template, messages, add_generation_prompt=False, **variables)
        self._text, self._trust, self._ids, self._places = "", "", [], [(0, 0)]
        self._know(_as_written(self._tokenizer, rendered[0][0], ids))

    def add_reply(self, ids: Sequence[int]) -> None:
        """What the model generated after the ids last given, without the token that ended it.

        Where its template leaves something out of it in later turns (a thought), known ids end there.
        """
        self._know(ids)

    def _known(self, text: str, trust: str) -> int:
        return min(_common(self._text, text), _common(self._trust, trust))

    def _know(self, ids: Sequence[int]) -> None:
        """These ids follow those that are known; they can be cut beside each control token."""
        texts, trusts = [self._text], [self._trust]
        controls = frozenset(self._tokenizer.controls.values())
        for is_control, run in groupby(ids, controls.__contains__):
            found = list(run)
            text = self._tokenizer.decode(found, specials=is_control, continues=len(self._ids) > 0)
            text, trust = (text, "1" * len(text)) if is_control else _flat(_literals_apart(self._tokenizer, text))
            texts.append(text)
            trusts.append(trust)
            self._ids += found
            self._places.append((self._places[-1][0] + len(text), len(self._ids)))
        self._text, self._trust = "".join(texts), "".join(trusts)


def _as_written(tokenizer: Tokenizer, rendered: str, ids: Sequence[int]) -> list[int]:
    """The ids with as many BOS in front as the template writes itself, where a cache has one of them (`one_bos`)."""
    bos, literal = tokenizer.bos_id, tokenizer.bos_token
    if bos is None:
        return list(ids)
    begin = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    written = (len(rendered) - len(re.sub(f"^(?:{re.escape(literal)})+", "", rendered))) // len(literal)
    return [bos] * written + list(ids[begin:])


def _literals_apart(tokenizer: Tokenizer, text: str) -> Parts:
    """The parts as which a message's text is rendered: control tokens' literals in it are not control tokens."""
    return [(piece, i % 2 == 0) for i, piece in enumerate(tokenizer.control_pattern.split(text))]


def _flat(parts: Parts) -> tuple[str, str]:
    text = "".join(piece for piece, _ in parts)
    return text, "".join(("1" if trusted else "0") * len(piece) for piece, trusted in parts)


def _common(a: str, b: str) -> int:
    """Length of the common beginning; by halves, since comparing slices takes no step of ours for each character."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _after(parts: Parts, characters: int) -> Parts:
    """The parts without the first `characters` characters."""
    rest: Parts = []
    for piece, trusted in parts:
        rest.append((piece[characters:], trusted))
        characters = max(characters - len(piece), 0)
    return rest
