"""The packed formats, and the two rounding rules that fill the affine one, in numpy.

Affine: a value is `q * scale + bias` with an unsigned integer q of `bits` bits and one (scale, bias) pair for every
`group_size` values along the last axis. The integers of a row form one little-endian bit stream in uint32 words,
which is MLX's layout for every width (value i occupies bits [i * bits, (i + 1) * bits) of its row).

Small floats: q is the code of a float of 4 or 8 bits, and a group shares a multiplier, which is a float of 8 bits.

Two rules decide the integers. Keys and values use `quantize_minmax`. Weights use `quantize_weight`, MLX's own rule.
This module knows no device: backends repeat `quantize_minmax` in their own operations and are tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from .arrays import H, Shaped
from .brief import Brief
from .errors import DataError, UnsupportedModel

T = TypeVar("T", bound=Shaped)

AFFINE = "affine"
NVFP4, MXFP4, MXFP8 = "nvfp4", "mxfp4", "mxfp8"
SMALL_FLOATS = {NVFP4: (4, 16), MXFP4: (4, 32), MXFP8: (8, 32)}
"""Modes of small floats: the bits of one, and how many share a multiplier."""


@dataclass(frozen=True)
class Packed(Brief, Generic[H]):
    """An array of shape (*leading, n) stored as integers: in numpy's arrays, or `Packed[Array]` on a device.

    weight: uint32, (*leading, n * bits / 32). scales, biases: float, (*leading, n / group_size). mode: what an integer
    stands for, by MLX's name: "affine" is `q * scale + bias`. A mode of SMALL_FLOATS has codes of multipliers for
    scales, uint8, and None for biases. factors: of NVFP4, float32, (*leading, 1), what values of a row are multiplied
    by in the end; None: nothing. A tensor's one factor is written for each of its rows, so that rows can be taken and
    put together. What computes with integers asks for the mode it knows (`require_affine`), what moves them need not.
    ValueError: an affine one without biases, or factors in another mode.
    """

    weight: H
    scales: H
    biases: H | None
    bits: int
    group_size: int
    mode: str = AFFINE
    factors: H | None = None

    def __post_init__(self) -> None:
        if self.mode == AFFINE and self.biases is None:
            raise ValueError("affine packed arrays need biases")
        if self.mode != NVFP4 and self.factors is not None:
            raise ValueError(f"packed arrays of mode {self.mode!r} have no factors")

    @property
    def format(self) -> tuple[str, int, int, bool]:
        """(mode, bits, group_size, whether there are factors): packed arrays of one format can be put together."""
        return self.mode, self.bits, self.group_size, self.factors is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that this stands for."""
        return (*self.scales.shape[:-1], self.scales.shape[-1] * self.group_size)

    @property
    def grid(self) -> tuple[H, H]:
        """(scales, biases), where there are both: always of an affine one. ValueError: there are no biases."""
        if self.biases is None:
            raise ValueError(f"packed arrays of mode {self.mode!r} without biases")
        return self.scales, self.biases

    @property
    def nbytes(self) -> int:
        parts = self.weight, self.scales, self.biases, self.factors
        return sum(int(part.nbytes) for part in parts if part is not None)

    def map(self, function: Callable[[H], T]) -> Packed[T]:
        """The same format with `function` applied to each of its arrays (a device transfer, a row selection): weight,
        scales, biases and factors, in this order."""
        weight, scales = function(self.weight), function(self.scales)
        biases = None if self.biases is None else function(self.biases)
        factors = None if self.factors is None else function(self.factors)
        return Packed(weight, scales, biases, self.bits, self.group_size, self.mode, factors)


def joined(parts: Sequence[Packed[H]], function: Callable[[list[H]], H]) -> Packed[H]:
    """Packed arrays of one format as one: `function` (a concatenation, a stack) of all weights, and of the rest."""
    first = parts[0]
    weight, scales = function([part.weight for part in parts]), function([part.scales for part in parts])
    biases = None if first.biases is None else function([part.grid[1] for part in parts])
    factors = None if first.factors is None else function([x for part in parts if (x := part.factors) is not None])
    return replace(first, weight=weight, scales=scales, biases=biases, factors=factors)


def below(parts: Sequence[np.ndarray | Packed]) -> np.ndarray | Packed:
    """Matrices of one format, one below the other."""
    if len(parts) == 1:
        return parts[0]
    packed = [part for part in parts if isinstance(part, Packed)]
    return joined(packed, np.concatenate) if packed else np.concatenate([np.asarray(part) for part in parts])


