"""Differentiation on MLX, and the operations of the forward pass in the form that keeps least for the backward pass.

MLX builds the graph of both passes before it computes anything and keeps what the second needs of the first; so the
rules below name what is kept. Not here: evaluation, which is the caller's (`launch`). Invariant: a function with a rule
of its own takes everything that is differentiated as an argument, for MLX treats what it closes over as constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import mlx.core as mx

from partita.backend import MASKED
from partita.quantization import Packed

from . import mlx_rings
from .mlx_attention import TILE, dequantize
from .mlx_rings import Turns

Array = mx.array


def is_float(x: Array) -> bool:
    return mx.issubdtype(x.dtype, mx.floating)


def value_and_grad(loss: Callable[..., Any]) -> Callable[..., Any]:
    """See `Backend.value_and_grad`."""
    return mx.value_and_grad(loss)


def checkpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """See `Backend.checkpoint`. Integers are closed over: MLX would ask for their gradients."""

    def run(trainables: dict[str, Array], *arrays: Array) -> Any:
        moving, filled = _split(arrays)
        return mx.checkpoint(lambda trainables, *floats: function(trainables, *filled(floats)))(trainables, *moving)

    return run


def chunked_sum(function: Callable[..., Array], rows: int) -> Callable[..., Array]:
    """See `Backend.chunked_sum`. Each chunk waits for the one before it."""

    def run(trainables: dict[str, Array], *arrays: Array) -> Array:
        moving, filled = _split(arrays)
        count = arrays[0].shape[0]
        if count == 0:
            return mx.zeros(())

        def chunk(trainables: dict[str, Array], *parts: Array, start: int) -> Array:
            return function(trainables, *filled(parts, slice(start, start + rows)))

        gradient = mx.value_and_grad(chunk, argnums=tuple(range(1 + len(moving))))

        def summed(trainables: dict[str, Array], *floats: Array) -> Any:
            value, sums, pieces, names = mx.zeros(()), {}, [], list(trainables)
            for start in range(0, count, rows):
                parts = [x[start : start + rows] for x in floats]
                if start:
                    parts = mx.depends(parts, [value, *sums.values(), *pieces[-1]])
                one, (found, *rest) = gradient(trainables, *parts, start=start)
                value = value + one
                sums = {name: sums[name] + found[name] if start else found[name] for name in names}
                pieces.append(rest)
            return value, sums, tuple(mx.concatenate(list(x)) for x in zip(*pieces, strict=True))

        def scaled(primals: Any, cotangents: Any, outputs: Any) -> Any:
            _, sums, whole = outputs
            factor = cotangents[0]
            return {name: x * factor for name, x in sums.items()}, *((x * factor).astype(x.dtype) for x in whole)

        return _with_rule(summed, scaled)(trainables, *moving)[0]

    return run


def plain_sum(function: Callable[..., Array], rows: int) -> Callable[..., Array]:
    """`chunked_sum` where no gradient is wanted."""

    def run(trainables: dict[str, Array], *arrays: Array) -> Array:
        value = mx.zeros(())
        for start in range(0, arrays[0].shape[0], rows):
            value = value + function(trainables, *(x[start : start + rows] for x in arrays))
        return value

    return run


def _split(arrays: tuple[Array, ...]) -> tuple[list[Array], Callable[..., list[Array]]]:
    """The arrays of floats, and what puts others in their places: all arrays again, a part of those of integers."""

    def filled(floats: Any, part: slice = slice(None)) -> list[Array]:
        following = iter(floats)
        return [next(following) if is_float(x) else x[part] for x in arrays]

    return [x for x in arrays if is_float(x)], filled


def _with_rule(function: Callable[..., Any], rule: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose gradients are rule(its arguments, cotangents of its results, its results)."""
    custom: Any = mx.custom_function(function)
    custom.vjp(rule)
    return custom


def unflatten(flat: Array, shapes: Sequence[tuple[int, ...]], dtype: mx.Dtype) -> Sequence[Array]:
    """See `Backend.unflatten`."""
    ends = list(accumulate(math.prod(shape) for shape in shapes))

    def parts(flat: Array) -> list[Array]:
        cast = flat.astype(dtype)
        return [cast[start:end].reshape(shape) for start, end, shape in zip([0, *ends], ends, shapes, strict=False)]

    def back(primals: Any, cotangents: Any, outputs: Any) -> Array:
        return mx.concatenate([x.reshape(-1) for x in cotangents]).astype(flat.dtype)

    return _with_rule(parts, back)(flat)


def elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """See `Backend.elementwise`. Numbers become arrays: as constants they would be compiled into the kernel."""
    compiled = mx.compile(function)
    return lambda *arguments: compiled(*(x if isinstance(x, mx.array) else mx.array(x) for x in arguments))


# Products


LOGSUMEXP_BLOCK = 512
BLOCK = 2**22  # values of a weight that are dense at once


def packed_product(x: Array, weight: Packed[Array], *, transpose: bool = True) -> Array:
    """x (..., in) times a packed weight (out, in), transposed; or, not transposed, x (..., out) times it. Factors of
    rows are multiplied with what has one number a row, in float32: without them a sum may pass float16's range."""
    parts = weight.weight, weight.scales, weight.biases, transpose, weight.group_size, weight.bits, weight.mode
    if weight.factors is None:
        return mx.quantized_matmul(x, *parts)
    factors, wide = weight.factors[:, 0], x.astype(mx.float32)
    y = mx.quantized_matmul(wide, *parts) * factors if transpose else mx.quantized_matmul(wide * factors, *parts)
    return y.astype(x.dtype)


def packed_linear(x: Array, weight: Packed[Array]) -> Array:
    """x (..., in) times a frozen packed weight, transposed, on the CPU: made dense a part at a time for each pass, kept
    for none."""

    def product(x: Array) -> Array:
        found: list[Array] = []
        for _, part in _parts(weight):
            found.append(x @ _dense_after(found[-1] if found else x, part, x.dtype).T)
        return found[0] if len(found) == 1 else mx.concatenate(found, -1)

    return _with_rule(product, lambda primals, grad, output: packed_back(grad, weight))(x)


def adapted_linear(
    x: Array,
    a: Array,
    b: Array,
    scale: float,
    product: Callable[[Array], Array],
    product_back: Callable[[Array], Array],
) -> Array:
    """See `Backend.adapted_linear`. product, product_back: x times the frozen weight, transposed, and a gradient times
    it. The adapter is added by the product that gives it, forward and back; x Aᵀ is kept beside x."""

    def adapted(x: Array, a: Array, b: Array) -> Any:
        low = x @ a.T
        return mx.addmm(product(x), low, b.T, alpha=scale), low

    def back(primals: Any, cotangents: Any, outputs: Any) -> Any:
        (x, a, b), grad = primals, cotangents[0]
        low, grads, inputs = (y.reshape(-1, y.shape[-1]) for y in (outputs[1], grad, x))
        for_low = grad @ b
        for_a = _scaled(for_low.reshape(low.shape).T, inputs, scale)
        return mx.addmm(product_back(grad), for_low, a, alpha=scale), for_a, _scaled(grads.T, low, scale)

    return _with_rule(adapted, back)(x, a.astype(x.dtype), b.astype(x.dtype))[0]


def _scaled(a: Array, b: Array, scale: float) -> Array:
    """scale * a @ b in one launch."""
    return mx.addmm(mx.array(0.0, a.dtype), a, b, alpha=scale, beta=0.0)


def packed_back(grad: Array, weight: Packed[Array]) -> Array:
    """grad (..., out) times a packed weight, as `packed_linear` has it."""
    total: Any = None
    for rows, part in _parts(weight):
        dense = _dense_after(grad if total is None else total, part, grad.dtype)
        one = grad[..., rows] @ dense
        total = one if total is None else total + one
    return total


