"""Token ids of a conversation that grows. Knows no model and no cache.

A reply's text, tokenized again, need not give the ids that were generated, and every id that differs would be fed to
the model once more with all that follows. So what was generated is kept as generated, as long as the rendered
conversation begins with the same text.

Invariant: the ids given for a conversation decode to its rendered text, whatever was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .template import ChatTemplate, Message, chat_parts, one_bos
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
        parts = chat_parts(self._tokenizer, self._template, messages, **variables)
        text, trust = _flat(parts)
        known = min(_common(self._text, text), _common(self._trust, trust))
        while self._places[-1][0] > known:
            self._places.pop()
        characters, count = self._places[-1]
        new = self._tokenizer.encode_parts(_after(parts, characters), continues=count > 0)
        self._text, self._trust, self._ids = text, trust, self._ids[:count] + new
        self._places.append((len(text), len(self._ids)))
        return one_bos(self._tokenizer, list(self._ids))

    def add_reply(self, ids: Sequence[int]) -> None:
        """What the model generated after the ids last given, without the token that ended it.

        Control tokens among them stand in no message's text, so such a reply is left to be tokenized from its text.
        """
        controls = self._tokenizer.controls.values()
        if not ids or any(token in controls for token in ids):
            return
        text, trust = _flat(_literals_apart(self._tokenizer, self._tokenizer.decode(ids, continues=True)))
        self._text += text
        self._trust += trust
        self._ids = [*self._ids, *ids]
        self._places.append((len(self._text), len(self._ids)))


def _literals_apart(tokenizer: Tokenizer, text: str) -> Parts:
    """The parts as which a message's text is rendered: control tokens' literals in it are not control tokens."""
    return [(piece, i % 2 == 0) for i, piece in enumerate(tokenizer.control_pattern.split(text))]


def _flat(parts: Parts) -> tuple[str, str]:
    text = "".join(piece for piece, _ in parts)
    return text, "".join(("1" if trusted else "0") * len(piece) for piece, trusted in parts)


def _common(a: str, b: str) -> int:
    """Length of the common beginning."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _after(parts: Parts, characters: int) -> Parts:
    """The parts without the first `characters` characters."""
    rest = []
    for piece, trusted in parts:
        rest.append((piece[characters:], trusted))
        characters = max(characters - len(piece), 0)
    return rest
