"""Speculative decoding: several tokens for one pass of the model, and never another token than without it.

A drafter proposes what may come next. The model reads the last token and the proposal as one chunk and chooses its own
token after each of them with the ordinary sampler; the first that differs from the proposal ends the step, and the
cache takes the rest back. Only the model's own choices are ever emitted, so the text is the one it would have written
alone: greedy, and drawn with a seed too, since a token costs one uniform number either way (computed in float32; in 16
bits a chunk may round otherwise than single tokens do). One host read a step. Knows no array library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import Backend
from ..cache.state import Cache
from ..errors import ContextError, DataError
from ..model.decoder import Decoder
from ..quantization import Array
from .compiled_step import DecodeStep
from .decode import Generated, prefill
from .sampling import Sampler, finite, not_finite

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
            raise DataError(f"a draft must be at least 1 token long, not {count}")
        self.count = count
        self.acceptance = Acceptance()
        """Of the reply that is being written, or of the last one."""
        self._length = count

    def begin(self, prompt: Sequence[int]) -> None:
        """A reply to the whole prompt begins."""
        self.acceptance, self._length = Acceptance(), self.count
        self._begin(prompt)

    def propose(self, limit: int) -> Sequence[int] | Array:
        """At most `limit` ids that may come next, perhaps none: on the host, or int32 (n,) on the target's device."""
        return self._propose(min(limit, self._length)) if limit > 0 else ()

    def observe(self, emitted: Sequence[int], accepted: int, proposed: int) -> None:
        """What the model said instead: the first `accepted` are those of the last proposal. Before the next one."""
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


def speculate(
    ops: Backend,
    model: Decoder,
    cache: Cache,
    prompt: Sequence[int],
    *,
    drafter: Drafter,
    sampler: Sampler,
    max_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
    alternatives: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    on_fed: Callable[[Sequence[int]], None] | None = None,
) -> Iterator[Generated]:
    """What `generate` gives, token for token, by a drafter that has begun. For one row and a sampler of one.

    on_fed(ids): ids that are in the cache for good. When the iterator ends or is closed, the cache holds these exactly.
    Raises ContextError for a drafter whose proposals are longer than the cache can take back.
    """
    if drafter.count >= cache.spec.chunk:  # a ring has at least chunk - 1 slots to spare, so trim never fails below
        raise ContextError(too_long(drafter.count, cache))
    begun = time.perf_counter()
    logits = prefill(ops, model, cache, prompt, on_progress=on_progress, on_fed=on_fed)
    single = DecodeStep(ops, model, cache) if ops.compiles else lambda tokens: model(ops, tokens, cache)
    drafts, proposed, left = None, 0, max_tokens
    while True:
        run = _verify(ops, logits, drafts, sampler, alternatives, begun)
        accepted = len(run) - 1
        if proposed > accepted:
            cache.trim(proposed - accepted)
        emitted = [generated.id for generated in run]
        drafter.observe(emitted, accepted, proposed)
        unsaid = accepted  # tokens of this run in the cache not yet reported by on_fed
        try:
            for i, generated in enumerate(run):
                if i < accepted:
                    unsaid -= 1
                    if on_fed is not None:
                        on_fed(emitted[i : i + 1])
                left -= 1
                yield generated
                if generated.id in stop_ids or not left:
                    return
        finally:
            if unsaid:
                cache.trim(unsaid)
        begun = time.perf_counter()
        proposal = drafter.propose(left - 1)
        proposed, host = len(proposal), isinstance(proposal, (list, tuple))
        drafts = None if not proposed else ops.array(np.asarray(proposal, np.int32)) if host else proposal
        last = ops.array(np.asarray(emitted[-1:], np.int32))
        if drafts is None:
            logits = single(last[None, :])
        else:
            logits = model(ops, ops.concat([last, drafts], 0)[None, :], cache, every=True)[0]
        if on_fed is not None:
            on_fed(emitted[-1:])


def _verify(
    ops: Backend, logits: Array, drafts: Array | None, sampler: Sampler, alternatives: int, begun: float
) -> list[Generated]:
    """The accepted drafts and the model's own token after them. logits: (T, V) before and after each of T - 1 drafts.

    All of a step's seconds are its first token's: the others were there at the same moment.
    """
    tokens = sampler.verify(logits, drafts)
    rows = logits.shape[0]
    read = ops.fetch(ops.concat([finite(ops, logits), tokens, *([] if drafts is None else [drafts])], 0))
    details: list[Callable[[], np.ndarray]] = []
    if alternatives:
        p = ops.softmax(logits, -1)
        vocabulary = p.shape[-1]
        best, index = ops.topk(p, min(alternatives, vocabulary))
        places = ops.array(np.arange(rows, dtype=np.int32) * vocabulary) + tokens
        details = [ops.fetch(best), ops.fetch(index), ops.fetch(ops.take(p.reshape(-1), places, 0))]
    ids = read().tolist()
    seconds = time.perf_counter() - begun
    whole, own, drafted = ids[:rows], ids[rows : 2 * rows], ids[2 * rows :]
    accepted = next((i for i, (a, b) in enumerate(zip(own, drafted, strict=False)) if a != b), len(drafted))
    emitted = own[: accepted + 1]
    if not all(whole[: accepted + 1]):
        raise not_finite(ops)
    sampler.accept(emitted)
    found = [part() for part in details]
    run = []
    for i, token in enumerate(emitted):
        took = 0.0 if i else seconds
        if not found:
            run.append(Generated(token, took))
            continue
        best, index, chosen = found
        pairs = tuple((int(j), float(p)) for j, p in zip(index[i], best[i], strict=True))
        run.append(Generated(token, took, float(chosen[i]), pairs))
    return run


def too_long(count: int, cache: Cache) -> str:
    """What to tell somebody whose drafts are longer than a cache can take back."""
    return (
        f"a draft of {count} tokens is too long for a cache with chunks of {cache.spec.chunk}: "
        f"draft {cache.spec.chunk - 1} or fewer at once"
    )