def _parts(weight: Packed[Array]) -> list[tuple[slice, Packed[Array]]]:
    """A weight (out, in) by its rows, which are views."""
    step = max(BLOCK // weight.shape[1], 1)
    if step >= weight.shape[0]:
        return [(slice(None), weight)]
    parts = (slice(start, start + step) for start in range(0, weight.shape[0], step))
    return [(rows, weight.map(lambda x, rows=rows: x[rows])) for rows in parts]


def _dense_after(before: Array, weight: Packed[Array], dtype: mx.Dtype) -> Array:
    """The weight, made when `before` is there: free to choose, MLX makes many weights dense long before."""
    return dequantize(weight.map(lambda part: mx.depends([part], [before])[0])).astype(dtype)


# Attention


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    *,
    scale: float,
    softcap: float | None,
    sink_logits: Array | None,
    keep: bool,
) -> Array:
    """See `Backend.attention`. keep: no gradient is wanted, so nothing need be computed again."""
    b, heads, t, _ = q.shape
    kv_heads = k.shape[1]
    if mask is None and softcap is not None:
        mask = causal(t)
    if mask is not None:  # float16 has no number as low as MASKED
        mask = mx.maximum(mask, float(mx.finfo(q.dtype).min)).astype(q.dtype)[:, None]
    logits = [] if sink_logits is None else [sink_logits]
    if keep:
        run = _Attend(mask, scale, softcap)
    elif softcap is None and sink_logits is None:
        assert mask is not None
        run = _recomputed(mask, scale)
    else:
        run = mx.checkpoint(_Attend(mask, scale, softcap))
    if b * heads * t * t <= TILE:
        return run(q, k, v, *logits)
    rep = heads // kv_heads
    groups = []
    for h in range(kv_heads):  # the heads that read the same keys at a time, so that their scores alone are alive
        group, one = slice(h * rep, (h + 1) * rep), slice(h, h + 1)
        groups.append(run(q[:, group], k[:, one], v[:, one], *(x[group] for x in logits)))
    return mx.concatenate(groups, 1)


def causal(tokens: int) -> Array:
    """The mask of whole sequences, float32 (1, T, T)."""
    return mx.triu(mx.full((1, tokens, tokens), MASKED), 1)


def _recomputed(mask: Array, scale: float) -> Callable[..., Array]:
    """Attention of q (B, H, T, D) to k, v (B, Hkv, T, D) whose scores are computed again for the gradients.
    mask: (B, 1, T, T)."""

    def shares(q: Array, k: Array) -> Array:
        """(B, Hkv, H / Hkv, T, T)"""
        b, kv_heads, t, _ = k.shape
        s = (q @ k.swapaxes(2, 3)).reshape(b, kv_heads, -1, t, t)
        return mx.softmax(s * scale + mask[:, None], -1, precise=True)

    def grouped(x: Array, k: Array) -> Array:
        """The heads that read the same keys one below the other."""
        return x.reshape(*k.shape[:2], -1, x.shape[-1])

    def attend(q: Array, k: Array, v: Array) -> Array:
        return (grouped(shares(grouped(q, k), k), k) @ v).reshape(*q.shape[:3], -1)

    def back(primals: Any, grad: Array, output: Array) -> Any:
        q, k, v = mx.depends(list(primals), [grad])  # else `mx.compile` would keep the shares of the forward pass
        q, grad = grouped(q, k), grouped(grad, k)
        share = shares(q, k)
        flat = grouped(share, k)
        slope = (grad @ v.swapaxes(2, 3)).reshape(share.shape)
        slope = grouped(share * (slope - (share * slope).sum(-1, keepdims=True)) * scale, k)
        return (slope @ k).reshape(primals[0].shape), slope.swapaxes(2, 3) @ q, flat.swapaxes(2, 3) @ grad

    return _with_rule(attend, back)


class _Attend:
    """mask: (B, 1, T, T) in the dtype of q, or None for causal attention without a soft cap."""

    def __init__(self, mask: Array | None, scale: float, softcap: float | None):
        self.mask, self.scale, self.softcap = mask, scale, softcap

    def __call__(self, q: Array, k: Array, v: Array, logits: Array | None = None) -> Array:
        if self.softcap is None:
            return mx.fast.scaled_dot_product_attention(
                q,
                k,
                v,
                scale=self.scale,
                mask="causal" if self.mask is None else self.mask,
                sinks=None if logits is None else logits.astype(q.dtype),
            )
        assert self.mask is not None
        b, heads, t, d = q.shape
        kv_heads = k.shape[1]
        rep = heads // kv_heads
        s = (q * self.scale).reshape(b, kv_heads, rep * t, d) @ k.swapaxes(2, 3)
        s = self.softcap * mx.tanh(s.astype(mx.float32) / self.softcap)
        s = s.reshape(b, kv_heads, rep, t, -1) + self.mask[:, None]
        out = mx.softmax(s, -1).astype(q.dtype).reshape(b, kv_heads, rep * t, -1) @ v
        out = out.reshape(b, heads, t, -1)
        if logits is None:
            return out
        share = mx.sigmoid(mx.logsumexp(s, -1, keepdims=True) - logits.reshape(kv_heads, rep, 1, 1))
        return (out * share.reshape(b, heads, t, 1)).astype(q.dtype)


