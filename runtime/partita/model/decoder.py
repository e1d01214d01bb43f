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
from .layers import MLP, Linear, MLPBesideExperts, MoE, PerLayerInput, PerLayerInputs, RMSNorm
from .mixer import Mixer, SequenceState

Layer = Callable[..., Array]
"""A whole layer: (ops, x, state, its number), and what it is told of each token where layers are, to the stream behind
it."""


@dataclass(frozen=True)
class Block(Brief):
    """A mixer and an MLP, with norms before them, after them, or both: None where the family has none.

    residual_scale: multiplies what is added to the stream; a number, so that it takes the stream's dtype. parallel: the
    MLP reads what the mixer reads, and both are added at once. per_layer: how it adds what it is told of a token.
    scalar: float32 (1,), which multiplies what leaves the block.
    """

    attention_norm: RMSNorm | None
    mixer: Mixer
    attention_post_norm: RMSNorm | None
    mlp_norm: RMSNorm | None
    mlp: MLP | MoE | MLPBesideExperts
    mlp_post_norm: RMSNorm | None
    residual_scale: float | None = None
    parallel: bool = False
    per_layer: PerLayerInput | None = None
    scalar: Array | None = None

    def __call__(self, ops: Backend, x: Array, state: SequenceState, layer: int, told: Array | None = None) -> Array:
        """told: what the layer is told of each token, (B, T, P)."""
        x = self._mixed(ops, x, state, layer)
        if self.per_layer is not None:
            assert told is not None
            x = self.per_layer(ops, x, told)
        return x if self.scalar is None else x * ops.cast(self.scalar, ops.dtype)

    def _mixed(self, ops: Backend, x: Array, state: SequenceState, layer: int) -> Array:
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
    told: Array | None = None,
) -> Array:
    """The residual stream x (B, T, E) behind some blocks, which are the model's from layer `first` on.

    The one forward loop there is. after(layer, stream): called behind each block. Blocks may be made as they are
    needed. told: what every layer of the model is told of each token, (B, T, L, P) (`Decoder.told`).
    """
    for layer, block in enumerate(blocks, first):
        x = block(ops, x, state, layer) if told is None else block(ops, x, state, layer, told[:, :, layer])
        if after is not None:
            after(layer, x)
    return x


@dataclass(frozen=True)
class Decoder(Brief):
    """embedding: prepared (V, E). head: prepared (V, E), the embedding itself where they are tied.

    embedding_name: the module's in the checkpoint. embedding_norm: of what is embedded.
    """

    config: ModelConfig
    embedding: object
    blocks: tuple[Block, ...]
    norm: RMSNorm
    head: Linear
    embedding_name: str = ""
    per_layer: PerLayerInputs | None = None
    embedding_norm: RMSNorm | None = None

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
        return through(ops, self.blocks, x, state, told=self.told(ops, tokens, x))

    def told(self, ops: Backend, tokens: Array, x: Array) -> Array | None:
        """What every layer is told of int32 tokens (B, T), of which x (B, T, E) enters the first block: (B, T, L, P);
        None where layers are told nothing."""
        return None if self.per_layer is None else self.per_layer(ops, tokens, x)

    def embedded(self, ops: Backend, tokens: Array) -> Array:
        """The stream (B, T, E) that enters the first block."""
        x = _normed(ops, self.embedding_norm, ops.embed(self.embedding, tokens))
        if self.config.embedding_scale is None:
            return x
        return x * ops.full((1,), self.config.embedding_scale, ops.dtype)  # rounded to the residual dtype, as trained


def _last(ops: Backend, x: Array, lengths: Sequence[int]) -> Array:
    """(B, E): of x (B, T, E), each row's last real token."""
    b, t, e = x.shape
    rows = np.arange(b) * t + np.asarray(lengths) - 1
    return ops.take(x.reshape(b * t, e), ops.array(rows.astype(np.int32)), 0)
