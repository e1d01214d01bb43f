"""Drafters of speculative decoding: what may come next, so that several tokens come of one pass of the model.

Not here: how a proposal is judged (`decode`), a smaller model that proposes (`draft_model`). Knows no array library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..arrays import Array
from ..cache.state import Cache
from ..errors import ContextError, DataError

DEFAULT_COUNT = 7
"""Most tokens proposed at once: eight rows with the last token, up to which fast kernels for a few rows reach."""


@dataclass(frozen=True)
class Acceptance:
    """How a drafter did in one reply. proposed, accepted: drafted tokens. steps: passes of the model."""

    proposed: int = 0
    accepted: int = 0
    steps: int = 0

    @property
    def rate(self) -> float:
        """Share of the proposed tokens that were accepted; 0 before the first."""
        return self.accepted / self.proposed if self.proposed else 0.0


class Drafter:
    """Proposes tokens. What it proposes decides how fast a reply comes, never what it says.

    count: most tokens of one proposal. Its length adapts: it doubles while everything is accepted, and otherwise
    becomes one more than was accepted. A subclass gives `_begin`, `_propose` and `_observe`. For one conversation at a
    time.
    """

    def __init__(self, count: int = DEFAULT_COUNT):
        if count < 1:
            raise DataError(f"a draft must have >= 1 token, got {count}")
        self.count = count
        self.acceptance = Acceptance()
        """Of the reply that is being written, or of the last one."""
        self._length = count

    def check(self, cache: Cache) -> None:
        """Raise ContextError for a cache that cannot take a whole proposal back."""
        chunk = cache.spec.chunk  # a ring has at least chunk - 1 slots to spare, so that trimming these never fails
        if self.count >= chunk:
            raise ContextError(
                f"a draft of {self.count} tokens is too long for a cache with chunks of {chunk}: "
                f"draft {chunk - 1} or fewer at once"
            )

    def begin(self, prompt: Sequence[int]) -> None:
        """A reply to the whole prompt begins."""
        self.acceptance, self._length = Acceptance(), self.count
        self._begin(prompt)

    def propose(self, limit: int) -> Sequence[int] | Array:
        """At most `limit` ids that may come next, perhaps none: on the host, or int32 (n,) on the target's device."""
        return self._propose(min(limit, self._length)) if limit > 0 else ()

    def observe(self, emitted: Sequence[int], accepted: int, proposed: int) -> None:
        """Take in what the model emitted, of which the first `accepted` are those of the last proposal."""
        was = self.acceptance
        self.acceptance = Acceptance(was.proposed + proposed, was.accepted + accepted, was.steps + 1)
        if proposed:
            self._length = min(self.count, max(2 * accepted, 2)) if accepted == proposed else accepted + 1
        self._observe(emitted, accepted, proposed)

    def _begin(self, prompt: Sequence[int]) -> None:
        """Nothing has been said after `prompt` yet."""

    def _propose(self, limit: int) -> Sequence[int] | Array:
        return ()

    def _observe(self, emitted: Sequence[int], accepted: int, proposed: int) -> None:
        """Take in what was emitted since the last proposal."""


class PromptLookup(Drafter):
    """What followed the last time that the text ended like this: for replies that repeat their prompt or themselves.

    min_ngram, max_ngram: how many tokens must agree; the longest agreement counts, and of these the latest. A text is
    indexed once, a token at a time, so that a conversation that goes on costs its new tokens only.
    """

    def __init__(self, max_ngram: int = 4, min_ngram: int = 2, count: int = DEFAULT_COUNT):
        super().__init__(count)
        if not 1 <= min_ngram <= max_ngram:
            raise DataError(f"n-grams must be from 1 token up to the longest, not from {min_ngram} to {max_ngram}")
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram to the place that follows its latest occurrence

    def _begin(self, prompt: Sequence[int]) -> None:
        held = len(self._text)
        if list(prompt[:held]) != self._text:
            held, self._text, self._after = 0, [], {}
        self._index(prompt[held:])

    def _observe(self, emitted: Sequence[int], accepted: int, proposed: int) -> None:
        self._index(emitted)

    def _index(self, tokens: Sequence[int]) -> None:
        text, after = self._text, self._after
        for token in tokens:
            place = len(text)  # an n-gram is known once something follows it, so the text's own end finds earlier ones
            for size in self._sizes:
                if size <= place:
                    after[tuple(text[place - size :])] = place
            text.append(token)

    def _propose(self, limit: int) -> Sequence[int]:
        text = self._text
        for size in self._sizes:
            place = self._after.get(tuple(text[-size:])) if size <= len(text) else None
            if place is not None:
                period = len(text) - place  # beyond the text's end it goes on as it began
                return [text[place + i % period] for i in range(limit)]
        return ()
