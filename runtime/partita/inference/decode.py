"""The decode loop: token ids in, token ids out. Knows no text and no array library.

A prompt is fed in chunks. Then one host read a token at most: on a device that computes asynchronously the next step is
launched before the last token is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import Backend
from ..cache.state import Cache
from ..errors import DataError
from ..model.decoder import Decoder
from ..quantization import Array
from .compiled_step import DecodeStep
from .sampling import Sampler, finite, not_finite


@dataclass(frozen=True)
class Generated:
    """One new token. seconds: since the one before (the first: since the prompt began).

    alternatives: the most probable tokens and their probabilities before any sampling rule, if asked for; probability:
    the chosen one's.
    """

    id: int
    seconds: float
    probability: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


def prefill(
    ops: Backend,
    model: Decoder,
    cache: Cache,
    prompt: Sequence[int],
    *,
    on_progress: Callable[[int, int], None] | None = None,
    on_fed: Callable[[Sequence[int]], None] | None = None,
) -> Array:
    """Feed the prompt in chunks; logits (1, V) after its last token. on_progress(done, total) after each chunk.

    Interrupted between chunks, the cache holds exactly the chunks that were fed, which on_fed(ids) has reported.
    """
    if not prompt:
        raise DataError("the prompt is empty: give at least one token")
    model.check(prompt)
    tokens, chunk, total = np.asarray(prompt, np.int32)[None], cache.spec.chunk, len(prompt)
    last = (total - 1) // chunk * chunk
    for start in range(0, last, chunk):
        model.feed(ops, ops.array(tokens[:, start : start + chunk]), cache)
        ops.launch(*cache.arrays())
        if on_fed is not None:
            on_fed(prompt[start : start + chunk])
        if on_progress is not None:
            ops.sync()
            on_progress(start + chunk, total)
    logits = model(ops, ops.array(tokens[:, last:]), cache)
    ops.launch(logits)
    if on_fed is not None:
        on_fed(prompt[last:])
    if on_progress is not None:
        ops.sync()
        on_progress(total, total)
    return logits


def generate(
    ops: Backend,
    model: Decoder,
    cache: Cache,
    prompt: Sequence[int],
    *,
    sampler: Sampler,
    max_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
    alternatives: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    on_fed: Callable[[Sequence[int]], None] | None = None,
) -> Iterator[Generated]:
    """Tokens after the prompt, up to and including a stop id, at most max_tokens.

    on_fed(ids): called with ids once they are in the cache, so that a caller knows what it holds even when it stops
    iterating early.
    """
    begun = time.perf_counter()
    logits = prefill(ops, model, cache, prompt, on_progress=on_progress, on_fed=on_fed)
    step = _Step(ops, logits, sampler, alternatives)
    decode = DecodeStep(ops, model, cache) if ops.compiles else lambda tokens: model(ops, tokens, cache)
    for count in range(1, max_tokens + 1):
        following = None
        if ops.asynchronous and count < max_tokens:  # launched before the last token is read
            following = _Step(ops, decode(step.token[:, None]), sampler, alternatives)
        generated = step.read(begun)
        begun = time.perf_counter()
        if following is not None and on_fed is not None:
            on_fed([generated.id])
        yield generated
        if generated.id in stop_ids or count == max_tokens:
            return
        if following is None:
            following = _Step(ops, decode(step.token[:, None]), sampler, alternatives)
            if on_fed is not None:
                on_fed([generated.id])
        step = following


class _Step:
    """One sampled token on its way to the host."""

    def __init__(self, ops: Backend, logits: Array, sampler: Sampler, alternatives: int):
        self.token, self._ops = sampler(logits), ops
        self._read = ops.fetch(ops.concat([self.token, finite(ops, logits)], 0))
        self._details: list[Callable[[], np.ndarray]] = []
        if alternatives:
            p = ops.softmax(logits, -1)
            best, index = ops.topk(p, min(alternatives, p.shape[-1]))
            chosen = ops.take(p[0], self.token, 0)
            self._details = [ops.fetch(best[0]), ops.fetch(index[0]), ops.fetch(chosen)]

    def read(self, begun: float) -> Generated:
        token, whole = self._read().tolist()
        if not whole:
            raise not_finite(self._ops)
        seconds = time.perf_counter() - begun
        if not self._details:
            return Generated(token, seconds)
        best, index, chosen = (read() for read in self._details)
        pairs = tuple((int(i), float(p)) for i, p in zip(index, best, strict=True))
        return Generated(token, seconds, float(chosen[0]), pairs)