# Element by element


def rotate(x: Array, turns: Turns) -> Array:
    """See `Backend.rotate`. Its gradient turns the other way."""
    return _with_rule(lambda x: mlx_rings.rotate(x, turns), lambda _, grad, output: mlx_rings.rotate(grad, turns.back))(
        x
    )


def glu(gate: Array, up: Array, activation: str) -> Array:
    """See `Backend.glu`. Keeps gate and up; their gradients share what they have in common."""

    def product(gate: Array, up: Array) -> Array:
        return activated(gate, up, activation)

    def back(primals: Any, cotangent: Array, output: Array) -> Any:
        gate, up = mx.depends(list(primals), [cotangent])  # else `mx.compile` would keep what both passes compute
        inside: Any = None
        if activation == "swiglu_clamped":
            inside = gate <= 7, mx.abs(up) <= 7
            gate, up = mx.minimum(gate, 7.0), mx.clip(up, -7.0, 7.0) + 1
        if activation == "gelu_tanh":
            t = mx.tanh(_INNER * gate * (1 + _CUBIC * gate * gate))
            value = 0.5 * gate * (1 + t)
            slope = 0.5 * (1 + t) + 0.5 * gate * (1 - t * t) * (_INNER * (1 + 3 * _CUBIC * gate * gate))
        else:
            factor = 1.702 if activation == "swiglu_clamped" else 1.0
            sigmoid = mx.sigmoid(gate if factor == 1 else factor * gate)
            value = gate * sigmoid
            slope = sigmoid * (1 + factor * (gate - value))
        for_gate, for_up = cotangent * up * slope, cotangent * value
        return (for_gate, for_up) if inside is None else (for_gate * inside[0], for_up * inside[1])

    return _with_rule(product, back)(gate, up)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """See `Backend.cross_entropy`. The gradient is one array of the logits' size."""
    index = targets[:, None]

    def loss(logits: Array) -> Any:
        total = logsumexp(logits)[..., None]
        return (total - mx.take_along_axis(logits, index, -1))[:, 0], total

    def back(primals: Any, cotangents: Any, outputs: Any) -> Array:
        grad = cotangents[0][:, None]
        slope = mx.exp(primals - outputs[1]) * grad
        return mx.put_along_axis(slope, index, mx.take_along_axis(slope, index, -1) - grad, -1)

    return _with_rule(loss, back)(logits)[0]


def logsumexp(x: Array) -> Array:
    """Along the last axis, in blocks: the CPU device adds one number after another, and what is small beside the sum so
    far is lost: 1e-4 too little over a vocabulary of 49,152."""
    blocks = x.shape[-1] // LOGSUMEXP_BLOCK
    if blocks < 2:
        return mx.logsumexp(x, -1)
    whole, rest = mx.split(x, [blocks * LOGSUMEXP_BLOCK], -1)
    parts = mx.logsumexp(whole.reshape(*x.shape[:-1], blocks, LOGSUMEXP_BLOCK), -1)
    if rest.shape[-1]:
        parts = mx.concatenate([parts, mx.logsumexp(rest, -1, keepdims=True)], -1)
    return mx.logsumexp(parts, -1)


_INNER, _CUBIC = 0.7978845608028654, 0.044715  # sqrt(2 / pi), and the cube's share, of the tanh form of GELU


def activated(gate: Array, up: Array, activation: str) -> Array:
    """`Backend.glu`, without a rule for its gradient."""
    if activation == "silu":
        return gate * mx.sigmoid(gate) * up
    if activation == "swiglu_clamped":
        gate, up = mx.minimum(gate, 7.0), mx.clip(up, -7.0, 7.0)
        return gate * mx.sigmoid(1.702 * gate) * (up + 1)
    inner = _INNER * (gate + _CUBIC * gate * gate * gate)
    return 0.5 * gate * (1 + mx.tanh(inner)) * up
