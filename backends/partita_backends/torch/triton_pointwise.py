"""Norms and gates, and their gradients, each in one kernel, computed in float32 and rounded once."""

from __future__ import annotations

import torch
import triton.language as tl

from .operations import operation
from .triton_words import ceil_div, kernel, power_of_two, rows_together

Tensor = torch.Tensor

WIDEST = 16384  # numbers of a row of which a program keeps all in registers
PART = 1024  # numbers of a gate that a program takes
ACTIVATIONS = ("silu", "gelu_tanh", "swiglu_clamped")


@kernel
def _norm(X, WEIGHT, OUT, x_row, eps, N: tl.constexpr, WIDTH: tl.constexpr):
    """Programs: rows."""
    row, n = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    x = tl.load(X + row * x_row + n, mask=n < N, other=0.0).to(tl.float32)
    weight = tl.load(WEIGHT + n, mask=n < N, other=0.0).to(tl.float32)
    y = x / tl.sqrt(tl.sum(x * x, 0) / N + eps) * weight
    tl.store(OUT + row * N + n, y.to(OUT.dtype.element_ty), mask=n < N)


@kernel
def _norm_back(X, WEIGHT, GRAD, OUT, x_row, grad_row, eps, N: tl.constexpr, WIDTH: tl.constexpr):
    """Programs: rows."""
    row, n = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    x = tl.load(X + row * x_row + n, mask=n < N, other=0.0).to(tl.float32)
    weight = tl.load(WEIGHT + n, mask=n < N, other=0.0).to(tl.float32)
    grad = tl.load(GRAD + row * grad_row + n, mask=n < N, other=0.0).to(tl.float32) * weight
    root = tl.sqrt(tl.sum(x * x, 0) / N + eps)
    normed = x / root
    y = (grad - normed * (tl.sum(grad * normed, 0) / N)) / root
    tl.store(OUT + row * N + n, y.to(OUT.dtype.element_ty), mask=n < N)


