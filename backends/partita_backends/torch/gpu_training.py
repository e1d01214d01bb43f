"""Norms, gates and rotations of a loss on a GPU: each is one kernel forward and one back (`cuda`).

They keep their inputs, and note of what they give how it is made again, as those in `pointwise.py` do, whose place they
take where there is triton. Invariant: what a frozen norm's weight would get is not computed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import weights
from .pointwise import made

Tensor = torch.Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Backend.rms_norm`."""
    return made(_RmsNorm.apply(x, weight, eps), partial(weights.gpu_kernels().rms_norm, eps=eps), x, weight)


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return weights.gpu_kernels().rms_norm(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight = ctx.saved_tensors
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = weights.gpu_kernels().rms_norm_back(grads[0], x, weight, ctx.eps)
        if ctx.needs_input_grad[1]:
            wide = x.float()
            normed = wide * (wide.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
            for_weight = (grads[0].float() * normed).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        return for_x, for_weight, None


class Rotation(Function):
    """`Backend.rotate`. It keeps the angles, which all layers share; its derivative turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Any:
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        return weights.gpu_kernels().rotate(x, cos, sin, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return weights.gpu_kernels().rotate(grads[0], *ctx.saved_tensors, ctx.heads, True), None, None, None


def glu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """See `Backend.glu`."""
    make = partial(weights.gpu_kernels().glu, activation=activation)
    return made(_Glu.apply(gate, up, activation), make, gate, up)


class _Glu(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Any:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return weights.gpu_kernels().glu(gate, up, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return *weights.gpu_kernels().glu_back(grads[0], *ctx.saved_tensors, ctx.activation), None
