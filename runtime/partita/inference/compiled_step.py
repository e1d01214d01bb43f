"""A decode step compiled once: the same operations on the same shapes for every token.

A step is made a function of the token and the cache's arrays alone. What the host decides (`Step`) and the shapes
of the buffers are its key; while the ring is full, or between two blocks of a growing buffer, the key does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..arrays import Array
from ..backend import Backend
from ..cache.state import Cache, Step
from ..model.decoder import Decoder


class DecodeStep:
    """`model(ops, tokens, cache)` for steps of few tokens, through `ops.compile`."""

    def __init__(self, ops: Backend, model: Decoder, cache: Cache):
        self._ops, self._model, self._cache = ops, model, cache
        self._newest: tuple[Any, Callable[..., tuple[Array, ...]]] | None = None

    def __call__(self, tokens: Array) -> Array:
        """Tokens (B, T) at the cache's next positions to float32 logits (B, V) after the last."""
        step = self._cache.reserve(tokens.shape[1])
        arrays = self._cache.arrays()
        key = (step, self._cache.rope_size, *(array.shape for array in arrays))
        if self._newest is None or self._newest[0] != key:  # what is outgrown does not come back, and may hold memory
            self._newest = None
            self._newest = key, self._ops.compile(self._pure(step))
        logits, *state = self._newest[1](tokens, *arrays)
        self._cache.hold(state)
        return logits

    def _pure(self, step: Step) -> Callable[..., tuple[Array, ...]]:
        """A step as a function of its tokens and the cache's arrays, to the logits and the cache's arrays after it."""

        def run(tokens: Array, *state: Array) -> tuple[Array, ...]:
            self._cache.hold(state)
            logits = self._model(self._ops, tokens, _Reserved(self._cache, step))
            return (logits, *self._cache.arrays())

        return run


@dataclass(frozen=True)
class _Reserved:
    """A cache for a step that has been reserved already: what is left of `advance` runs on the device alone."""

    cache: Cache
    step: Step

    def advance(self, tokens: int, lengths: Sequence[int] | None = None) -> None:
        self.cache.begin_step(self.step)

    def attend(self, layer: int, q: Array, k: Array, v: Array, sink_logits: Array | None = None) -> Array:
        return self.cache.attend(layer, q, k, v, sink_logits)
