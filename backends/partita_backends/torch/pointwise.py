"""Norms, gates, rotations and losses on torch, element by element, and their derivatives.

They keep their inputs and compute the rest again, and note of what they give how it is made again (`made`), so that who
needs it in the backward pass need not keep it either. On one thread of a CPU each is a single pass (`cpu`).
Not here: products (`training.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from . import weights

Tensor = torch.Tensor

_MADE = "made_from"


def made(y: Tensor, make: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """y, with a note that make(*parts) gives it again. Of parts that others keep anyway; whatever is computed from y
    has no note."""
    setattr(y, _MADE, (make, parts))
    return y


def made_from(y: Tensor) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """That note: y itself where there is none."""
    return getattr(y, _MADE, (_itself, (y,)))


def _itself(x: Tensor) -> Tensor:
    return x


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Backend.rms_norm`."""
    if (kernels := _kernels(x)) is not None:
        inverse = kernels.inverses(x.detach(), eps)
        return made(_RmsNorm.apply(x, weight, inverse), _normed, x, weight, inverse)
    norm = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True, dtype=torch.float32)
    inverse = (norm.square_() / x.shape[-1]).add_(eps).rsqrt_()
    return made(_RmsNorm.apply(x, weight, inverse), _normed, x, weight, inverse)


def _kernels(x: Tensor) -> Any:
    """The module `cpu`, if operations of its are for x, element by element."""
    return kernels_for(x, lambda kernels: kernels.takes(x, x.numel() // x.shape[-1]))


def kernels_for(x: Tensor, condition: Callable[[Any], bool]) -> Any:
    """The module `cpu`, or None where there is none for x or the condition does not hold of it."""
    kernels = weights.cpu_kernels() if x.device.type == "cpu" else None
    return kernels if kernels is not None and condition(kernels) else None


def _normed(x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    if (kernels := _kernels(x)) is not None:
        return kernels.normed(x, weight.detach(), inverse)
    return (x.float() * inverse).mul_(weight.float()).to(x.dtype)


class _RmsNorm(Function):
    """Keeps x, and one number a row: inverse (..., 1), of the root of the mean square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, inverse: Tensor) -> Any:
        ctx.save_for_backward(x, weight, inverse)
        return _normed(x, weight, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        if not ctx.needs_input_grad[1] and (kernels := _kernels(x)) is not None:
            return kernels.normed_back(grads[0], x, weight, inverse), None, None
        grad = grads[0].float()
        normed = x.float() * inverse
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = (grad * normed).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, for_weight, None
        grad = grad * weight.float()
        share = torch.linalg.vecdot(grad, normed).div_(x.shape[-1])[..., None]
        return grad.addcmul_(normed, share, value=-1).mul_(inverse).to(x.dtype), for_weight, None


Turns = tuple[Tensor, Tensor, int]
"""Cosines and sines (B, T, d / 2), and how many heads are rotated."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """See `Backend.rotate`."""
    if (kernels := kernels_for(x, lambda kernels: kernels.takes(x, x.shape[0] * x.shape[1]))) is not None:
        return kernels.rotate(x, cos, sin, heads)
    half = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]  # B T 1 d/2
    wide_cos, signed_sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    turned = x[:, :, :heads, : 2 * half]
    swapped = torch.cat([turned[..., half:], turned[..., :half]], -1)
    turned = torch.addcmul(turned * wide_cos, swapped, signed_sin).to(x.dtype)
    if 2 * half < x.shape[-1]:
        turned = torch.cat([turned, x[:, :, :heads, 2 * half :]], -1)
    return turned if heads == x.shape[2] else torch.cat([turned, x[:, :, heads:]], 2)


class Rotation(Function):
    """`rotate`. It keeps the angles it was given, which all layers share; its derivative turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Any:
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        return rotate(x, cos, sin, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return rotate(grads[0], cos, -sin, ctx.heads), None, None, None


def glu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """See `Backend.glu`."""
    return made(_Glu.apply(gate, up, activation), partial(_gated, activation), gate, up)


def _gated(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    if (kernels := kernels_for(gate, lambda kernels: kernels.gates(gate))) is not None:
        return kernels.glu(gate, up, activation)
    if activation == "swiglu_clamped":
        return _clamped(gate.clamp(max=7)).mul_(up.clamp(-7, 7).add_(1))
    return _activated(gate, activation).mul_(up)


class _Glu(Function):
    """Keeps gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Any:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _gated(activation, gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        gate, up = ctx.saved_tensors
        grad, activation = grads[0], ctx.activation
        kernels = kernels_for(gate, lambda kernels: kernels.gates(gate))
        if kernels is not None and activation != "swiglu_clamped":
            return *kernels.glu_back(grad, gate, up, activation), None
        if activation == "swiglu_clamped":
            low = gate.clamp(max=7)
            sigmoid = torch.sigmoid(1.702 * low)
            slope = (1 - sigmoid).mul_(low).mul_(1.702).add_(1).mul_(sigmoid)
            for_gate = slope.mul_(up.clamp(-7, 7).add_(1)).mul_(grad).mul_(gate <= 7)
            return for_gate, _clamped(low).mul_(grad).mul_(up.abs() <= 7), None
        for_up = _activated(gate, activation).mul_(grad)
        if activation == "silu":
            return torch.ops.aten.silu_backward(grad * up, gate), for_up, None
        return torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh"), for_up, None


def _activated(gate: Tensor, activation: str) -> Tensor:
    """A new tensor."""
    return functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")


def _clamped(gate: Tensor) -> Tensor:
    return torch.sigmoid(1.702 * gate).mul_(gate)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """See `Backend.cross_entropy`."""
    return _CrossEntropy.apply(logits, targets.to(torch.int64)[:, None])


class _CrossEntropy(Function):
    """Keeps the softmax alone, which becomes the gradient in place: torch's is one fused pass, where exp and logsumexp
    with their new pages took twice the time of the product that gave the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor) -> Any:
        share = logits.softmax(-1)
        # softmax adds the terms of each lane one after another and loses small ones, more of them where lanes are few;
        # torch's sums lose nothing, so `held`, above 1 by what was lost, corrects the shares and their logarithm
        held = share.sum(-1, keepdim=True)
        ctx.found = share, index, held
        # the largest share is held * exp(largest - logsumexp), and at least one in the vocabulary's size: no underflow
        total = logits.amax(-1, keepdim=True) + (held / share.amax(-1, keepdim=True)).log()
        return (total - logits.gather(-1, index))[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (share, index, held), ctx.found = ctx.found, None  # ours alone
        grad = grads[0][:, None]
        return share.mul_(grad / held).scatter_add_(-1, index, -grad), None
