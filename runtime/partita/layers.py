"""The layers a decoder is made of: frozen dataclasses that hold prepared weights and are called with the backend.

A layer knows no family and no cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .backend import Backend
from .quantization import Array


@dataclass(frozen=True)
class Linear:
    """weight: prepared (out, in), dense or packed. bias: (out,) or None."""

    weight: Any
    bias: Array | None = None

    def __call__(self, ops: Backend, x: Array) -> Array:
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Stack:
    """Several projections of one input. Neighbours of one format are stored as one matrix: fewer, larger products.

    parts: the stored matrices. sizes: for each of them, the widths of the outputs it holds, in order.
    """

    parts: tuple[Linear, ...]
    sizes: tuple[tuple[int, ...], ...]

    def __call__(self, ops: Backend, x: Array) -> list[Array]:
        outputs = []
        for part, sizes in zip(self.parts, self.sizes, strict=True):
            y, start = part(ops, x), 0
            for size in sizes:
                outputs.append(y[..., start : start + size])
                start += size
        return outputs


@dataclass(frozen=True)
class RMSNorm:
    weight: Array
    eps: float

    def __call__(self, ops: Backend, x: Array) -> Array:
        return ops.rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True)
class MLP:
    """down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    gate_up: Stack
    down: Linear
    activation: str

    def __call__(self, ops: Backend, x: Array) -> Array:
        gate, up = self.gate_up(ops, x)
        return self.down(ops, ops.glu(gate, up, self.activation))
