"""The layers a decoder is made of: frozen dataclasses that hold prepared weights and are called with the backend.

A layer knows no family and no cache. What tokens meet in is in `mixers/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..backend import MASKED, Backend
from ..brief import Brief
from .config import ExpertsConfig
from .weights import WeightSpec


@dataclass(frozen=True)
class Linear(Brief):
    """weight: prepared (out, in), dense or packed. bias: (out,) or None.

    specs: the checkpoint's matrices whose rows it holds, one below the other.
    """

    weight: Any
    bias: Array | None = None
    specs: tuple[WeightSpec, ...] = ()

    @property
    def name(self) -> str:
        """The module's in the checkpoint, "model.layers.0.self_attn.q_proj"; "" where it holds several."""
        return self.specs[0].module if len(self.specs) == 1 else ""

    def __call__(self, ops: Backend, x: Array) -> Array:
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Stack(Brief):
    """Several projections of one input. Neighbours of one format are stored as one matrix: fewer, larger products.

    parts: the stored matrices. sizes: for each of them, the widths of the outputs it holds, in order.
    """

    parts: tuple[Linear, ...]
    sizes: tuple[tuple[int, ...], ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Of all outputs."""
        return tuple(width for sizes in self.sizes for width in sizes)

    def joined(self, ops: Backend, x: Array) -> Array:
        """All outputs side by side, (..., their widths)."""
        outputs = [part(ops, x) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else ops.concat(outputs, -1)

    def __call__(self, ops: Backend, x: Array) -> list[Array]:
        outputs: list[Array] = []
        for part, sizes in zip(self.parts, self.sizes, strict=True):
            y, start = part(ops, x), 0
            for size in sizes:
                outputs.append(y[..., start : start + size])
                start += size
        return outputs


@dataclass(frozen=True)
class ExpertLinear(Brief):
    """One projection of every expert. weight: prepared (experts, out, in). bias: (experts, out) or None."""

    weight: Any
    bias: Array | None = None

    def __call__(self, ops: Backend, x: Array, index: Array) -> Array:
        return ops.moe_linear(x, self.weight, index, self.bias)


@dataclass(frozen=True)
class Parameter(Brief):
    """An array that a layer computes with in another way than by a product. name: the tensor's in the checkpoint, ""
    where it holds several."""

    value: Array
    name: str = ""


@dataclass(frozen=True)
class RMSNorm(Brief):
    """weight: what is multiplied, the one of a `1 + w` family included. name: the module's in the checkpoint. plus_one:
    whether the checkpoint's is less by one."""

    weight: Array
    eps: float
    name: str = ""
    plus_one: bool = False

    def __call__(self, ops: Backend, x: Array) -> Array:
        return ops.rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True)
class LayerNorm(RMSNorm):
    """Less the mean first (arXiv 1607.06450, without a bias)."""

    def __call__(self, ops: Backend, x: Array) -> Array:
        wide = ops.cast(x, "float32")
        mean = ops.sum(wide, -1)[..., None] / x.shape[-1]
        return ops.rms_norm(ops.cast(wide - mean, ops.dtype), self.weight, self.eps)


