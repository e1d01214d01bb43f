"""Differentiation on torch, and the operations of the forward pass in the form that keeps least for the backward pass.

A frozen weight keeps neither its input nor a dense copy of itself; norms, activations and rotations keep their inputs
and compute the rest again, and a trained weight whose input came out of one of them has it made again too (`_made`).
Not here: attention (`training_attention.py`). Invariant: no gradient's value depends on
what else is alive, on the number of rows of a product, or on chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from . import experts, weights

Tensor = torch.Tensor


def value_and_grad(loss: Callable[..., Any]) -> Callable[..., Any]:
    """See `Backend.value_and_grad`."""

    def run(trainables: dict[str, Tensor], *arrays: Any) -> Any:
        leaves = {name: x.detach().requires_grad_() for name, x in trainables.items()}
        with torch.enable_grad():
            value, aux = loss(leaves, *arrays)
        found = _gradients(value, list(leaves.values()))
        return (value.detach(), tuple(x.detach() for x in aux)), dict(zip(leaves, found, strict=True))

    return run


def value(loss: Callable[..., Any]) -> Callable[..., Any]:
    """See `Backend.value`."""

    def run(trainables: dict[str, Tensor], *arrays: Any) -> Any:
        with torch.no_grad():
            return loss(trainables, *arrays)

    return run


def _gradients(value: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """Zeros for leaves that the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)


def checkpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """See `Backend.checkpoint`."""

    def run(trainables: dict[str, Tensor], *arrays: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(
            function, trainables, *arrays, use_reentrant=False, preserve_rng_state=False
        )

    return run


def chunked_sum(function: Callable[..., Tensor], rows: int) -> Callable[..., Tensor]:
    """See `Backend.chunked_sum`."""

    def run(trainables: dict[str, Tensor], *arrays: Tensor) -> Tensor:
        return _ChunkedSum.apply(function, rows, tuple(trainables), *trainables.values(), *arrays)

    return run


class _ChunkedSum(Function):
    """Every chunk's gradient is made with its value; the backward pass only scales what is ready."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], rows: int, names: tuple[str, ...], *tensors: Tensor) -> Any:
        wanted = ctx.needs_input_grad[3:]
        count = len(names)
        leaves = [x.detach().requires_grad_(need) for x, need in zip(tensors[:count], wanted, strict=False)]
        arrays, moving = tensors[count:], wanted[count:]
        sums: list[Tensor | None] = [None] * count
        whole = [torch.zeros_like(x) if need else None for x, need in zip(arrays, moving, strict=True)]
        total = torch.zeros((), device=tensors[-1].device)
        for start in range(0, len(arrays[0]), rows):
            part = slice(start, start + rows)
            parts = [x[part].detach().requires_grad_(need) for x, need in zip(arrays, moving, strict=True)]
            with torch.enable_grad():
                value = function(dict(zip(names, leaves, strict=True)), *parts)
            total += value.detach()
            inputs = [x for x in (*leaves, *parts) if x.requires_grad]
            if not inputs:
                continue
            found = iter(_gradients(value, inputs))
            for i, leaf in enumerate(leaves):
                if leaf.requires_grad:
                    sums[i] = _accumulated(sums[i], next(found))
            for target in whole:
                if target is not None:
                    target[part] = next(found)
        ctx.found = (*sums, *whole)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        found, ctx.found = ctx.found, None  # ours alone: scaled in place
        return None, None, None, *(x if x is None else x.mul_(grads[0]) for x in found)


def _accumulated(total: Tensor | None, x: Tensor) -> Tensor:
    """total + x, in total's memory; x may be a view of something that is still needed."""
    return x.clone() if total is None else total.add_(x)


# Products


def linear(x: Tensor, weight: Any) -> Tensor:
    """x (..., in) times weight (out, in), transposed; in x's dtype, whatever the number of rows."""
    if isinstance(weight, Tensor) and weight.requires_grad and torch.is_grad_enabled():
        make, parts = getattr(x, _MADE, (_itself, (x,)))
        return _Trained.apply(x, weight, make, *(part.detach() for part in parts))
    if isinstance(weight, Tensor) and weight.dtype == x.dtype:
        return functional.linear(x, weight)
    if x.requires_grad and torch.is_grad_enabled():
        return _Frozen.apply(x, weight)
    return _product(x, weight)


_MADE = "made_from"


def _made(y: Tensor, make: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """y, with a note that make(*parts) gives it again. Of parts that others keep anyway; whatever is computed from y
    has no note."""
    setattr(y, _MADE, (make, parts))
    return y


def _itself(x: Tensor) -> Tensor:
    return x


class _Trained(Function):
    """A product with a weight whose gradient is wanted: keeps what its input is made of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, make: Callable[..., Tensor], *parts: Tensor) -> Any:
        ctx.save_for_backward(weight, *parts)
        ctx.make = make
        return functional.linear(x, weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        weight, *parts = ctx.saved_tensors
        grad = grads[0].reshape(-1, len(weight))
        for_x = grads[0] @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        for_weight = (grad.t() @ ctx.make(*parts).reshape(len(grad), -1)).to(weight.dtype)
        return for_x, for_weight, None, *(None for _ in parts)


class _Frozen(Function):
    """A product with a weight that is not stored as it is multiplied: keeps no dense copy of it, and no input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any) -> Any:
        ctx.weight = weight
        return _product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return _product_back(grads[0], ctx.weight), None


def adapted_linear(x: Tensor, weight: Any, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """See `Backend.adapted_linear`."""
    make, parts = getattr(x, _MADE, (_itself, (x,)))
    return _Adapted.apply(x, weight, a, b, scale, make, *(part.detach() for part in parts))


class _Adapted(Function):
    """A frozen weight and an adapter, added up in one array each way: keeps what the input is made of, and x Aᵀ."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Any,
        a: Tensor,
        b: Tensor,
        scale: float,
        make: Callable[..., Tensor],
        *parts: Tensor,
    ) -> Any:
        low = functional.linear(x.reshape(-1, x.shape[-1]), a.to(x.dtype)).mul_(scale)
        y = _product(x, weight)
        y.view(-1, len(b)).addmm_(low, b.to(x.dtype).t())
        ctx.save_for_backward(a, b, low, *parts)
        ctx.weight, ctx.scale, ctx.make = weight, scale, make
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        a, b, low, *parts = ctx.saved_tensors
        grad = grads[0].reshape(-1, len(b))
        for_low = (grad @ b.to(grad.dtype)).mul_(ctx.scale)
        for_x = for_a = for_b = None
        if ctx.needs_input_grad[0]:
            for_x = _product_back(grads[0], ctx.weight)
            for_x.view(-1, a.shape[1]).addmm_(for_low, a.to(grad.dtype))
        if ctx.needs_input_grad[2]:
            for_a = (for_low.t() @ ctx.make(*parts).reshape(len(grad), -1)).to(a.dtype)
        if ctx.needs_input_grad[3]:
            for_b = (grad.t() @ low).to(b.dtype)
        return for_x, None, for_a, for_b, None, None, *(None for _ in parts)


def _product(x: Tensor, weight: Any) -> Tensor:
    if isinstance(weight, Tensor):
        return functional.linear(x, weight.to(x.dtype))
    return weights.multiply(x, weight)


def _product_back(grad: Tensor, weight: Any) -> Tensor:
    if isinstance(weight, Tensor):
        return grad @ weight.to(grad.dtype)
    return weights.multiply_back(grad, weight)


def moe_linear(x: Tensor, weight: Any, index: Tensor) -> Tensor:
    """See `Backend.moe_linear`; without the bias. Rows are permuted, never gathered twice: the sum of a row's gradients
    then has one order."""
    each = weight.each if isinstance(weight, experts.Experts) else weight.unbind(0)
    wide = x.expand(*index.shape, x.shape[-1])
    return experts.grouped(wide, each, index, linear)


def embed(weight: Any, tokens: Tensor) -> Tensor:
    """Rows of a weight: (*tokens.shape, in)."""
    return functional.embedding(tokens, weight) if isinstance(weight, Tensor) else weights.rows(weight, tokens)


# Element by element


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `Backend.rms_norm`."""
    kernels = _kernels(x)
    if kernels is not None:
        inverse = kernels.inverses(x.detach(), eps)
        return _made(_RmsNorm.apply(x, weight, inverse), _normed, x, weight, inverse)
    norm = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True, dtype=torch.float32)
    inverse = (norm.square_() / x.shape[-1]).add_(eps).rsqrt_()
    return _made(_RmsNorm.apply(x, weight, inverse), _normed, x, weight, inverse)


def _kernels(x: Tensor) -> Any:
    """The module `cpu`, if operations of its are for x, element by element."""
    kernels = weights.cpu_kernels() if x.device.type == "cpu" else None
    return kernels if kernels is not None and kernels.takes(x, x.numel() // x.shape[-1]) else None


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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `Backend.rope`."""
    kernels = weights.cpu_kernels() if x.device.type == "cpu" else None
    if kernels is not None and kernels.takes(x, x.shape[0] * x.shape[2]):
        return kernels.rotate(x, cos, sin)
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]  # B 1 T d/2
    wide_cos, signed_sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    turned = x[..., : 2 * half]
    swapped = torch.cat([turned[..., half:], turned[..., :half]], -1)
    turned = torch.addcmul(turned * wide_cos, swapped, signed_sin).to(x.dtype)
    return turned if 2 * half == x.shape[-1] else torch.cat([turned, x[..., 2 * half :]], -1)


class Rotation(Function):
    """`rotate`. It keeps the angles it was given, which all layers share; its derivative turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return rotate(grads[0], cos, -sin), None, None


def glu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """See `Backend.glu`."""
    return _made(_Glu.apply(gate, up, activation), partial(_gated, activation), gate, up)


def _gated(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    kernels = weights.cpu_kernels() if gate.device.type == "cpu" else None
    if kernels is not None and kernels.gates(gate):
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
        kernels = weights.cpu_kernels() if gate.device.type == "cpu" else None
        if kernels is not None and kernels.gates(gate) and activation != "swiglu_clamped":
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
