"""The steps of decoding, for every row of a batch: a chunk of prompts, a token a row, a draft; and what is chosen.

Not here: which step follows which (`decode`), how a token is chosen (`sampling`). Invariant: rows may be filtered and
extended between any two steps, in the cache and the sampler alike. Nothing here waits for the device but `Choice.read`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..cache.state import Cache
from ..model.decoder import Decoder
from .compiled_step import DecodeStep
from .sampling import Sampler, finite


@dataclass(frozen=True)
class ModelRunner:
    """A decoder on a cache of B rows."""

    ops: Backend
    model: Decoder
    cache: Cache

    def feed(self, tokens: np.ndarray, *, lengths: Sequence[int] | None = None) -> None:
        """Start on a chunk of prompts, int32 (B, T) of at most `cache.spec.chunk` tokens, that is not their last.

        lengths: how many tokens are real in each row; all, if None.
        """
        self.model.feed(self.ops, self.ops.array(tokens), self.cache, lengths=lengths)
        self.ops.launch(*self.cache.arrays())

    def logits(self, tokens: np.ndarray, *, lengths: Sequence[int] | None = None) -> Array:
        """The same for a last chunk: float32 logits (B, V) after each row's last real token, which are under way."""
        logits = self.model(self.ops, self.ops.array(tokens), self.cache, lengths=lengths)
        self.ops.launch(logits)
        return logits

    def decode(self, tokens: Array) -> Array:
        """One new token a row, int32 (B,) on the device: float32 logits (B, V) after it."""
        return self._step(tokens[:, None])

    def verify(self, tokens: Array) -> Array:
        """Several new tokens of the only row, int32 (T,) on the device: float32 logits (T, V) after each of them."""
        return self._steps(tokens[None, :])[0]

    @cached_property
    def _step(self) -> Callable[[Array], Array]:
        if self.ops.compiles:
            return DecodeStep(self.ops, self.model, self.cache)
        return lambda tokens: self.model(self.ops, tokens, self.cache)

    @cached_property
    def _steps(self) -> Callable[[Array], Array]:
        # not where compiling costs much for each length of a draft, nor where the inputs are kept (`Cache.mark`)
        if self.ops.compiles and not self.ops.asynchronous and not self.cache.spec.recurrent:
            return DecodeStep(self.ops, self.model, self.cache, every=True)
        return lambda tokens: self.model(self.ops, tokens, self.cache, every=True)


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


@dataclass(frozen=True)
class Chosen:
    """Tokens on the host, N of them. finite: whether each one's logits were finite numbers; else it means nothing.

    drafts: the N - 1 that were proposed, or none. details: of `alternatives`, by token: probabilities (N, K), ids
    (N, K), and the chosen ones' probabilities (N,).
    """

    ids: list[int]
    finite: list[bool]
    drafts: list[int]
    details: tuple[np.ndarray, ...] = ()

    @property
    def accepted(self) -> int:
        """How many drafts, from the first on, are what was chosen in their place."""
        pairs = zip(self.ids, self.drafts, strict=False)
        return next((i for i, (own, draft) in enumerate(pairs) if own != draft), len(self.drafts))

    def generated(self, place: int, seconds: float) -> Generated:
        """The token at a place of the N."""
        if not self.details:
            return Generated(self.ids[place], seconds)
        best, index, chosen = (part[place] for part in self.details)
        pairs = tuple((int(i), float(p)) for i, p in zip(index, best, strict=True))
        return Generated(self.ids[place], seconds, float(chosen), pairs)


class Choice:
    """Tokens on their way to the host: one a row, or one behind each draft of the only row.

    tokens: int32 (N,), on the device.
    """

    def __init__(self, ops: Backend, logits: Array, tokens: Array, drafts: Array | None, alternatives: int):
        self.tokens = tokens
        self._count = logits.shape[0]
        parts = [tokens, finite(ops, logits), *([] if drafts is None else [drafts])]
        self._ops, self._arrays = ops, [ops.concat(parts, 0)]
        self._reads: list[Callable[[], np.ndarray]] = []
        if alternatives:
            p = ops.softmax(logits, -1)
            vocabulary = p.shape[-1]
            best, index = ops.topk(p, min(alternatives, vocabulary))
            places = ops.array(np.arange(self._count, dtype=np.int32) * vocabulary) + tokens
            self._arrays += [best, index, ops.take(p.reshape(-1), places, 0)]

    def start(self) -> None:
        """Have them computed and copied, without waiting."""
        if not self._reads:
            self._reads = [self._ops.fetch(array) for array in self._arrays]

    def read(self) -> Chosen:
        """Wait for them."""
        self.start()
        ids, *details = (part() for part in self._reads)
        found, n = ids.tolist(), self._count
        return Chosen(found[:n], [bool(each) for each in found[n : 2 * n]], found[2 * n :], tuple(details))


def choose(ops: Backend, logits: Array, sampler: Sampler, alternatives: int = 0) -> Choice:
    """A token for every row by float32 logits (B, V). alternatives: how many of the most probable to read beside it."""
    return Choice(ops, logits, sampler(logits), None, alternatives)


def choose_behind(ops: Backend, logits: Array, drafts: Array | None, sampler: Sampler, alternatives: int = 0) -> Choice:
    """A token before the first of T - 1 drafts (None: of none) and behind each, by the only row's logits (T, V).

    The sampler remembers none of them before it is to `accept` some.
    """
    return Choice(ops, logits, sampler.verify(logits, drafts), drafts, alternatives)
