"""A step of few tokens compiled once: the same operations on the same shapes every time.

A step is made a function of the token and the cache's arrays alone. What the host decides (`Step`) and the shapes
of the buffers are its key; while the ring is full, or between two blocks of a growing buffer, the key does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..arrays import Array
from ..backend import Backend
from ..cache.state import Cache
from ..cache.view import Step
from ..model.decoder import Decoder


class DecodeStep:
    """`model(ops, tokens, cache)` for steps of few tokens, through `ops.compile`.

    every: logits after each token. What is compiled for buffers of one size is forgotten with it: what was outgrown
    does not come back, and may be held by what was compiled for it.
    """

    def __init__(self, ops: Backend, model: Decoder, cache: Cache, *, every: bool = False):
        self._ops, self._model, self._cache, self._every = ops, model, cache, every
        self._buffers: Any = None
        self._functions: dict[Step, Callable[..., tuple[Array, ...]]] = {}

    def __call__(self, tokens: Array) -> Array:
        """Tokens (B, T) at the cache's next positions to float32 logits (B, V) after the last, or (B, T, V)."""
        step = self._cache.reserve(tokens.shape[1])
        arrays = self._cache.arrays()
        buffers = (self._cache.rope_size, *(array.shape for array in arrays))
        if self._buffers != buffers:
            self._buffers, self._functions = buffers, {}
        if step not in self._functions:
            self._functions[step] = self._ops.compile(self._pure(step))
        logits, *state = self._functions[step](tokens, *arrays)
        self._cache.hold(state)
        return logits

    def _pure(self, step: Step) -> Callable[..., tuple[Array, ...]]:
        """A step as a function of its tokens and the cache's arrays, to the logits and the cache's arrays after it."""

        def run(tokens: Array, *state: Array) -> tuple[Array, ...]:
            self._cache.hold(state)
            self._cache.expect(step)
            logits = self._model(self._ops, tokens, self._cache, every=self._every)
            return (logits, *self._cache.arrays())

        return run