@dataclass(frozen=True)
class MLP(Brief):
    """down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    gate_up: Stack
    down: Linear
    activation: str

    def __call__(self, ops: Backend, x: Array) -> Array:
        gate, up = self.gate_up(ops, x)
        return self.down(ops, ops.glu(gate, up, self.activation))


@dataclass(frozen=True)
class Router(Brief):
    """Which experts a token goes through, and what each of them weighs: by a row of `ExpertsConfig`, in float32.

    choice_bias: float32 (experts,), what is added to scores where experts are chosen, and not where they weigh. norm:
    of what it reads, without a weight that is learned. scale: float32 (E,), what that gives is multiplied by. factors:
    float32 (experts,), what each one's weight is multiplied by.
    """

    scores: Linear
    config: ExpertsConfig
    choice_bias: Array | None = None
    norm: RMSNorm | None = None
    scale: Parameter | None = None
    factors: Parameter | None = None

    def __call__(self, ops: Backend, x: Array) -> tuple[Array, Array]:
        """Weights, float32 (B, T, K), and int32 numbers of the K experts of each token of x (B, T, E)."""
        x = x if self.norm is None else self.norm(ops, x)
        x = x if self.scale is None else x * ops.cast(self.scale.value, ops.dtype)
        c, scores = self.config, ops.cast(self.scores(ops, x), "float32")
        scores = scores if c.softcap is None else c.softcap * ops.tanh(scores / c.softcap)
        if c.score == "softmax_chosen":
            chosen, index = ops.topk(scores, c.active)
            return ops.softmax(chosen, -1), index
        scores = ops.softmax(scores, -1) if c.score == "softmax" else ops.sigmoid(scores)
        if self.choice_bias is None and c.groups == 1:
            weights, index = ops.topk(scores, c.active)
        else:
            wanted = scores if self.choice_bias is None else scores + self.choice_bias
            _, index = ops.topk(self._of_best_groups(ops, wanted), c.active)
            weights = _picked(ops, scores, index)
        if c.normalize:
            weights = weights / (ops.sum(weights, -1)[..., None] + c.normalize_eps)
        weights = weights if c.scale == 1 else weights * c.scale
        return (weights if self.factors is None else weights * ops.take(self.factors.value, index, 0)), index

    def _of_best_groups(self, ops: Backend, scores: Array) -> Array:
        """Scores (B, T, experts) with those of other groups put below all others (arXiv 2412.19437, section 2.1.2)."""
        c = self.config
        if c.groups == 1:
            return scores
        grouped = scores.reshape(*scores.shape[:2], c.groups, -1)
        totals = ops.sum(ops.topk(grouped, 2)[0], -1)
        least = ops.topk(totals, c.active_groups)[0][..., -1:]
        return ops.where((totals >= least)[..., None], grouped, MASKED).reshape(scores.shape)


def _picked(ops: Backend, scores: Array, index: Array) -> Array:
    """Of scores (B, T, experts) those at index (B, T, K)."""
    b, t, count = scores.shape
    rows = ops.array(np.arange(b * t, dtype=np.int32).reshape(b, t, 1) * count)
    return ops.take(scores.reshape(-1), rows + index, 0)


@dataclass(frozen=True)
class SharedExpert(Brief):
    """An MLP that every token goes through beside its experts. gate: (1, E), whose sigmoid multiplies it, or None."""

    mlp: MLP
    gate: Linear | None = None

    def __call__(self, ops: Backend, x: Array) -> Array:
        y = self.mlp(ops, x)
        return y if self.gate is None else y * ops.sigmoid(self.gate(ops, x))


@dataclass(frozen=True)
class MoE(Brief):
    """A weighted sum of the MLPs of the experts that a router chooses for a token (arXiv 1701.06538), and of what all
    tokens share."""

    router: Router
    gate: ExpertLinear
    up: ExpertLinear
    down: ExpertLinear
    activation: str
    shared: SharedExpert | None = None

    def __call__(self, ops: Backend, x: Array, routed: Array | None = None) -> Array:
        """routed: what the router reads, where that is not x."""
        weights, index = self.router(ops, x if routed is None else routed)
        each = x[:, :, None]  # B T 1 E: every chosen expert reads the same
        hidden = ops.glu(self.gate(ops, each, index), self.up(ops, each, index), self.activation)
        y = ops.cast(self.down(ops, hidden, index), "float32") * weights[..., None]
        y = ops.cast(ops.sum(y, 2), ops.dtype)
        return y if self.shared is None else y + self.shared(ops, x)


@dataclass(frozen=True)
class MLPBesideExperts(Brief):
    """A dense MLP and experts that read the stream at once, each behind a norm and before one; the router reads the
    stream itself."""

    norm: RMSNorm
    mlp: MLP
    post_norm: RMSNorm
    experts_norm: RMSNorm
    experts: MoE
    experts_post_norm: RMSNorm

    def __call__(self, ops: Backend, x: Array) -> Array:
        dense = self.post_norm(ops, self.mlp(ops, self.norm(ops, x)))
        return dense + self.experts_post_norm(ops, self.experts(ops, self.experts_norm(ops, x), x))


@dataclass(frozen=True)
class PerLayerInputs(Brief):
    """What every layer is told of a token. table: prepared (V', L * P). projection: (L * P, E), of the embedding.

    size: P. name: the table's module in the checkpoint.
    """

    table: Any
    projection: Linear
    norm: RMSNorm
    size: int
    name: str = ""

    def __call__(self, ops: Backend, tokens: Array, x: Array) -> Array:
        """(B, T, L, P) of int32 tokens (B, T) and of the stream x (B, T, E) that enters the first block."""
        shape = *tokens.shape, -1, self.size
        own = (ops.embed(self.table, tokens) * ops.full((1,), self.size**0.5, ops.dtype)).reshape(*shape)
        projected = (self.projection(ops, x) * x.shape[-1] ** -0.5).reshape(*shape)
        return (self.norm(ops, projected) + own) * 2**-0.5


@dataclass(frozen=True)
class PerLayerInput(Brief):
    """How a layer adds what it is told. gate: (P, E). out: (E, P)."""

    gate: Linear
    out: Linear
    norm: RMSNorm
    activation: str

    def __call__(self, ops: Backend, x: Array, told: Array) -> Array:
        """x: (B, T, E). told: (B, T, P)."""
        return x + self.norm(ops, self.out(ops, ops.glu(self.gate(ops, x), told, self.activation)))