@kernel
def _glu_back(
    GATE,
    UP,
    GRAD,
    FOR_GATE,
    FOR_UP,
    gate_row,
    up_row,
    grad_row,
    N: tl.constexpr,
    PART: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Programs: (row, part of it)."""
    row, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * PART + tl.arange(0, PART)
    gate = tl.load(GATE + row * gate_row + n, mask=n < N, other=0.0).to(tl.float32)
    up = tl.load(UP + row * up_row + n, mask=n < N, other=0.0).to(tl.float32)
    grad = tl.load(GRAD + row * grad_row + n, mask=n < N, other=0.0).to(tl.float32)
    for_gate = grad
    for_up = grad
    inner = gate
    slope = 1.0
    if ACTIVATION == 1:
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
    if ACTIVATION == 2:
        for_gate = tl.where(gate <= 7.0, grad, 0.0)
        for_up = tl.where(tl.abs(up) <= 7.0, grad, 0.0)
        gate = tl.minimum(gate, 7.0, propagate_nan=tl.PropagateNan.ALL)
        up = tl.clamp(up, -7.0, 7.0, propagate_nan=tl.PropagateNan.ALL) + 1.0
        inner = 1.702 * gate
        slope = 1.702
    share = 1.0 / (1.0 + tl.exp(-tl.maximum(inner, -80.0)))
    for_gate *= up * share * (1.0 + gate * slope * (1.0 - share))
    for_up *= gate * share
    tl.store(FOR_GATE + row * N + n, for_gate.to(FOR_GATE.dtype.element_ty), mask=n < N)
    tl.store(FOR_UP + row * N + n, for_up.to(FOR_UP.dtype.element_ty), mask=n < N)


@kernel
def _glu(GATE, UP, OUT, gate_row, up_row, N: tl.constexpr, PART: tl.constexpr, ACTIVATION: tl.constexpr):
    """Programs: (row, part of it). Each activation is x * sigmoid of something."""
    row, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * PART + tl.arange(0, PART)
    gate = tl.load(GATE + row * gate_row + n, mask=n < N, other=0.0).to(tl.float32)
    up = tl.load(UP + row * up_row + n, mask=n < N, other=0.0).to(tl.float32)
    inner = gate
    if ACTIVATION == 1:
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # 2 * sqrt(2 / pi)
    if ACTIVATION == 2:
        gate = tl.minimum(gate, 7.0, propagate_nan=tl.PropagateNan.ALL)
        up = tl.clamp(up, -7.0, 7.0, propagate_nan=tl.PropagateNan.ALL) + 1.0
        inner = 1.702 * gate
    y = gate / (1.0 + tl.exp(-tl.maximum(inner, -80.0))) * up
    tl.store(OUT + row * N + n, y.to(OUT.dtype.element_ty), mask=n < N)


def normalizes(x: Tensor) -> bool:
    """Whether `rms_norm` takes it."""
    return x.shape[-1] <= WIDEST


@operation("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", lambda x, *_: x.new_empty(x.shape))
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `Backend.rms_norm`; contiguous."""
    out, n = x.new_empty(x.shape), x.shape[-1]
    rows, width = _rows(x), power_of_two(n)
    warps = min(max(width // 512, 1), 16)
    _norm[(len(rows),)](rows, weight, out, rows.stride(0), eps, N=n, WIDTH=width, num_warps=warps)
    return out


@operation(
    "rms_norm_back(Tensor grad, Tensor x, Tensor weight, float eps) -> Tensor",
    lambda grad, x, *_: x.new_empty(x.shape),
)
def rms_norm_back(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient of `rms_norm` for x; contiguous."""
    out, n = x.new_empty(x.shape), x.shape[-1]
    rows, grads, width = _rows(x), _rows(grad), power_of_two(n)
    # fmt: off
    _norm_back[(len(rows),)](
        rows, weight, grads, out, rows.stride(0), grads.stride(0), eps, N=n, WIDTH=width,
        num_warps=min(max(width // 512, 1), 16),
    )
    # fmt: on
    return out


def glu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """As `Backend.glu`; contiguous."""
    return _gated(gate, up, ACTIVATIONS.index(activation))


@operation("glu(Tensor gate, Tensor up, int activation) -> Tensor", lambda gate, *_: gate.new_empty(gate.shape))
def _gated(gate: Tensor, up: Tensor, activation: int) -> Tensor:
    out, n = gate.new_empty(gate.shape), gate.shape[-1]
    gates, ups = _rows(gate), _rows(up)
    # fmt: off
    _glu[(len(gates), ceil_div(n, PART))](
        gates, ups, out, gates.stride(0), ups.stride(0), N=n, PART=PART, ACTIVATION=activation,
    )
    # fmt: on
    return out


def glu_back(grad: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gradients of `glu` for gate and up; contiguous."""
    return _gated_back(grad, gate, up, ACTIVATIONS.index(activation))


@operation(
    "glu_back(Tensor grad, Tensor gate, Tensor up, int activation) -> (Tensor, Tensor)",
    lambda grad, gate, up, activation: (gate.new_empty(gate.shape), up.new_empty(up.shape)),
)
def _gated_back(grad: Tensor, gate: Tensor, up: Tensor, activation: int) -> tuple[Tensor, Tensor]:
    for_gate, for_up, n = gate.new_empty(gate.shape), up.new_empty(up.shape), gate.shape[-1]
    gates, ups, grads = _rows(gate), _rows(up), _rows(grad)
    # fmt: off
    _glu_back[(len(gates), ceil_div(n, PART))](
        gates, ups, grads, for_gate, for_up, gates.stride(0), ups.stride(0), grads.stride(0), N=n, PART=PART,
        ACTIVATION=activation,
    )
    # fmt: on
    return for_gate, for_up


def _rows(x: Tensor) -> Tensor:
    """(rows, n), a copy unless they lie at equal distances, and the numbers of each side by side."""
    return rows_together(x.reshape(-1, x.shape[-1]))
