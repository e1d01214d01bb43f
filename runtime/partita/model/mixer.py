"""What stands between a decoder's layers and what they remember: token mixers, and the state of a sequence.

Not here: a cache (`cache.state`), the packed rows of a training batch (`training.packed`), which are such states; the
mixers themselves (`mixers/`). Invariant: a decoder knows its state by this protocol alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..arrays import Array
from ..backend import Backend


class SequenceState(Protocol):
    """Rows of tokens as the layers of a decoder see them, one step after the other."""

    def advance(self, tokens: int, lengths: Sequence[int] | None = None) -> None:
        """Begin a step of `tokens` new ones in every row, before the first layer.

        lengths: how many of them are real in each row (the rest is padding at the end); all, if None.
        """
        ...

    def attend(
        self,
        layer: int,
        x: Array,
        heads: int,
        sink_logits: Array | None = None,
        query_norm: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Rotate, remember, and attend: what the layer's queries see, (B, heads, T, D).

        x: (B, T, heads + 2 * Hkv, D), queries, keys and values of this step before rotation, as one product gives them;
        of a layer that reads the keys and values of another (`LayerConfig.shares`) its queries alone, (B, T, heads, D).
        sink_logits: the layer's learned ones, float32 (heads,). query_norm: what becomes of queries (B, T, heads, D)
        after rotation, in their dtype.
        """
        ...

    def causal_conv(self, layer: int, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """A depthwise convolution of x (B, T, C) with what came before it in each row: (B, T, C), in x's dtype.

        weight: float32 (C, K), the last column is the token's own. bias: float32 (C,).
        """
        ...

    def gated_delta(self, layer: int, q: Array, k: Array, v: Array, decay: Array, beta: Array) -> Array:
        """What the layer's matrices give for queries, once each token has changed them: (B, T, Hv, Dv), in v's dtype.

        q, k: (B, T, Hk, Dk), normed. v: (B, T, Hv, Dv). decay, beta: float32 (B, T, Hv), as in `Backend.gated_delta`.
        """
        ...


class Mixer(Protocol):
    """The part of a layer in which tokens meet. x and what it returns: (B, T, E)."""

    def __call__(self, ops: Backend, x: Array, state: SequenceState, layer: int) -> Array: ...
