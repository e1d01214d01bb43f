"""The packed affine format, and the two rounding rules that fill it, in numpy.

A value is `q * scale + bias` with an unsigned integer q of `bits` bits and one (scale, bias) pair for every
`group_size` values along the last axis. The integers of a row form one little-endian bit stream in uint32 words,
which is MLX's layout for every width (value i occupies bits [i * bits, (i + 1) * bits) of its row).

Two rules decide the integers. Keys and values use `quantize_minmax`. Weights use `quantize_weight`, MLX's own rule.
This module knows no device: backends repeat `quantize_minmax` in their own operations and are tested against it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .errors import DataError

Array = Any  # numpy, mlx or torch: whatever the backend in hand uses


@dataclass(frozen=True)
class Packed:
    """An array of shape (*leading, n) stored as integers.

    weight: uint32, (*leading, n * bits / 32). scales, biases: float, (*leading, n / group_size).
    """

    weight: Array
    scales: Array
    biases: Array
    bits: int
    group_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that this stands for."""
        return (*self.scales.shape[:-1], self.scales.shape[-1] * self.group_size)

    @property
    def nbytes(self) -> int:
        return sum(int(part.nbytes) for part in (self.weight, self.scales, self.biases))

    def map(self, function) -> Packed:
        """The same format with `function` applied to each of the three arrays (a device transfer, a row selection)."""
        return replace(
            self, weight=function(self.weight), scales=function(self.scales), biases=function(self.biases)
        )


def check_groups(size: int, bits: int, group_size: int, what: str) -> None:
    """Raise DataError unless a last axis of `size` splits into whole groups and whole 32-bit words."""
    if size % group_size or (size * bits) % 32:
        raise DataError(f"{what}: a size of {size} does not divide into groups of {group_size} at {bits} bits")


def pack(integers: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers (*leading, n) below 2**bits to uint32 words (*leading, n * bits / 32)."""
    *leading, n = integers.shape
    if 8 % bits == 0:  # values do not straddle bytes: shift them together, far cheaper than single bits
        per_byte = 8 // bits
        parts = integers.astype(np.uint8).reshape(*leading, n // per_byte, per_byte)
        stream = parts[..., 0].copy()
        for i in range(1, per_byte):
            stream |= parts[..., i] << np.uint8(i * bits)
    else:
        one_bit = (integers[..., None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
        stream = np.packbits(one_bit.reshape(*leading, n * bits), axis=-1, bitorder="little")
    return np.ascontiguousarray(stream).view("<u4")


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `pack`: uint32 (*leading, w) to uint8 (*leading, w * 32 / bits)."""
    *leading, w = words.shape
    stream = np.ascontiguousarray(words).view(np.uint8)
    if 8 % bits == 0:
        per_byte = 8 // bits
        shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
        return ((stream[..., None] >> shifts) & np.uint8(2**bits - 1)).reshape(*leading, w * 4 * per_byte)
    one_bit = np.unpackbits(stream, axis=-1, bitorder="little").reshape(*leading, w * 32 // bits, bits)
    return np.packbits(one_bit, axis=-1, bitorder="little")[..., 0]


def dequantize(packed: Packed, dtype: Any = np.float32) -> np.ndarray:
    """`q * scale + bias` computed in float32, as `dtype`."""
    *leading, n = packed.shape
    integers = unpack(packed.weight, packed.bits).reshape(*leading, n // packed.group_size, packed.group_size)
    values = integers.astype(np.float32) * packed.scales[..., None].astype(np.float32)
    values += packed.biases[..., None].astype(np.float32)
    return values.reshape(*leading, n).astype(dtype, copy=False)


def quantize_minmax(x: np.ndarray, bits: int, group_size: int) -> Packed:
    """Keys and values: scale = (max - min) / (2**bits - 1) and bias = min, both stored in float16.

    The integers are computed from the *rounded* scale and bias, ties to even, so that what is stored is the nearest
    point of the grid that will be read back. A constant group has scale 0 and every q = 0.
    """
    *leading, n = x.shape
    groups = x.astype(np.float32).reshape(*leading, n // group_size, group_size)
    low, high = groups.min(-1), groups.max(-1)
    scales = ((high - low) / np.float32(2**bits - 1)).astype(np.float16)
    biases = low.astype(np.float16)
    step = scales.astype(np.float32)
    step = np.where(step == 0, np.float32(1), step)
    integers = np.rint((groups - biases.astype(np.float32)[..., None]) / step[..., None])
    integers = np.clip(integers, 0, 2**bits - 1) * (scales != 0)[..., None]
    return Packed(pack(integers.astype(np.uint8).reshape(*leading, n), bits), scales, biases, bits, group_size)
