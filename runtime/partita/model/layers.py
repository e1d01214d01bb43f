"""The layers a decoder is made of: frozen dataclasses that hold prepared weights and are called with the backend.

A layer knows no family and no cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..arrays import Array
from ..backend import Backend
from ..brief import Brief
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
class RMSNorm(Brief):
    """weight: what is multiplied, the one of a `1 + w` family included. name: the module's in the checkpoint."""

    weight: Array
    eps: float
    name: str = ""

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
class MoE(Brief):
    """A weighted sum of the MLPs of the `active` experts that score highest with a token (arXiv 1701.06538).

    The weights are the chosen part of a softmax over all scores, divided by its sum with `normalize`; with
    softmax_after_topk, a softmax over the chosen scores. Both in float32.
    """

    router: Linear
    gate: ExpertLinear
    up: ExpertLinear
    down: ExpertLinear
    activation: str
    active: int
    normalize: bool
    softmax_after_topk: bool

    def __call__(self, ops: Backend, x: Array) -> Array:
        weights, index = self._route(ops, x)  # B T K
        x = x[:, :, None]  # B T 1 E: every chosen expert reads the same
        hidden = ops.glu(self.gate(ops, x, index), self.up(ops, x, index), self.activation)
        y = ops.cast(self.down(ops, hidden, index), "float32") * weights[..., None]
        return ops.cast(ops.sum(y, 2), ops.dtype)

    def _route(self, ops: Backend, x: Array) -> tuple[Array, Array]:
        scores = ops.cast(self.router(ops, x), "float32")
        if self.softmax_after_topk:
            chosen, index = ops.topk(scores, self.active)
            return ops.softmax(chosen, -1), index
        weights, index = ops.topk(ops.softmax(scores, -1), self.active)
        return (weights / ops.sum(weights, -1)[..., None] if self.normalize else weights), index
