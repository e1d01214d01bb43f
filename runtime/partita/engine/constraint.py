"""What holds one reply to a `Constraint`: which tokens may come next, and which must.

Not here: how grammars are compiled (`grammars`), and the engine that applies masks to logits. A reply is free while a
trigger is awaited, inside a thought, or bound to the grammar, at its beginning perhaps with a thought as an
alternative. Invariants: the token in which an awaited literal ends brings nothing behind it that the grammar forbids;
without triggers a reply ends only where its grammar may; nothing but DataError is raised.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal as Choice

from llguidance import LLMatcher

from ..errors import DataError
from ..text.tokenizer import Tokenizer
from .grammars import Mask, Part, Vocabulary, body, reason
from .request import Constraint

_ANYTHING = "/(?s:.*)/"
_BEFORE = 32  # tokens of the prompt in which a trigger may have begun


class Grammars:
    """Makes matchers for the replies of one loaded model. Safe to share between threads.

    size: the width of the logits.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._vocabulary = Vocabulary(tokenizer, size)

    def prepare(self) -> threading.Thread:
        """Begin, in a thread of its own, what the first matcher would else wait for: up to two seconds of work."""
        thread = threading.Thread(target=lambda: self._vocabulary.library, name="grammars", daemon=True)
        thread.start()
        return thread

    def matcher(self, constraint: Constraint) -> Matcher:
        """What holds one reply to a constraint. Raises DataError for a grammar that does not compile, if there are no
        triggers."""
        return Matcher(self._vocabulary, constraint)


@dataclass(frozen=True)
class _Awaited:
    """A literal that changes what may follow. spelled: as tokens contribute it. text: behind its last control token."""

    spelled: bytes
    text: str

    @classmethod
    def of(cls, vocabulary: Vocabulary, literal: str) -> _Awaited:
        return cls(vocabulary.spelled(literal), vocabulary.tokenizer.control_pattern.split(literal)[-1])

    def begun(self, tail: bytes) -> int | None:
        """How many bytes of its text a tail ends with, all in front of it included; None where it has not begun."""
        text = self.text.encode()
        front = self.spelled[: len(self.spelled) - len(text)]
        least = 0 if front else 1
        return next((n for n in range(len(text) - 1, least - 1, -1) if tail.endswith(front + text[:n])), None)


class _Watch:
    """Finds the first of some literals in what tokens contribute. before: what was contributed earlier."""

    def __init__(self, awaited: Sequence[_Awaited], before: bytes = b"") -> None:
        self._awaited, self.tail = awaited, b""
        self._keep = max(len(each.spelled) for each in awaited) - 1
        self._shorten(before)

    def push(self, data: bytes) -> tuple[_Awaited, bytes] | None:
        """The literal that ends in these bytes, and what stands behind it."""
        tail = self.tail + data
        self._shorten(tail)
        places = [(place, each) for each in self._awaited if (place := tail.find(each.spelled)) >= 0]
        if not places:
            return None
        place, found = min(places, key=lambda each: each[0])
        return found, tail[place + len(found.spelled) :]

    def begun(self) -> tuple[_Awaited, bytes] | None:
        """The literal whose text the next token may end, and what there is of that text."""
        counts = [(count, each) for each in self._awaited if (count := each.begun(self.tail)) is not None]
        if not counts:
            return None
        count, found = max(counts, key=lambda each: each[0])
        return found, found.text.encode()[:count]

    def _shorten(self, tail: bytes) -> None:
        self.tail = tail[max(len(tail) - self._keep, 0) :]