@dataclass(frozen=True)
class StoredRows(Brief):
    """Some rows of a `Stored`. raw: uint8, (rows, bytes of a row), over a file. order: row i is raw[order[i]]; None: as
    in the file. decode(raw, smallest group): rows of bytes as `Stored.repacked` gives them. release: forget the
    file's pages that were read."""

    raw: np.ndarray
    order: np.ndarray | None
    decode: Callable[[np.ndarray, int], np.ndarray | Packed]
    release: Callable[[], None]

    def take(self, start: int, stop: int) -> np.ndarray:
        return self.raw[start:stop] if self.order is None else self.raw[self.order[start:stop]]


@dataclass(frozen=True)
class Stored(Brief):
    """A matrix (out, in) whose rows are still a file's bytes, in blocks of integers with scales: a backend that knows
    the type of the blocks puts them in its own form, and needs no form in between; others ask for `repacked`.

    type: by ggml's name ("Q4_K"), which stands for the layout of a block. size: in. parts: one below the other.
    """

    type: str
    size: int
    parts: tuple[StoredRows, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(len(part.raw) for part in self.parts), self.size

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows as bytes, uint8 (rows, bytes of a row), contiguous; fewer where there are no more."""
        found: list[np.ndarray] = []
        for part in self.parts:
            if start < len(part.raw) and stop > 0:
                found.append(part.take(max(start, 0), min(stop, len(part.raw))))
            start, stop = start - len(part.raw), stop - len(part.raw)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def repacked(self, smallest_group: int) -> np.ndarray | Packed:
        """The same as integers of an affine `Packed`, or dense float32 where groups are smaller than that.

        CheckpointError: a scale is not finite."""
        return below([part.decode(part.take(0, len(part.raw)), smallest_group) for part in self.parts])

    def release(self) -> None:
        """To be called once it is not read any more: memory that holds what was read of the file may be used for
        something else. It would be read again all the same."""
        for part in self.parts:
            part.release()


def require_affine(packed: Packed[H], what: str) -> Packed[H]:
    """What was given. Raises UnsupportedModel, beginning with `what`, for any mode but "affine"."""
    if packed.mode != AFFINE:
        raise UnsupportedModel(f"{what}: packed weights of mode {packed.mode!r} are not supported")
    return packed


def require_known(packed: Packed[H], what: str) -> Packed[H]:
    """The same for who knows small floats too."""
    return packed if packed.format[:3] in _KNOWN else require_affine(packed, what)


_KNOWN = frozenset((mode, *format) for mode, format in SMALL_FLOATS.items())


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
        stream = _gather_eights(np.ascontiguousarray(integers, np.uint8), bits).reshape(*leading, n * bits // 8)
    return np.ascontiguousarray(stream).view("<u4")


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `pack`: uint32 (*leading, w) to uint8 (*leading, w * 32 / bits)."""
    *leading, w = words.shape
    stream = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return stream.reshape(*leading, w * 4).copy()
    if bits == 4:  # both halves of a byte at once
        wide = stream.astype("<u2")
        wide |= wide << np.uint16(4)
        return (wide & np.uint16(0x0F0F)).view(np.uint8).reshape(*leading, w * 8)
    return _spread_eights(stream.reshape(-1, bits)).reshape(*leading, w * 32 // bits)


def _gather_eights(integers: np.ndarray, bits: int) -> np.ndarray:
    """Eight integers below 2**bits are `bits` whole bytes: uint8 (n,) to (n / 8, bits).

    Eight bytes are one 64-bit number; three shifts close the gaps between its lanes, doubling the lanes' width.
    """
    x = integers.reshape(-1, 8).view("<u8")
    for lanes in (4, 2, 1):
        low = np.uint64(_lane_mask(lanes, 64 // lanes, bits * 4 // lanes))
        gap = np.uint64(32 // lanes - bits * 4 // lanes)
        x = (x & low) | ((x >> gap) & np.uint64(_lane_mask(lanes, 64 // lanes, bits * 8 // lanes)) & ~low)
    return x.view(np.uint8).reshape(-1, 8)[:, :bits]


def _spread_eights(stream: np.ndarray) -> np.ndarray:
    """The inverse of `_gather_eights`: uint8 (m, bits) to (8 * m,)."""
    bits = stream.shape[1]
    eights = np.zeros((stream.shape[0], 8), np.uint8)
    eights[:, :bits] = stream
    x = eights.view("<u8")
    for lanes in (1, 2, 4):
        low = np.uint64(_lane_mask(lanes, 64 // lanes, bits * 4 // lanes))
        high = np.uint64(_lane_mask(lanes, 64 // lanes, bits * 8 // lanes)) & ~low
        x = (x & low) | ((x & high) << np.uint64(32 // lanes - bits * 4 // lanes))
    return x.view(np.uint8).reshape(-1)


def _lane_mask(lanes: int, pitch: int, width: int) -> int:
    """`lanes` runs of `width` ones, `pitch` bits apart."""
    return sum(((1 << width) - 1) << (lane * pitch) for lane in range(lanes))


def dequantize(packed: Packed, dtype: Any = np.float32) -> np.ndarray:
    """The values, computed in float32, as `dtype`: `q * scale + bias`, or code * multiplier, which is exact, * factor.

    UnsupportedModel: a mode that is not known."""
    require_known(packed, "dequantize")
    *leading, n = packed.shape
    integers = unpack(packed.weight, packed.bits).reshape(*leading, n // packed.group_size, packed.group_size)
    if packed.mode == AFFINE:
        values = integers.astype(np.float32)
        scales, biases = packed.grid
        values *= scales[..., None].astype(np.float32)
        values += biases[..., None].astype(np.float32)
    else:
        values = small_floats(packed.bits)[integers]
        values *= multipliers(packed)[..., None]
        if packed.factors is not None:
            values *= packed.factors[..., None]
    return values.reshape(*leading, n).astype(dtype, copy=False)


def small_floats(bits: int) -> np.ndarray:
    """What each code stands for, float32 (2**bits,). 4 bits: E2M1. 8 bits: E4M3, with one NaN of each sign and no
    infinity. (OCP Microscaling Formats, version 1.0.)"""
    import ml_dtypes

    if bits == 4:
        positive = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
        return np.concatenate([positive, -positive])
    return np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def multipliers(packed: Packed) -> np.ndarray:
    """Of small floats' groups, float32 (*leading, n / group_size): NVFP4's scales are E4M3, others E8M0, which is
    2**(e - 127)."""
    import ml_dtypes

    if packed.mode == NVFP4:
        return packed.scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return np.ldexp(np.float32(1), packed.scales.astype(np.int32) - 127)


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


def hadamard_matrix(size: int) -> np.ndarray:
    """Orthonormal Hadamard matrix (size, size) in float32, Sylvester's order; symmetric, so its own inverse.

    Raises DataError unless size is a power of two.
    """
    if size < 1 or size & (size - 1):
        raise DataError(
            f"a Hadamard rotation needs a head_dim that is a power of two, got {size}: leave the h out of `kv`",
            field="kv",
        )
    matrix = np.ones((1, 1), np.float32)
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(np.float32(size))).astype(np.float32)


def quantize_weight(x: np.ndarray, bits: int, group_size: int) -> Packed:
    """Weights: MLX's affine rule (`mx.quantize`), bit for bit for float32 input. x: (*leading, n); scales float32.

    The edge of larger magnitude is a point of the grid exactly, so that zero is nearly one: from the plain step
    (max - min) / (2**bits - 1), at least 1e-7, take q0 = round(edge / step), then scale = edge / q0 and bias = edge.
    The scale is negative where the maximum is the edge. Where q0 is 0 the step stays and bias is 0. Ties to even.
    At 1 bit the scale is the plain step, and the bias the minimum.
    DataError if n does not divide into groups and words.
    """
    *leading, n = x.shape
    check_groups(n, bits, group_size, "a weight to be quantized")
    groups = x.astype(np.float32, copy=False).reshape(-1, group_size)
    low: np.ndarray = groups.min(-1)
    high: np.ndarray = groups.max(-1)
    bins = np.float32(2**bits - 1)
    below = np.abs(low) > np.abs(high)
    step = np.maximum((high - low) / bins, np.float32(1e-7))
    step = np.where(below, step, -step)
    edge = np.where(below, low, high)
    q0 = np.rint(edge / step)
    on_grid = q0 != 0
    scales = np.where(on_grid, edge / np.where(on_grid, q0, np.float32(1)), step)
    biases = np.where(on_grid, edge, np.float32(0))
    if bits == 1:
        scales, biases = np.maximum(high - low, np.float32(1e-7)), low
    integers = np.clip(np.rint((groups - biases[:, None]) / scales[:, None]), 0, bins).astype(np.uint8)
    shape = (*leading, n // group_size)
    return Packed(
        pack(integers.reshape(*leading, n), bits), scales.reshape(shape), biases.reshape(shape), bits, group_size
    )
