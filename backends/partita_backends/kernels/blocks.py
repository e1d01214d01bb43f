"""Packed weights in the layout that kernels read: blocks of 32 outputs, whose integers lie side by side.

An integer is a sum of planes of 4, 2 or 1 bits (`PLANES`): 6 bits are a plane of 4 and one of 2, times 16. A unit is 32
inputs of a block, as 8 quads of neighbours; a vector of a plane is 128 bytes, a quad for each output. A byte holds the
integers of several quads: of 4 bits, quads r and r + 4; of 2 bits, quads r, r + 2, r + 4, r + 6; of 1 bit, all 8; the
first in the lowest bits. Scales are (blocks, groups, 32), in the type that they came in.

A row of units, before rows are put side by side (`words.turn`): of each plane the bytes of its own quads.

Invariant: the numbers are those of the `Packed` that it was made of. Rows and inputs that fill the last block and the
last unit have scale, bias and integers 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numba import types

from partita.brief import Brief
from partita.quantization import Packed, require_affine

from .compiled import inner_kernel, kernel, part_of_types
from .lanes import WIDTH, bits_of, byte_of, floats, fused, load, load_floats, load_quads, splat, store
from .room import new_bytes, new_floats
from .words import load_word, store_word, turn

UNIT = 32
PLANES = {
    1: ((1, 0),),
    2: ((2, 0),),
    3: ((2, 0), (1, 2)),
    4: ((4, 0),),
    5: ((4, 0), (1, 4)),
    6: ((4, 0), (2, 4)),
    8: ((4, 0), (4, 4)),
}
"""Of an integer's bits: the planes, each its bits and the place of its lowest one."""
VECTOR = 4 * WIDTH
"""Bytes of a quad for each output."""
PLANE_BYTES = UNIT * WIDTH
"""Of a plane's unit when each integer has a byte."""
_STAGED = 1 << 18
"""Bytes of rows that are put side by side at once: they stay in the nearest caches."""

Numbers = np.ndarray | tuple[np.ndarray, np.ndarray, int]
"""One number for every group, flat: float32, or the bits of float16 as uint16, or of bfloat16 as int16. Or products of
two: (int8, one for every group; the bits of float16, one for several groups; the bits by which an index of the one is
shifted to the right to count 32 of the other)."""