class Matcher:
    """Holds one reply to a constraint: `begin`, then in turn `mask`, `push` of the token that was chosen under it, and
    `forced`, whose tokens are pushed like any others.

    Each step raises DataError where the reply cannot go on under its grammar, and making one where that does not
    compile; with triggers the reply goes on free instead, and `warning` says so.
    """

    def __init__(self, vocabulary: Vocabulary, constraint: Constraint) -> None:
        self.finished = False
        """Whether the reply is whole, so that nothing may follow, a stop id neither."""
        self.warning = constraint.warning or None
        """What is not enforced, in a line; it comes once, at any step, and stays."""
        self._vocabulary, self._constraint = vocabulary, constraint
        self._triggers = [_Awaited.of(vocabulary, literal) for literal in constraint.triggers]
        self._first = [_Awaited.of(vocabulary, literal) for literal in constraint.first]
        self._thought = None if constraint.thought is None else _Awaited.of(vocabulary, constraint.thought[0])
        self._compiled: dict[tuple[str, bool], LLMatcher] = {}
        self._state: Choice["free", "thought", "bound"] = "free"
        self._watch: _Watch | None = None  # None in "free": free to the end
        self._bound: LLMatcher | None = None
        self._opening: LLMatcher | None = None  # of a thought, beside or in place of the grammar
        self._front: bytes | None = None  # what has come while it may be the beginning of a thought, or of `first`
        try:
            self._body = body(constraint)
            self._entered("")
        except DataError as error:
            self._give_up(str(error))

    def begin(self, prompt: Sequence[int]) -> None:
        """The reply begins behind these ids, in which a trigger may have begun."""
        if self._constraint.triggers and not self._triggers:  # given up
            return
        if self._thought is not None and self._constraint.thinking:
            self._think(b"")
            return
        self._front = b"" if self._thought is not None or self._first else None
        if self._triggers:
            self._await(b"".join(map(self._vocabulary.contribution, prompt[-_BEFORE:])), self._first)
            return
        self._state, self._bound = "bound", self._entered("")
        if self._constraint.thought is not None:
            self._opening = self._vocabulary.start([_beginning(self._vocabulary, self._constraint.thought[0])])

    def mask(self) -> Mask | None:
        """The tokens that may come next, int32 (ceil(V / 32),), a bit each from the lowest on; None where all may."""
        if self.finished:
            return None
        mask = self._bound_mask() if self._state == "bound" else self._free_mask()
        if mask is not None and not mask.any():
            self._give_up("no token of the vocabulary goes on with it")
            return None
        return mask

    def push(self, token: int) -> None:
        """The next token of the reply."""
        if token in self._vocabulary.stop_ids:
            self.finished = True
        elif self._state == "bound":
            self._follow(token)
        else:
            self._look(self._vocabulary.contribution(token))

    def forced(self) -> list[int]:
        """The tokens that must come next, none where there is a choice."""
        if self.finished or self._state != "bound" or self._bound is None or self._opening is not None:
            return []
        return self._bound.compute_ff_tokens()

    # ---------------------------------------------------------------- free, and in a thought

    def _await(self, before: bytes, more: Sequence[_Awaited] = ()) -> None:
        self._state, self._bound = "free", None
        self._watch = _Watch([*self._triggers, *more], before)

    def _think(self, rest: bytes) -> None:
        """A thought has begun; rest: what there is of it."""
        assert self._constraint.thought is not None
        self._state, self._bound, self._opening, self._front = "thought", None, None, None
        self._watch = _Watch([_Awaited.of(self._vocabulary, self._constraint.thought[1])])
        self._look(rest)

    def _look(self, data: bytes) -> None:
        if self._begins(data) or self._watch is None:
            return
        found = self._watch.push(data)
        if found is None:
            return
        literal, rest = found
        if self._state == "thought" and self._triggers:
            self._await(b"")
            self._look(rest)
        else:
            self._enter(literal, rest)

    def _begins(self, data: bytes) -> bool:
        """Whether a thought begins with these bytes, of which none is lost."""
        if self._front is None:
            return False
        self._front += data
        text = self._front.lstrip()
        thought = None if self._thought is None else self._thought.spelled.lstrip()
        if thought is not None and text.startswith(thought):
            self._think(text[len(thought) :])
            return True
        begins = [*(each.spelled for each in self._first), *([] if thought is None else [thought])]
        if not any(begin.startswith(text) or text.startswith(begin) for begin in begins):
            self._front = None
            if self._first and self._watch is not None:
                self._await(self._watch.tail)
        return False

    def _free_mask(self) -> Mask | None:
        vocabulary, thinking = self._vocabulary, self._state == "thought"
        allowed = None if self._constraint.triggers else vocabulary.everything & ~vocabulary.stops
        begun = None if self._watch is None or (thinking and self._triggers) else self._watch.begun()
        if begun is None:
            return allowed
        literal, text = begun
        gate = self._entered(literal.text)
        if not gate.consume_tokens(vocabulary.library.tokenize_bytes(text)):
            return allowed
        mask = vocabulary.mask(gate) | vocabulary.controls
        return mask if allowed is None else mask & allowed

    # ---------------------------------------------------------------- bound

    def _entered(self, text: str) -> LLMatcher:
        """The grammar behind anything that ends with a text, at its beginning; behind nothing for ""."""
        thinking = self._state == "thought"
        known = self._compiled.get((text, thinking))
        if known is None:
            between = self._constraint.between if thinking else ""
            parts = [self._body] if not (text or between) else [_gate(text, between), self._body]
            known = self._compiled[text, thinking] = self._vocabulary.start(parts)
        known.reset()
        return known

    def _enter(self, literal: _Awaited, rest: bytes) -> None:
        """A literal has come behind which the grammar begins, and with it the beginning of what follows."""
        self._bound = self._entered(literal.text)
        self._state, self._watch = "bound", None
        self._bound.consume_tokens(self._vocabulary.library.tokenize_bytes(literal.text.encode() + rest))
        self._settle()

    def _follow(self, token: int) -> None:
        if self._opening is not None and not _goes_on(self._opening, token):
            self._opening = self._front = None
        elif self._opening is not None:
            self._bound = self._bound if self._bound is not None and self._bound.validate_tokens([token]) else None
        if self._bound is not None:
            self._bound.consume_token(token)
        if not self._begins(self._vocabulary.contribution(token)):
            self._settle()

    def _settle(self) -> None:
        """What the last token makes of the grammar."""
        if self._bound is None and self._opening is not None:
            return
        if self._bound is None or self._bound.is_error():
            self._give_up(reason(self._bound.get_error()) if self._bound is not None else "it was left")
        elif self._bound.is_stopped() and self._opening is None:
            self._end_part()

    def _end_part(self) -> None:
        if self._triggers and not self._constraint.once:
            self._await(b"")
        else:
            self.finished = True

    def _bound_mask(self) -> Mask | None:
        vocabulary = self._vocabulary
        mask = vocabulary.everything & 0 if self._bound is None else vocabulary.mask(self._bound)
        if self._bound is not None and self._bound.is_error():
            self._give_up(reason(self._bound.get_error()))
            return None
        if self._opening is not None:
            return mask | vocabulary.mask(self._opening)
        if self._triggers and not (mask & ~vocabulary.stops).any() and mask.any():  # the part is over
            self._end_part()
            return self.mask()
        return mask

    def _give_up(self, why: str) -> None:
        """The reply cannot be held to the grammar: it goes on free, where it may be."""
        if not self._constraint.triggers:
            raise DataError(why)
        self.warning = "; ".join(filter(None, (self.warning, why)))
        self._triggers, self._thought, self._front = [], None, None
        self._state, self._watch, self._bound, self._opening = "free", None, None, None


def _goes_on(matcher: LLMatcher, token: int) -> bool:
    return matcher.validate_tokens([token]) == 1 and matcher.consume_token(token)


def _gate(text: str, between: str) -> Part:
    """A grammar of anything up to a text, what stands between, and then the one that is named "body"."""
    front = "gate " if text else ""
    gate = f"\ngate[lazy]: GATE\nGATE: {_ANYTHING} {json.dumps(text, ensure_ascii=False)}" if text else ""
    return {"lark_grammar": f"start: {front}{between} @body{gate}"}


def _beginning(vocabulary: Vocabulary, literal: str) -> Part:
    """A grammar of a literal, and then anything."""
    pieces = vocabulary.tokenizer.control_pattern.split(literal)
    found = [
        f"<[{vocabulary.tokenizer.controls[piece]}]>" if i % 2 else json.dumps(piece, ensure_ascii=False)
        for i, piece in enumerate(pieces)
        if piece
    ]
    return {"lark_grammar": f"start: {' '.join(found)} ANYTHING\nANYTHING: {_ANYTHING}"}
