"""One decoder for every family: a transformer whose differences are fields of `ModelConfig`.

Token ids in, logits out. It knows no text, no file format and no array library; keys and values live in the cache,
which also rotates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import Backend
from ..brief import Brief
from ..cache.state import Cache, Step
from ..errors import DataError
from ..quantization import Array
from .config import ModelConfig
from .layers import MLP, Linear, MoE, RMSNorm, Stack


@dataclass(frozen=True)
class Attention(Brief):
    """Grouped-query attention over the cache. q_norm, k_norm: before rotation, over each head or over all at once.

    sink_logits: float32 (heads,), learned scores without values, or None.
    """

    qkv: Stack
    out: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    head_dim: int
    full_norms: bool = False
    sink_logits: Array | None = None

    def __call__(self, ops: Backend, x: Array, cache: Cache, layer: int) -> Array:
        b, t, _ = x.shape
        q, k, v = self.qkv(ops, x)  # B T H*D
        if self.full_norms:
            q, k = self._normed(ops, q, k)
        q, k, v = (y.reshape(b, t, -1, self.head_dim) for y in (q, k, v))  # B T H D
        if not self.full_norms:
            q, k = self._normed(ops, q, k)
        out = cache.attend(layer, q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), self.sink_logits)
        return self.out(ops, out.swapaxes(1, 2).reshape(b, t, -1))

    def _normed(self, ops: Backend, q: Array, k: Array) -> tuple[Array, Array]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(ops, q), self.k_norm(ops, k)


@dataclass(frozen=True)
class Block(Brief):
    """Norms before attention and MLP, after them, or both: None where the family has none.

    residual_scale: multiplies what is added to the stream; a number, so that it takes the stream's dtype.
    """

    attention_norm: RMSNorm | None
    attention: Attention
    attention_post_norm: RMSNorm | None
    mlp_norm: RMSNorm | None
    mlp: MLP | MoE
    mlp_post_norm: RMSNorm | None
    residual_scale: float | None = None

    def __call__(self, ops: Backend, x: Array, cache: Cache, layer: int) -> Array:
        y = self.attention(ops, _normed(ops, self.attention_norm, x), cache, layer)
        x = self._added(x, _normed(ops, self.attention_post_norm, y))
        y = self.mlp(ops, _normed(ops, self.mlp_norm, x))
        return self._added(x, _normed(ops, self.mlp_post_norm, y))

    def _added(self, x: Array, y: Array) -> Array:
        return x + (y if self.residual_scale is None else y * self.residual_scale)


def _normed(ops: Backend, norm: RMSNorm | None, x: Array) -> Array:
    return x if norm is None else norm(ops, x)


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
        self, ops: Backend, tokens: Array, cache: Cache, *, every: bool = False, step: Step | None = None
    ) -> Array:
        """Feed int32 tokens (B, T) at the cache's next positions; step: the cache's claim on them, if made already.

        Returns float32 logits (B, V) after the last token, or (B, T, V) after every one.
        """
        x = self._hidden(ops, tokens, cache, step)
        return self.logits(ops, self.norm(ops, x if every else x[:, -1]))

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

    def feed(self, ops: Backend, tokens: Array, cache: Cache) -> None:
        """The same for the cache alone, without the cost of logits."""
        self._hidden(ops, tokens, cache)

    def _hidden(self, ops: Backend, tokens: Array, cache: Cache, step: Step | None = None) -> Array:
        cache.see(cache.claim(tokens.shape[1]) if step is None else step)
        x = self.embedded(ops, tokens)
        for i, block in enumerate(self.blocks):
            x = block(ops, x, cache, i)
        return x

    def embedded(self, ops: Backend, tokens: Array) -> Array:
        """The stream (B, T, E) that enters the first block."""
        x = ops.embed(self.embedding, tokens)
        if self.config.embedding_scale is None:
            return x
        return x * ops.full((1,), self.config.embedding_scale, ops.dtype)  # rounded to the residual dtype, as trained