@dataclass(frozen=True)
class Blocks(Brief):
    """A weight (out, in). planes: (planes, 2), rows of `PLANES`. words: uint8, flat. No biases where each is
    -middle * scale: their type stays, so that one compiled kernel does for both."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    planes: np.ndarray
    words: np.ndarray
    scales: Numbers
    biases: Numbers

    @property
    def units(self) -> int:
        return -(-self.shape[1] // UNIT)

    @property
    def count(self) -> int:
        """Blocks."""
        return -(-self.shape[0] // WIDTH)

    @property
    def nbytes(self) -> int:
        numbers = (
            part for kind in (self.scales, self.biases) for part in (kind if isinstance(kind, tuple) else (kind,))
        )
        return self.words.nbytes + sum(part.nbytes for part in numbers if isinstance(part, np.ndarray))

    @property
    def centred(self) -> bool:
        """Whether there are no biases."""
        return len(self.biases[0] if isinstance(self.biases, tuple) else self.biases) == 0

    @property
    def operands(self) -> tuple[Any, ...]:
        """What kernels take of a weight, in their order."""
        return self.words, self.planes, self.bits, self.scales, self.biases, self.middle, self.group_size

    @property
    def middle(self) -> int:
        """What is subtracted from each integer where there are no biases."""
        return 1 << (self.bits - 1) if self.centred else 0


def fits(packed: Packed[np.ndarray]) -> bool:
    """Whether kernels can read it: any width, groups of 16 or of whole units."""
    return len(packed.shape) == 2 and (packed.group_size == 16 or packed.group_size % UNIT == 0)


def arrange(packed: Packed[np.ndarray]) -> Blocks:
    """The same weight in blocks. UnsupportedModel: another mode than "affine"."""
    require_affine(packed, "the torch backend")
    out, size = packed.shape
    count, units, planes = -(-out // WIDTH), -(-size // UNIT), planes_of(packed.bits)
    words = np.empty(count * units * packed.bits * UNIT * WIDTH // 8, np.uint8)
    stream = np.ascontiguousarray(packed.weight).view(np.uint8)
    for start, staged in stages(count, units * packed.bits * UNIT // 8, words):
        rows = stream[start : start + len(staged)]
        _in_planes(rows, planes, packed.bits, units, staged)
        staged[len(rows) :] = 0
    groups = units * UNIT // packed.group_size
    grid = packed.grid
    scales, biases = (_by_block(part, count, groups) for part in grid)
    middle = np.float32(1 << (packed.bits - 1))
    centred = np.array_equal(grid[1].astype(np.float32), grid[0].astype(np.float32) * -middle)
    return Blocks((out, size), packed.bits, packed.group_size, planes, words, scales, biases[:0] if centred else biases)


def planes_of(bits: int) -> np.ndarray:
    return np.asarray(PLANES[bits], np.int64)


def stages(count: int, row_bytes: int, words: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """For rows of units to be written into, some blocks after the other: where the rows begin, and uint8 (rows, bytes
    of a row). What was written is put into words before the next."""
    step = max(_STAGED // (row_bytes * WIDTH), 1)
    staged = np.empty((min(step, count) * WIDTH, row_bytes), np.uint8)
    for first in range(0, count, step):
        part = staged[: (min(first + step, count) - first) * WIDTH]
        yield first * WIDTH, part
        turn(part, words, first * WIDTH * row_bytes)


def _by_block(part: np.ndarray, count: int, groups: int) -> np.ndarray:
    """(out, groups or fewer) to (blocks, groups, 32), flat, in the bits that kernels know."""
    if part.dtype == ml_dtypes.bfloat16:
        part = part.view(np.int16)
    elif part.dtype == np.float16:
        part = part.view(np.uint16)
    elif part.dtype != np.float32:
        part = part.astype(np.float32)
    whole = np.zeros((count * WIDTH, groups), part.dtype)
    whole[: len(part), : part.shape[1]] = part
    return np.ascontiguousarray(whole.reshape(count, WIDTH, -1).transpose(0, 2, 1)).reshape(-1)


@kernel
def _in_planes(stream, planes, bits, units, staged):  # pragma: no cover
    """Rows of little-endian bit streams, uint8 (out, in * bits / 8), as rows of units."""
    unit_bytes, buffer, q = UNIT * bits // 8, np.zeros(UNIT + 1, np.uint8), np.zeros(UNIT, np.uint8)
    for row in range(stream.shape[0]):
        for u in range(units):
            start, at = u * unit_bytes, (row * units + u) * unit_bytes
            if bits == 4 and start + 16 <= stream.shape[1]:  # by far the most frequent
                place = row * stream.shape[1] + start
                low, high = load_word(stream, place), load_word(stream, place + 8)
                shift = np.uint64(32)
                store_word(staged, at, _apart(low) | (_apart(high) << np.uint64(4)))
                store_word(staged, at + 8, _apart(low >> shift) | (_apart(high >> shift) << np.uint64(4)))
                continue
            for i in range(unit_bytes):
                buffer[i] = stream[row, start + i] if start + i < stream.shape[1] else 0
            for k in range(UNIT):
                place = k * bits
                two = np.int64(buffer[place >> 3]) | (np.int64(buffer[(place >> 3) + 1]) << 8)
                q[k] = (two >> (place & 7)) & ((1 << bits) - 1)
            to = start
            for plane in range(planes.shape[0]):
                width, low_bit = planes[plane, 0], planes[plane, 1]
                size, mask = 4 * width, (1 << width) - 1
                for r in range(size):
                    byte = 0
                    for i in range(8 // width):
                        byte |= ((q[r + size * i] >> low_bit) & mask) << (width * i)
                    staged[row, to + r] = byte
                to += size


@inner_kernel
def _apart(x):  # pragma: no cover
    """The lowest eight integers of four bits as the bytes of a word."""
    x = x & np.uint64(0xFFFFFFFF)
    x = (x | (x << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    x = (x | (x << np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    return (x | (x << np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)


def load_numbers(numbers: Any, at: int) -> Any:
    """Of `Numbers`, the 32 that begin at an index, as floats."""
    raise NotImplementedError  # compiled code calls what follows


@part_of_types(load_numbers)
def _load_numbers_of(numbers, at):
    if isinstance(numbers, types.Array):
        return lambda numbers, at: load_floats(numbers, at)

    def product(numbers, at):
        fine, coarse, shift = numbers
        return floats(load(fine, at)) * load_floats(coarse, (at >> shift) * WIDTH)

    return product


def none(numbers: Any) -> bool:
    """Whether there are none."""
    raise NotImplementedError


@part_of_types(none)
def _none_of(numbers):
    if isinstance(numbers, types.Array):
        return lambda numbers: len(numbers) == 0
    return lambda numbers: len(numbers[0]) == 0


@inner_kernel
def spread(words, at, planes, unpacked):  # pragma: no cover
    """The planes of a unit that begins at `at`, each integer in a byte: unpacked, uint8, PLANE_BYTES a plane, has the 8
    quads of a plane in order, VECTOR bytes each."""
    for plane in range(planes.shape[0]):
        width, start = planes[plane, 0], plane * PLANE_BYTES
        if width == 4:
            for r in range(4):
                x = load_quads(words, at + r * VECTOR)
                for i in range(2):
                    store(unpacked, start + (r + 4 * i) * VECTOR, bits_of(x, 4 * i, 15))
        elif width == 2:
            for r in range(2):
                x = load_quads(words, at + r * VECTOR)
                for i in range(4):
                    store(unpacked, start + (r + 2 * i) * VECTOR, bits_of(x, 2 * i, 3))
        else:
            x = load_quads(words, at)
            for i in range(8):
                store(unpacked, start + i * VECTOR, bits_of(x, i, 1))
        at += width * VECTOR


@inner_kernel
def unit_values(words, at, planes, unpacked, values):  # pragma: no cover
    """The integers of a unit as float32: values has 32 inputs, each of 32 outputs. unpacked: scratch."""
    spread(words, at, planes, unpacked)
    for plane in range(planes.shape[0]):
        weight = splat(np.float32(1 << planes[plane, 1]))
        for r in range(UNIT // 4):
            quads = load_quads(unpacked, plane * PLANE_BYTES + r * VECTOR)
            for p in range(4):
                x = floats(byte_of(quads, p)) * weight
                if plane > 0:
                    x = x + load(values, (4 * r + p) * WIDTH)
                store(values, (4 * r + p) * WIDTH, x)


@inner_kernel
def _weights(q, scale, bias, middle, centred):  # pragma: no cover
    return (q - splat(np.float32(middle))) * scale if centred else fused(q, scale, bias)


@inner_kernel
def unit_weights(words, at, planes, parts, unpacked, values, out, start):  # pragma: no cover
    """The weights of a unit that begins at `at`, as `unit_values` has its integers, to `out` from `start` on. parts:
    (scales, biases, middle, group, where the unit's scales are). unpacked, values: scratch."""
    scales, biases, middle, group, place = parts
    centred = none(biases)
    low = high = load_numbers(scales, place)
    low_bias = high_bias = splat(np.float32(0))
    if not centred:
        low_bias = high_bias = load_numbers(biases, place)
    if group < UNIT:
        high = load_numbers(scales, place + WIDTH)
        if not centred:
            high_bias = load_numbers(biases, place + WIDTH)
    if planes.shape[0] == 1 and planes[0, 0] == 4:  # by far the most frequent
        for r in range(4):
            x = load_quads(words, at + r * VECTOR)
            first, second = bits_of(x, 0, 15), bits_of(x, 4, 15)
            for p in range(4):
                to = start + (4 * r + p) * WIDTH
                store(out, to, _weights(floats(byte_of(first, p)), low, low_bias, middle, centred))
                to += UNIT // 2 * WIDTH
                store(out, to, _weights(floats(byte_of(second, p)), high, high_bias, middle, centred))
        return
    unit_values(words, at, planes, unpacked, values)
    for k in range(UNIT // 2):
        q, to = load(values, k * WIDTH), start + k * WIDTH
        store(out, to, _weights(q, low, low_bias, middle, centred))
        q, to = load(values, (k + UNIT // 2) * WIDTH), to + UNIT // 2 * WIDTH
        store(out, to, _weights(q, high, high_bias, middle, centred))


@kernel
def _dense_blocks(words, planes, bits, scales, biases, middle, group, first, out):  # pragma: no cover
    """Blocks from `first` on as float32: out (rows, in)."""
    rows, size = out.shape
    units, unit_bytes = -(-size // UNIT), bits * UNIT * WIDTH // 8
    groups = units * UNIT // group
    unpacked, values, tile = new_bytes(2 * PLANE_BYTES), new_floats(UNIT * WIDTH), new_floats(UNIT * WIDTH)
    for n in range(-(-rows // WIDTH)):
        for u in range(units):
            place = ((first + n) * groups + u * UNIT // group) * WIDTH
            parts = scales, biases, middle, group, place
            unit_weights(words, ((first + n) * units + u) * unit_bytes, planes, parts, unpacked, values, tile, 0)
            for j in range(min(WIDTH, rows - n * WIDTH)):
                for k in range(min(UNIT, size - u * UNIT)):
                    out[n * WIDTH + j, u * UNIT + k] = tile[k * WIDTH + j]


def dense(blocks: Blocks, first: int, stop: int) -> np.ndarray:
    """Rows of some blocks, `first` to `stop`, as float32 (rows, in)."""
    stop = min(stop, blocks.count)
    out = np.empty((min(stop * WIDTH, blocks.shape[0]) - first * WIDTH, blocks.shape[1]), np.float32)
    _dense_blocks(*blocks.operands, first, out)
    return out


def rows(blocks: Blocks, index: np.ndarray, out: np.ndarray) -> None:
    """Chosen rows as float32, into out (n, in)."""
    made: dict[int, np.ndarray] = {}
    for place, row in enumerate(index.tolist()):
        block = row // WIDTH
        if block not in made:
            made = {block: dense(blocks, block, block + 1)}
        out[place] = made[block][row % WIDTH]
