"""One decoder for every family: a transformer whose differences are fields of `ModelConfig`.

Token ids in, logits out. It knows no text, no file format and no array library; what layers remember lives in the
state that it is given. How tokens meet in a layer is in `mixers/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..brief import Brief
from ..errors import DataError
from .config import ModelConfig
from .layers import MLP, Linear, MoE, RMSNorm
from .mixer import Mixer, SequenceState

Layer = Callable[[Backend, Array, SequenceState, int], Array]
"""A whole layer: (ops, x, state, its number) to the stream behind it."""


@dataclass(frozen=True)
class Block(Brief):
    """A mixer and an MLP, with norms before them, after them, or both: None where the family has none.

    residual_scale: multiplies what is added to the stream; a number, so that it takes the stream's dtype. parallel: the
    MLP reads what the mixer reads, and both are added at once.
    """

    attention_norm: RMSNorm | None
    mixer: Mixer
    attention_post_norm: RMSNorm | None
    mlp_norm: RMSNorm | None
    mlp: MLP | MoE
    mlp_post_norm: RMSNorm | None
    residual_scale: float | None = None
    parallel: bool = False

    def __call__(self, ops: Backend, x: Array, state: SequenceState, layer: int) -> Array:
        read = _normed(ops, self.attention_norm, x)
        y = self.mixer(ops, read, state, layer)
        if self.parallel:
            return self._added(x, y + self.mlp(ops, read))
        x = self._added(x, _normed(ops, self.attention_post_norm, y))
        y = self.mlp(ops, _normed(ops, self.mlp_norm, x))
        return self._added(x, _normed(ops, self.mlp_post_norm, y))

    def _added(self, x: Array, y: Array) -> Array:
        return x + (y if self.residual_scale is None else y * self.residual_scale)


def _normed(ops: Backend, norm: RMSNorm | None, x: Array) -> Array:
    return x if norm is None else norm(ops, x)


def through(
    ops: Backend,
    blocks: Iterable[Layer],
    x: Array,
    state: SequenceState,
    *,
    first: int = 0,
    after: Callable[[int, Array], None] | None = None,
) -> Array:
    """The residual stream x (B, T, E) behind some blocks, which are the model's from layer `first` on.

    The one forward loop there is. after(layer, stream): called behind each block. Blocks may be made as they are
    needed.
    """
    for layer, block in enumerate(blocks, first):
        x = block(ops, x, state, layer)
        if after is not None:
            after(layer, x)
    return x


@dataclass(frozen=True)
class Decoder(Brief):
    """embedding: prepared (V, E). head: prepared (V, E), the embedding itself where they are tied.

    embedding_name: the module's in the checkpoint.
    """

    config: ModelConfig
    embedding: object
    blocks: tuple[Block, ...]
    norm: RMSNorm
    head: Linear
    embedding_name: str = ""

    def __call__(
        self,
        ops: Backend,
        tokens: Array,
        state: SequenceState,
        *,
        lengths: Sequence[int] | None = None,
        embeddings: Array | None = None,
        every: bool = False,
    ) -> Array:
        """Feed int32 tokens (B, T) at the state's next positions.

        lengths: how many tokens are real in each row, the rest being padding at its end; all, if None. embeddings:
        (B, T, E), the stream that enters the first block, in place of the tokens' own rows. Returns float32 logits
        (B, V) after the last real token of each row, or (B, T, V) after every one.
        """
        x = self._hidden(ops, tokens, state, lengths, embeddings)
        if not every:
            x = x[:, -1] if lengths is None else _last(ops, x, lengths)
            ops = ops.exact if tokens.shape[1] > 1 else ops  # behind a prompt: what decides the first word of a reply
        return self.logits(ops, self.norm(ops, x))

    def check(self, *ids: Sequence[int] | np.ndarray) -> None:
        """DataError for a token that has no row in the embedding: not every library looks where the embedding ends."""
        rows = self.config.vocab_size
        for some in filter(len, ids):
            low, high = (some.min(), some.max()) if isinstance(some, np.ndarray) else (min(some), max(some))
            if low < 0 or high >= rows:
                wrong = low if low < 0 else high
                raise DataError(f"token {wrong} is none of the model's {rows}: the ids are those of another tokenizer")

    def logits(self, ops: Backend, x: Array) -> Array:
        """float32 (..., V) of what the last norm gave, (..., E)."""
        y = ops.cast(self.head(ops, x), "float32")
        scale, cap = self.config.logit_scale, self.config.logit_softcap
        y = y if scale is None else y * scale
        return y if cap is None else cap * ops.tanh(y / cap)

    def feed(
        self,
        ops: Backend,
        tokens: Array,
        state: SequenceState,
        *,
        lengths: Sequence[int] | None = None,
        embeddings: Array | None = None,
    ) -> None:
        """The same for the state alone, without the cost of logits."""
        self._hidden(ops, tokens, state, lengths, embeddings)

    def _hidden(
        self,
        ops: Backend,
        tokens: Array,
        state: SequenceState,
        lengths: Sequence[int] | None = None,
        embeddings: Array | None = None,
    ) -> Array:
        state.advance(tokens.shape[1], lengths)
        x = self.embedded(ops, tokens) if embeddings is None else embeddings
        return through(ops, self.blocks, x, state)

    def embedded(self, ops: Backend, tokens: Array) -> Array:
        """The stream (B, T, E) that enters the first block."""
        x = ops.embed(self.embedding, tokens)
        if self.config.embedding_scale is None:
            return x
        return x * ops.full((1,), self.config.embedding_scale, ops.dtype)  # rounded to the residual dtype, as trained


def _last(ops: Backend, x: Array, lengths: Sequence[int]) -> Array:
    """(B, E): of x (B, T, E), each row's last real token."""
    b, t, e = x.shape
    rows = np.arange(b) * t + np.asarray(lengths) - 1
    return ops.take(x.reshape(b * t, e), ops.array(rows.astype(np.int32)), 0)
