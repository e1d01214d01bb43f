"""Differentiation on torch, and the operations of the forward pass in the form that keeps least for the backward pass.

A frozen weight keeps neither its input nor a dense copy of itself; a trained one whose input came out of a norm or an
activation has it made again in the backward pass. Not here: attention (`training_attention.py`), and what goes element
by element (`pointwise.py`). Invariant: no gradient's value depends on what else is alive, on the number of rows of a
product, or on chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from . import experts, weights
from .pointwise import kernels_for, made_from

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


def unflatten(flat: Tensor, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> Sequence[Tensor]:
    """See `Backend.unflatten`."""
    return _Unflatten.apply(flat, shapes, dtype)


class _Unflatten(Function):
    """Views, whose gradients are joined again."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> Any:
        parts = flat.to(dtype).split([math.prod(shape) for shape in shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.cat([grad.reshape(-1) for grad in grads]).float(), None, None


# Products


def linear(x: Tensor, weight: Any) -> Tensor:
    """x (..., in) times weight (out, in), transposed; in x's dtype, whatever the number of rows."""
    if isinstance(weight, Tensor) and weight.requires_grad and torch.is_grad_enabled():
        make, parts = made_from(x)
        return _Trained.apply(x, weight, make, *(part.detach() for part in parts))
    if isinstance(weight, Tensor) and weight.dtype == x.dtype and _dense_kernels(x, weight) is None:
        return functional.linear(x, weight)
    if x.requires_grad and torch.is_grad_enabled():
        return _Frozen.apply(x, weight)
    return _product(x, weight)


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
    make, parts = made_from(x)
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
        low = functional.linear(x.reshape(-1, x.shape[-1]), a.to(x.dtype))
        y = _product(x, weight)
        y.view(-1, len(b)).addmm_(low, b.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(a, b, low, *parts)
        ctx.weight, ctx.scale, ctx.make = weight, scale, make
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        a, b, low, *parts = ctx.saved_tensors
        grad = grads[0].reshape(-1, len(b))
        for_low = grad @ b.to(grad.dtype)
        for_x = for_a = for_b = None
        if ctx.needs_input_grad[0]:
            for_x = _product_back(grads[0], ctx.weight)
            for_x.view(-1, a.shape[1]).addmm_(for_low, a.to(grad.dtype), alpha=ctx.scale)
        if ctx.needs_input_grad[2]:
            for_a = _scaled(for_low.t(), ctx.make(*parts).reshape(len(grad), -1), ctx.scale).to(a.dtype)
        if ctx.needs_input_grad[3]:
            for_b = _scaled(grad.t(), low, ctx.scale).to(b.dtype)
        return for_x, None, for_a, for_b, None, None, *(None for _ in parts)


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a @ b, in one operation: what it would be added to is not read."""
    return torch.addmm(a.new_empty(1), a, b, beta=0, alpha=scale)


def _product(x: Tensor, weight: Any) -> Tensor:
    if isinstance(weight, Tensor):
        if (kernels := _dense_kernels(x, weight)) is not None:
            return kernels.multiply(x, weight)
        return functional.linear(x, weight.to(x.dtype))
    return weights.multiply_packed(x, weight)


def _product_back(grad: Tensor, weight: Any) -> Tensor:
    if isinstance(weight, Tensor):
        if (kernels := _dense_kernels(grad, weight)) is not None:
            return kernels.multiply_back(grad, weight)
        return grad @ weight.to(grad.dtype)
    return weights.multiply_back(grad, weight)


def _dense_kernels(x: Tensor, weight: Tensor) -> Any:
    """The module `cpu`, if products with a dense weight of its are for x."""
    return kernels_for(x, lambda kernels: kernels.multiplies(x, weight))


def moe_linear(x: Tensor, weight: Any, index: Tensor) -> Tensor:
    """See `Backend.moe_linear`; without the bias. Rows are permuted, never gathered twice: the sum of a row's gradients
    then has one order."""
    each = weight.each if isinstance(weight, experts.Experts) else weight.unbind(0)
    wide = x.expand(*index.shape, x.shape[-1])
    return experts.grouped(wide, each, index, linear)


def embed(weight: Any, tokens: Tensor) -> Tensor:
    """Rows of a weight: (*tokens.shape, in)."""
    return functional.embedding(tokens, weight) if isinstance(weight, Tensor) else weights.rows(weight, tokens)
