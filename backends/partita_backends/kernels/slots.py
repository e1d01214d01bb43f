"""Keys and values of a few tokens written at their slots of a cache, rounded to 16 bits or packed on the way.

Packed ones are those of `partita.quantization.quantize_minmax`, bit for bit. Not here: which slots. Invariant: a slot
that is not named keeps its bits.
"""

from __future__ import annotations

import numpy as np

from .attention import BFLOAT16, FLOAT16, FLOAT32
from .compiled import inner_kernel, kernel
from .lanes import WIDTH, float_at, from_half, load, splat, store
from .rounding import float_bits, grid_points, joined_nibbles, to_half


@kernel
def write(x, index, stored, scales, biases, kind, group, slots):  # pragma: no cover
    """x: float32 (B, H, T, D), D and group in whole lanes. index: int32 (B, T). The others: a `Side` and its slots."""
    heads, tokens, size = x.shape[1], x.shape[2], x.shape[3]
    for b in range(x.shape[0]):
        for h in range(heads):
            for t in range(tokens):
                at = ((b * heads + h) * slots + index[b, t]) * size
                start = ((b * heads + h) * tokens + t) * size
                if kind == FLOAT32:
                    for i in range(0, size, WIDTH):
                        store(stored, (at + i) * 4, load(x, start + i))
                elif kind in (FLOAT16, BFLOAT16):
                    for i in range(size):
                        number = float_at(x, start + i)
                        half = to_half(number) if kind == FLOAT16 else _to_bfloat(number)
                        stored[(at + i) * 2] = half & 255
                        stored[(at + i) * 2 + 1] = half >> 8
                else:
                    for i in range(0, size, group):
                        _pack(x, start + i, group, stored, at + i, scales, biases, kind)


@inner_kernel
def _pack(x, start, group, stored, at, scales, biases, bits):  # pragma: no cover
    """A group, x from `start` on: its integers as the ones from `at` on."""
    place = at // group
    low = high = float_at(x, start)
    for i in range(start, start + group):
        v = float_at(x, i)
        if v < low or v != v:  # what is no number makes both of them none
            low = v
        if v > high or v != v:
            high = v
    most = np.float32((1 << bits) - 1)
    scales[place], biases[place] = to_half((high - low) / most), to_half(low)
    step, bias = from_half(scales[place]), from_half(biases[place])
    for i in range(0, group, WIDTH):
        if step == 0:
            q = grid_points(splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(1)), most)
        else:
            q = grid_points(load(x, start + i), splat(bias), splat(step), most)
        if bits == 8:
            store(stored, at + i, q)
        else:
            store(stored, (at + i) // 2, joined_nibbles(q))


@inner_kernel
def _to_bfloat(x):  # pragma: no cover
    """The bits of the nearest bfloat16, ties to even."""
    bits = np.int64(float_bits(x))
    if x != x:
        return np.int64(0x7FC0)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
