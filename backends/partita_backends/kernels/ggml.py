"""Blocks of GGUF files to the layout that kernels read, in one pass: no stream of integers lies in between.

What a type's bytes mean is said where the runtime reads them (`partita/checkpoint/gguf/blocks.py`). In Q4_0 and its
kin byte i of 16 holds integers i and i + 16 of 32, and that is how a row of units wants its plane of 4 bits; the others
are moved eight bytes at a time. Scales stay what the file has: a float16 a group, or small integers and one float16 for
each 256.

Invariant: the numbers are those of the file, exactly: a float16 times an integer of 8 bits fits in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from partita.quantization import Stored

from .blocks import UNIT, Blocks, planes_of, stages
from .compiled import inner_kernel, kernel
from .lanes import WIDTH
from .words import load_word, store_word

_FOURS, _TWOS, _ONES = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0303030303030303), np.uint64(0x0101010101010101)
_SIGNS, _HALF = np.uint64(0x8080808080808080), np.uint64(0xFFFFFFFF)
_FOUR = np.uint64(4)
_EXPONENT = np.uint16(0x7C00)
_LARGE = 256
"""Values of a block of which each group has a small integer, and all of them a float16, as scale."""


@dataclass(frozen=True)
class _Type:
    """group: integers of a scale. minima: whether each group has a bias. fill(raw, rows, staged, numbers, first): so
    many rows of the file, flat uint8, into rows of units, flat, and `_numbers`, which begin at row `first`; whether all
    is finite."""

    bits: int
    group: int
    minima: bool
    large: bool
    fill: Callable[..., bool]


@inner_kernel
def _half(raw, at):  # pragma: no cover
    """The bits of a float16."""
    return np.uint16(raw[at]) | (np.uint16(raw[at + 1]) << np.uint16(8))


@inner_kernel
def _put_half(raw, at, negative, numbers, row, count, i):  # pragma: no cover
    """A float16 as number i of a row's `count`; whether it is finite."""
    bits = _half(raw, at)
    numbers[((row // WIDTH) * count + i) * WIDTH + row % WIDTH] = bits ^ np.uint16(negative << 15)
    return (bits & _EXPONENT) != _EXPONENT


@inner_kernel
def _put_small(value, numbers, row, count, i):  # pragma: no cover
    numbers[((row // WIDTH) * count + i) * WIDTH + row % WIDTH] = np.int8(value)


@inner_kernel
def _nibbles(raw, at, shift, staged, to):  # pragma: no cover
    """32 integers of 4 bits, one in each byte from bit `shift` on, 0 or 4, as 16 bytes of a plane."""
    for k in range(0, 16, 8):
        a, b = (load_word(raw, at + k) >> shift) & _FOURS, (load_word(raw, at + k + 16) >> shift) & _FOURS
        store_word(staged, to + k, a | (b << _FOUR))


@inner_kernel
def _twos_of(raw, at, shift, staged, to):  # pragma: no cover
    """32 integers of 2 bits, one in each byte from bit `shift` on, as 8 bytes of a plane."""
    found = np.uint64(0)
    for k in range(4):
        found |= ((load_word(raw, at + 8 * k) >> shift) & _TWOS) << np.uint64(2 * k)
    store_word(staged, to, found)


@inner_kernel
def _ones(raw, at, shift, staged, to):  # pragma: no cover
    """32 integers of 1 bit, bit `shift` of each byte, as 4 bytes of a plane."""
    found = np.uint64(0)
    for k in range(4):
        found |= ((load_word(raw, at + 8 * k) >> shift) & _ONES) << np.uint64(2 * k)
    store_word(staged, to, np.uint32((found & _HALF) | ((found >> np.uint64(32)) << np.uint64(1))))


@inner_kernel
def _every_fourth(raw, at, staged, to):  # pragma: no cover
    """32 integers of 1 bit, one after the other, as 4 bytes of a plane: the first has bits 0, 4, 8 …"""
    bits = np.uint64(0)
    for k in range(4):
        bits |= np.uint64(raw[at + k]) << np.uint64(8 * k)
    for i in range(4):
        x = (bits >> np.uint64(i)) & np.uint64(0x11111111)
        x = (x | (x >> np.uint64(3))) & np.uint64(0x03030303)
        x = (x | (x >> np.uint64(6))) & np.uint64(0x000F000F)
        staged[to + i] = np.uint8((x | (x >> np.uint64(12))) & np.uint64(0xFF))


@kernel
def _small_blocks(raw, rows, staged, numbers, first, bits, minima):  # pragma: no cover
    """Q4_0, Q4_1, Q5_0, Q5_1, Q8_0."""
    _, scales, _, biases = numbers
    size = 2 + 2 * minima + 4 * bits
    units, finite = len(raw) // rows // size, True
    for row in range(rows):
        for u in range(units):
            at, to = (row * units + u) * size, (row * units + u) * 4 * bits
            finite &= _put_half(raw, at, 0, scales, first + row, units, u)
            if minima:
                finite &= _put_half(raw, at + 2, 0, biases, first + row, units, u)
            at += 2 + 2 * minima
            if bits == 8:  # signed integers: without signs they are 128 more
                for k in range(0, 16, 8):
                    a, b = load_word(raw, at + k) ^ _SIGNS, load_word(raw, at + k + 16) ^ _SIGNS
                    store_word(staged, to + k, (a & _FOURS) | ((b & _FOURS) << _FOUR))
                    store_word(staged, to + k + 16, ((a >> _FOUR) & _FOURS) | (b & ~_FOURS))
                continue
            if bits == 5:
                _every_fourth(raw, at, staged, to + 16)
                at += 4
            for k in range(0, 16, 8):
                store_word(staged, to + k, load_word(raw, at + k))
    return finite


@kernel
def _k_blocks(raw, rows, staged, numbers, first, bits):  # pragma: no cover
    """Q4_K and Q5_K."""
    small, scales, small_biases, biases = numbers
    size, unit = (176, 20) if bits == 5 else (144, 16)
    count, finite = len(raw) // rows // size, True
    for row in range(rows):
        for n in range(count):
            at, to = (row * count + n) * size, (row * count + n) * 8 * unit
            finite &= _put_half(raw, at, 0, scales, first + row, count, n)
            finite &= _put_half(raw, at + 2, 1, biases, first + row, count, n)
            for g in range(8):
                s = at + 4 + g
                if g < 4:
                    scale, minimum = raw[s] & 63, raw[s + 4] & 63
                else:
                    scale = (raw[s + 4] & 15) | ((raw[s - 4] >> 6) << 4)
                    minimum = (raw[s + 4] >> 4) | ((raw[s] >> 6) << 4)
                _put_small(scale, small, first + row, 8 * count, 8 * n + g)
                _put_small(minimum, small_biases, first + row, 8 * count, 8 * n + g)
                body = at + size - 128 + 32 * (g // 2)
                _nibbles(raw, body, np.uint64(4 * (g % 2)), staged, to + g * unit)
                if bits == 5:
                    _ones(raw, at + 16, np.uint64(g), staged, to + g * unit + 16)
    return finite


@kernel
def _sixes(raw, rows, staged, numbers, first):  # pragma: no cover
    """Q6_K."""
    small, scales, _, _ = numbers
    count, finite = len(raw) // rows // 210, True
    for row in range(rows):
        for n in range(count):
            at, to = (row * count + n) * 210, (row * count + n) * 8 * 24
            finite &= _put_half(raw, at + 208, 0, scales, first + row, count, n)
            for g in range(16):
                _put_small(raw[at + 192 + g], small, first + row, 16 * count, 16 * n + g)
            for u in range(8):
                half, i = u // 4, u % 4
                _nibbles(raw, at + 64 * half + 32 * (i % 2), np.uint64(4 * (i // 2)), staged, to + 24 * u)
                _twos_of(raw, at + 128 + 32 * half, np.uint64(2 * i), staged, to + 24 * u + 16)
    return finite


@kernel
def _twos(raw, rows, staged, numbers, first):  # pragma: no cover
    """Q2_K."""
    small, scales, small_biases, biases = numbers
    count, finite = len(raw) // rows // 84, True
    for row in range(rows):
        for n in range(count):
            at, to = (row * count + n) * 84, (row * count + n) * 8 * 8
            finite &= _put_half(raw, at + 80, 0, scales, first + row, count, n)
            finite &= _put_half(raw, at + 82, 1, biases, first + row, count, n)
            for g in range(16):
                _put_small(raw[at + g] & 15, small, first + row, 16 * count, 16 * n + g)
                _put_small(raw[at + g] >> 4, small_biases, first + row, 16 * count, 16 * n + g)
            for u in range(8):
                _twos_of(raw, at + 16 + 32 * (u // 4), np.uint64(2 * (u % 4)), staged, to + 8 * u)
    return finite


@kernel
def _threes(raw, rows, staged, numbers, first):  # pragma: no cover
    """Q3_K."""
    small, scales, _, _ = numbers
    count, finite = len(raw) // rows // 110, True
    for row in range(rows):
        for n in range(count):
            at, to = (row * count + n) * 110, (row * count + n) * 8 * 12
            finite &= _put_half(raw, at + 108, 0, scales, first + row, count, n)
            for g in range(16):
                low = (raw[at + 96 + g % 8] >> (4 * (g // 8))) & 15
                high = (raw[at + 104 + g % 4] >> (2 * (g // 4))) & 3
                _put_small((low | (high << 4)) - 32, small, first + row, 16 * count, 16 * n + g)
            for u in range(8):
                _twos_of(raw, at + 32 + 32 * (u // 4), np.uint64(2 * (u % 4)), staged, to + 12 * u)
                _ones(raw, at, np.uint64(u), staged, to + 12 * u + 8)
    return finite


def _small(bits: int, minima: bool) -> _Type:
    return _Type(bits, UNIT, minima, False, lambda *rows: _small_blocks(*rows, bits, minima))


_TYPES = {
    "Q4_0": _small(4, False),
    "Q4_1": _small(4, True),
    "Q5_0": _small(5, False),
    "Q5_1": _small(5, True),
    "Q8_0": _small(8, False),
    "Q4_K": _Type(4, UNIT, True, True, lambda *rows: _k_blocks(*rows, 4)),
    "Q5_K": _Type(5, UNIT, True, True, lambda *rows: _k_blocks(*rows, 5)),
    "Q6_K": _Type(6, 16, False, True, _sixes),
    "Q2_K": _Type(2, 16, True, True, _twos),
    "Q3_K": _Type(3, 16, False, True, _threes),
}


def fits(weight: Stored) -> bool:
    """Whether blocks of its type are known here."""
    return weight.type in _TYPES


def arrange(weight: Stored) -> Blocks:
    """The weight in blocks. CheckpointError: a scale is not finite."""
    kind, (out, size) = _TYPES[weight.type], weight.shape
    count, units, row_bytes = -(-out // WIDTH), size // UNIT, size * kind.bits // 8
    words = np.empty(count * WIDTH * row_bytes, np.uint8)
    numbers = tuple(np.zeros(length, dtype) for length, dtype in _lengths(kind, count, size))
    finite = True
    for start, staged in stages(count, row_bytes, words):
        rows = weight.rows(start, start + len(staged))
        finite &= kind.fill(rows.reshape(-1), len(rows), staged.reshape(-1), numbers, start)
        staged[len(rows) :] = 0
    if not finite:
        weight.repacked(1)  # which says what is damaged
        raise AssertionError("two readers of GGUF's blocks differ in what is finite")
    scales, biases = (_pair(kind, *numbers[i : i + 2]) for i in (0, 2))
    return Blocks((out, units * UNIT), kind.bits, kind.group, planes_of(kind.bits), words, scales, biases)


def _lengths(kind: _Type, count: int, size: int) -> Iterator[tuple[int, type]]:
    """Of small scales, scales, small biases and biases: how many, and their type."""
    for there in (True, kind.minima):
        yield there * kind.large * count * size // kind.group * WIDTH, np.int8
        yield there * count * (size // (_LARGE if kind.large else kind.group)) * WIDTH, np.uint16


def _pair(kind: _Type, small: np.ndarray, large: np.ndarray) -> Any:
    """`blocks.Numbers`."""
    return (small, large, (WIDTH * _LARGE // kind.group).bit_length() - 1) if kind.large else large
