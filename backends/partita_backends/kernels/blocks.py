"""Packed weights in the layout that kernels read: blocks of 32 outputs, whose integers lie side by side.

An integer is a sum of planes of 4, 2 or 1 bits (`PLANES`): 6 bits are a plane of 4 and one of 2, times 16. A unit is 32
inputs of a block, as 8 quads of neighbours; a vector of a plane is 128 bytes, a quad for each output. A byte holds the
integers of several quads: of 4 bits, quads r and r + 4; of 2 bits, quads r, r + 2, r + 4, r + 6; of 1 bit, all 8; the
first in the lowest bits. Scales are (blocks, groups, 32), in the type that they came in.

Invariant: the numbers are those of the `Packed` that it was made of. Rows and inputs that fill the last block and the
last unit have scale, bias and integers 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from partita.brief import Brief
from partita.quantization import Packed, require_affine

from .compiled import kernel
from .lanes import WIDTH, bits_of, byte_of, floats, fused, load, load_floats, load_quads, splat, store

UNIT = 32
PLANES = {
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


@dataclass(frozen=True)
class Blocks(Brief):
    """A weight (out, in). planes: (planes, 2), rows of `PLANES`. words: uint8, flat. scales, biases: flat; float32, or
    the bits of float16 as uint16, or of bfloat16 as int16. No biases where each is -middle * scale: their type
    stays, so that one compiled kernel does for both."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    planes: np.ndarray
    words: np.ndarray
    scales: np.ndarray
    biases: np.ndarray

    @property
    def units(self) -> int:
        return -(-self.shape[1] // UNIT)

    @property
    def count(self) -> int:
        """Blocks."""
        return -(-self.shape[0] // WIDTH)

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.scales.nbytes + self.biases.nbytes

    @property
    def operands(self) -> tuple[Any, ...]:
        """What kernels take of a weight, in their order."""
        return self.words, self.planes, self.bits, self.scales, self.biases, self.middle, self.group_size

    @property
    def middle(self) -> int:
        """What is subtracted from each integer where there are no biases."""
        return 0 if len(self.biases) else 1 << (self.bits - 1)


def fits(packed: Packed[np.ndarray]) -> bool:
    """Whether kernels can read it: any width, groups of 16 or of whole units."""
    return len(packed.shape) == 2 and (packed.group_size == 16 or packed.group_size % UNIT == 0)


def arrange(packed: Packed[np.ndarray]) -> Blocks:
    """The same weight in blocks. UnsupportedModel: another mode than "affine"."""
    require_affine(packed, "the torch backend")
    out, size = packed.shape
    count, units, planes = -(-out // WIDTH), -(-size // UNIT), np.asarray(PLANES[packed.bits], np.int64)
    words = np.zeros(count * units * packed.bits * UNIT * WIDTH // 8, np.uint8)
    _interleave(np.ascontiguousarray(packed.weight).view(np.uint8), planes, packed.bits, units, words)
    groups = units * UNIT // packed.group_size
    grid = packed.grid
    scales, biases = (_by_block(part, count, groups) for part in grid)
    middle = np.float32(1 << (packed.bits - 1))
    centred = np.array_equal(grid[1].astype(np.float32), grid[0].astype(np.float32) * -middle)
    return Blocks((out, size), packed.bits, packed.group_size, planes, words, scales, biases[:0] if centred else biases)


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
def _interleave(stream, planes, bits, units, words):  # pragma: no cover
    """Rows of little-endian bit streams, uint8 (out, in * bits / 8), into blocks."""
    unit_bytes, buffer, q = UNIT * bits // 8, np.zeros(UNIT + 1, np.uint8), np.zeros(UNIT, np.uint8)
    for row in range(stream.shape[0]):
        for u in range(units):
            at, column = ((row // WIDTH) * units + u) * unit_bytes * WIDTH, 4 * (row % WIDTH)
            for i in range(unit_bytes):
                place = u * unit_bytes + i
                buffer[i] = stream[row, place] if place < stream.shape[1] else 0
            if bits == 4:  # by far the most frequent
                for r in range(4):
                    for i in range(2):
                        low, high = buffer[2 * r + i], buffer[2 * r + i + 8]
                        words[at + r * VECTOR + column + 2 * i] = (low & 15) | (high << 4)
                        words[at + r * VECTOR + column + 2 * i + 1] = (low >> 4) | (high & 240)
                continue
            for k in range(UNIT):
                place = k * bits
                two = np.int64(buffer[place >> 3]) | (np.int64(buffer[(place >> 3) + 1]) << 8)
                q[k] = (two >> (place & 7)) & ((1 << bits) - 1)
            for plane in range(planes.shape[0]):
                width, low_bit = planes[plane, 0], planes[plane, 1]
                mask = (1 << width) - 1
                for r in range(width):
                    for p in range(4):
                        byte = 0
                        for i in range(8 // width):
                            byte |= ((q[4 * (r + width * i) + p] >> low_bit) & mask) << (width * i)
                        words[at + r * VECTOR + column + p] = byte
                at += width * VECTOR


@kernel
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


@kernel
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


@kernel
def _weights(q, scale, bias, middle, centred):  # pragma: no cover
    return (q - splat(np.float32(middle))) * scale if centred else fused(q, scale, bias)


@kernel
def unit_weights(words, at, planes, parts, unpacked, values, out, start):  # pragma: no cover
    """The weights of a unit that begins at `at`, as `unit_values` has its integers, to `out` from `start` on. parts:
    (scales, biases, middle, group, where the unit's scales are). unpacked, values: scratch."""
    scales, biases, middle, group, place = parts
    centred = len(biases) == 0
    low = high = load_floats(scales, place)
    low_bias = high_bias = splat(np.float32(0))
    if not centred:
        low_bias = high_bias = load_floats(biases, place)
    if group < UNIT:
        high = load_floats(scales, place + WIDTH)
        if not centred:
            high_bias = load_floats(biases, place + WIDTH)
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
    unpacked, values = np.empty(2 * PLANE_BYTES, np.uint8), np.empty(UNIT * WIDTH, np.float32)
    tile = np.empty(UNIT * WIDTH, np.float32)
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
