"""Keys and values on MLX on their way into a cache: rotated, packed and written in as few launches as can be.

A launch is a primitive that is neither a view nor joined to others by `mx.compile`, which joins what goes element by
element and never a reduction, a concatenation or a product. So all heads of a stacked product are rotated in one pass,
keys and values are packed together, and a ring is one array wherever it can be (`partita.rings`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mlx.core as mx

from partita.brief import Brief
from partita.quantization import AFFINE, Packed
from partita.quantization import joined as joined_packed
from partita.rings import PackedPair, Sides

Array = mx.array


@dataclass(frozen=True)
class Turns(Brief):
    """Angles of a step: cos, sin (B, T, 1, d / 2), for the first `heads` heads; `plain` more stay as they are. dtype:
    what `rotate` gives; that of what is rotated, if None."""

    cos: Array
    sin: Array
    heads: int
    plain: int
    dtype: mx.Dtype | None = None

    @cached_property
    def pairs(self) -> tuple[Array, Array]:
        """For both numbers of a pair, and every head: (B, T, heads + plain, 2, d / 2), plain heads by 1 and 0."""
        b, t, _, half = self.cos.shape
        signed = mx.stack([-self.sin, self.sin], -2), mx.stack([self.cos, self.cos], -2)
        if not self.plain:
            return signed[1], signed[0]
        wide, rest = (b, t, self.heads, 2, half), (b, t, self.plain, 2, half)
        sin = mx.concatenate([mx.broadcast_to(signed[0], wide), mx.zeros(rest)], 2)
        return mx.concatenate([mx.broadcast_to(signed[1], wide), mx.ones(rest)], 2), sin

    @cached_property
    def back(self) -> Turns:
        """The other way."""
        return replace(self, sin=-self.sin)


def rotate(x: Array, turns: Turns) -> Array:
    """See `Backend.rotate`. Where all dims are: x as pairs, and the same memory read in the other order."""
    half, dtype = turns.cos.shape[-1], turns.dtype or x.dtype
    if 2 * half == x.shape[-1]:
        cos, sin = turns.pairs
        pairs = x.reshape(*x.shape[:-1], 2, half)
        return (pairs * cos + pairs[..., ::-1, :] * sin).astype(dtype).reshape(x.shape)
    x = x.astype(dtype)
    turned = x[:, :, : turns.heads]
    low, high, rest = turned[..., :half], turned[..., half : 2 * half], turned[..., 2 * half :]
    parts = [(low * turns.cos - high * turns.sin).astype(x.dtype), (high * turns.cos + low * turns.sin).astype(x.dtype)]
    y = mx.concatenate([*parts, rest], -1)
    return mx.concatenate([y, x[:, :, turns.heads :]], 2) if turns.plain else y


def written(buffer: Array, x: Array, index: Array) -> Array:
    """buffer (..., B, H, C, D) with x (..., B, H, T, D) at slots index (B, T)."""
    x, slots = x.astype(buffer.dtype), buffer.ndim - 2
    if index.size == 1:
        return mx.slice_update(buffer, x, index.reshape(1), (slots,))
    return mx.put_along_axis(buffer, mx.broadcast_to(index[:, None, :, None], x.shape), x, slots)


def store(kv: Any, x: Array, index: Array) -> Any:
    """See `Backend.store`."""
    b, t, heads, d = x.shape
    new = x.reshape(b, t, 2, heads // 2, d).transpose(2, 0, 3, 1, 4)  # 2 B H T D
    if isinstance(kv, PackedPair):
        k, v, scales, biases = packed(new, kv.bits, kv.group_size)
        return replace(
            kv,
            k=written(kv.k, k, index),
            v=written(kv.v, v, index),
            scales=written(kv.scales, scales, index),
            biases=written(kv.biases, biases, index),
        )
    if not isinstance(kv, Sides):
        return written(kv, new, index)
    k, v = (side[0] for side in mx.split(new, 2))
    return Sides(_stored(kv.k, k, index), _stored(kv.v, v, index))


def _stored(side: Array | Packed[Array], x: Array, index: Array) -> Array | Packed[Array]:
    if not isinstance(side, Packed):
        return written(side, x, index)
    new = quantize(x, side.bits, side.group_size)
    return joined_packed([side, new], lambda pair: written(pair[0], pair[1], index))


def packed(kv: Array, bits: tuple[int, int], group_size: int) -> tuple[Array, Array, Array, Array]:
    """Keys and values (2, B, H, T, D): words of both, scales and biases (2, B, H, T, D / group_size), as
    `partita.quantization.quantize_minmax` gives them. Two reductions, and four passes that nothing breaks up."""
    groups = kv.reshape(*kv.shape[:-1], -1, group_size)
    most = mx.array([float(2**b - 1) for b in bits]).reshape(2, *[1] * (groups.ndim - 1))
    scales, biases = _grid(groups, most)
    k, v = (
        _words(groups[i : i + 1], scales[i : i + 1], biases[i : i + 1], bits[i]).reshape(*kv.shape[1:-1], -1)
        for i in range(2)
    )
    shape = (*kv.shape[:-1], -1)
    return k, v, scales.reshape(shape), biases.reshape(shape)


def _grid(groups: Array, most: Array) -> tuple[Array, Array]:
    """Scales and biases (..., 1), float16, of groups whose largest integer is `most`."""
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    return ((high.astype(mx.float32) - low.astype(mx.float32)) / most).astype(mx.float16), low.astype(mx.float16)


def _words(groups: Array, scales: Array, biases: Array, bits: int) -> Array:
    """Groups (..., group_size) as uint32 words, of scales and biases (..., 1)."""
    step = scales.astype(mx.float32)

    def integers(x: Array) -> Array:
        found = mx.round((x.astype(mx.float32) - biases.astype(mx.float32)) / mx.where(step == 0, 1.0, step))
        return (mx.clip(found, 0.0, float(2**bits - 1)) * (step != 0)).astype(mx.uint8)

    if bits == 8:
        return integers(groups).view(mx.uint32)
    return (integers(groups[..., 0::2]) | (integers(groups[..., 1::2]) << 4)).view(mx.uint32)


def quantize(x: Array, bits: int, group_size: int) -> Packed[Array]:
    """`partita.quantization.quantize_minmax`, of one side."""
    groups = x.reshape(*x.shape[:-1], -1, group_size)
    scales, biases = _grid(groups, mx.array(float(2**bits - 1)))
    shape = (*x.shape[:-1], -1)
    words = _words(groups, scales, biases, bits).reshape(shape)
    return Packed(words, scales.reshape(shape), biases.reshape(shape), bits, group_size)


def dequantize(packed: Packed[Array]) -> Array:
    """What packed numbers stand for, in float32: `q * scale + bias`, or small floats."""
    if packed.mode == AFFINE:
        scales, biases = (part.astype(mx.float32) for part in packed.grid)
        return mx.dequantize(packed.weight, scales, biases, packed.group_size, packed.bits)
    values = mx.dequantize(
        packed.weight, packed.scales, None, packed.group_size, packed.bits, packed.mode, dtype=mx.float32
    )
    return values if packed.factors is None else values * packed.factors
