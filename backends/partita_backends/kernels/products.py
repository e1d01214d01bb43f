"""Rows times a weight in blocks, without ever making the weight dense.

Two ways. In integers: a row is rounded to 8 bits, by the largest of every 16 inputs (`rounded`); sums of a unit's
products are exact, and scales follow in float32. In float32: as if the weight were dense. In both a unit is unpacked
once for several rows, and every row is computed by itself, in the same order of additions, whatever the number of rows.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from .blocks import PLANE_BYTES, PLANES, UNIT, VECTOR, Blocks, Numbers, load_numbers, unit_values
from .compiled import Call, inlined, kernel, parallel_kernel, threaded
from .dots import dot, no_sums, summed
from .lanes import (
    WIDTH,
    bits_of,
    floats,
    fused,
    load,
    load_quads,
    prefetch,
    splat,
    store,
)
from .rounding import float_of, largest_bits, nearest, store_bytes
from .sums import load_shorter, no_floats

HALF = 16
"""Inputs of a row that are rounded by the largest of them: half a unit. By the largest of 32 the divergence from exact
products is twice as large (docs/experiments.md)."""


@kernel
def rounded(x):  # pragma: no cover
    """Rows in 8 bits: integers int8 (rows, units * 32) from -127 to 127; for each 16 of them what one is worth, and the
    sum of the integers times that, float32 (rows, units * 2). Where a number is not finite, one is worth NaN."""
    size = x.shape[1]
    padded = (size + UNIT - 1) // UNIT * UNIT
    integers = np.empty((x.shape[0], padded), np.int8)
    shape = x.shape[0], padded // HALF
    scales, sums = np.empty(shape, np.float32), np.empty(shape, np.float32)
    last = np.zeros(HALF, np.float32)
    for t in range(x.shape[0]):
        for g in range(padded // HALF):
            if g * HALF + HALF <= size:
                numbers = load_shorter(x, t * size + g * HALF)
            else:  # the rest of the row, if there is any
                for k in range(HALF):
                    last[k] = x[t, g * HALF + k] if g * HALF + k < size else np.float32(0)
                numbers = load_shorter(last, 0)
            scale = float_of(largest_bits(numbers)) / np.float32(127)
            if not scale < np.float32(np.inf):
                scale = np.float32(np.nan)
            per = np.float32(1) / scale if scale > np.float32(1e-37) else np.float32(0)
            if scale != scale:
                numbers = no_floats()
            count = store_bytes(integers, t * padded + g * HALF, nearest(numbers, per))
            scales[t, g] = scale
            sums[t, g] = scale * np.float32(count)
    return integers, scales, sums


@functools.cache
def _integer_kernels(bits: int, wide: bool) -> tuple[Any, Any]:
    """For weights of so many bits, in groups of whole units or of halves; on one thread, and on several."""
    (width, _), (second, second_bit) = (*PLANES[bits], (0, 0))[:2]
    factor = 1 << second_bit

    @kernel
    def one(x, words, scales, biases, times, group, y, count):  # pragma: no cover
        row = rounded(x)
        weight = words, scales, biases, times, group
        _integer_blocks(row, weight, width, second, factor, wide, y, 0, count)

    @parallel_kernel
    def several(x, words, scales, biases, times, group, y, bounds):  # pragma: no cover
        row = rounded(x)
        for part in numba.prange(len(bounds) - 1):
            weight = words, scales, biases, times, group  # here: no tuple of tuples goes to another thread
            _integer_blocks(row, weight, width, second, factor, wide, y, bounds[part], bounds[part + 1])

    return one, several


@inlined
def _integer_blocks(row, weight, width, second, factor, wide, y, first, stop):  # pragma: no cover
    rows = len(row[1])
    for n in range(first, stop):
        for t in range(0, rows - 1, 2):
            a, b = _two_rows(row, weight, width, second, factor, wide, t, n)
            _put(a, y, t, n)
            _put(b, y, t + 1, n)
        if rows % 2 == 1:
            _put(_one_row(row, weight, width, second, factor, wide, rows - 1, n), y, rows - 1, n)


@inlined
def _one_row(row, weight, width, second, factor, wide, t, n):  # pragma: no cover
    """Block n of the product with row t. width, second: bits of the weight's planes; the second's integers times
    factor."""
    q, words = row[0], weight[0]
    units, unit_bytes = q.shape[1] // UNIT, (width + second) * VECTOR
    acc = splat(np.float32(0))
    for u in range(units):
        place, inputs = (n * units + u) * unit_bytes, (t * units + u) * UNIT
        lower = _one_half(words, place, width, 0, q, inputs)
        upper = _one_half(words, place, width, 1, q, inputs + HALF)
        if second > 0:
            place += width * VECTOR
            lower = lower + _one_half(words, place, second, 0, q, inputs) * splat(np.int32(factor))
            upper = upper + _one_half(words, place, second, 1, q, inputs + HALF) * splat(np.int32(factor))
        acc = _scaled(acc, lower, upper, row, weight, wide, t, u, n)
    return acc


@inlined
def _one_half(words, at, width, half, q, inputs):  # pragma: no cover
    """Sums of 16 inputs of a plane that begins at `at`, the unit's first or second, with a row's integers."""
    a = no_sums()
    for r in range(4):
        a = dot(a, _quads(words, at, width, half, r), q, inputs + 4 * r)
    return summed(a)


@inlined
def _quads(words, at, width, half, r):  # pragma: no cover
    """Quad r of 4 of a plane's half."""
    if width == 4:
        return bits_of(load_quads(words, at + r * VECTOR), 4 * half, 15)
    if width == 2:
        return bits_of(load_quads(words, at + (r % 2) * VECTOR), 4 * half + r // 2 * 2, 3)
    return bits_of(load_quads(words, at), 4 * half + r, 1)


@inlined
def _two_rows(row, weight, width, second, factor, wide, t, n):  # pragma: no cover
    """The same with rows t and t + 1: what is read of the weight is used twice."""
    q, words = row[0], weight[0]
    units, unit_bytes = q.shape[1] // UNIT, (width + second) * VECTOR
    acc, acc_ = splat(np.float32(0)), splat(np.float32(0))
    for u in range(units):
        place, inputs = (n * units + u) * unit_bytes, (t * units + u) * UNIT
        ahead = place + units * unit_bytes + (t // 2 % 4) * unit_bytes // 4  # of the next block, which is not near yet
        for i in range(0, unit_bytes // 4, 64):
            prefetch(words, ahead + i)
        lower, lower_ = _two_halves(words, place, width, 0, q, inputs)
        upper, upper_ = _two_halves(words, place, width, 1, q, inputs + HALF)
        if second > 0:
            place, times = place + width * VECTOR, splat(np.int32(factor))
            a, b = _two_halves(words, place, second, 0, q, inputs)
            lower, lower_ = lower + a * times, lower_ + b * times
            a, b = _two_halves(words, place, second, 1, q, inputs + HALF)
            upper, upper_ = upper + a * times, upper_ + b * times
        acc = _scaled(acc, lower, upper, row, weight, wide, t, u, n)
        acc_ = _scaled(acc_, lower_, upper_, row, weight, wide, t + 1, u, n)
    return acc, acc_


@inlined
def _two_halves(words, at, width, half, q, inputs):  # pragma: no cover
    """As `_one_half`, of two rows."""
    a, b, size = no_sums(), no_sums(), q.shape[1]
    for r in range(4):
        x = _quads(words, at, width, half, r)
        a, b = dot(a, x, q, inputs + 4 * r), dot(b, x, q, inputs + 4 * r + size)
    return summed(a), summed(b)


@inlined
def _scaled(so_far, lower, upper, row, weight, wide, t, u, n):  # pragma: no cover
    """so_far and what unit u of row t adds to block n, of its integer sums."""
    q, scale, sums = row
    _, scales, biases, times, group = weight
    at = (n * (q.shape[1] // group) + (u * UNIT) // group) * WIDTH
    first, second = floats(lower) * splat(scale[t, 2 * u]), floats(upper) * splat(scale[t, 2 * u + 1])
    if wide:
        total = sums[t, 2 * u] + sums[t, 2 * u + 1]
        return _joined(so_far, first + second, total, scales, biases, times, at)
    so_far = _joined(so_far, first, sums[t, 2 * u], scales, biases, times, at)
    return _joined(so_far, second, sums[t, 2 * u + 1], scales, biases, times, at + WIDTH)


@inlined
def _joined(so_far, product, total, scales, biases, times, at):  # pragma: no cover
    """so_far + scale * product + bias * times * total, of the group at `at`."""
    return fused(load_numbers(biases, at), splat(times * total), fused(load_numbers(scales, at), product, so_far))


@kernel
def _float_blocks(x, sums, words, planes, bits, scales, biases, times, group, y, first, stop):  # pragma: no cover
    count, units = x.shape[0], x.shape[1] // UNIT
    unit_bytes, groups = bits * UNIT * WIDTH // 8, x.shape[1] // group
    unpacked, acc = np.empty(2 * PLANE_BYTES, np.uint8), np.empty((count, WIDTH), np.float32)
    values = np.empty(UNIT * WIDTH, np.float32)
    step = min(group, UNIT)
    for n in range(first, stop):
        for u in range(units):
            unit_values(words, (n * units + u) * unit_bytes, planes, unpacked, values)
            for t in range(count):
                so_far = splat(np.float32(0))
                if u > 0:
                    so_far = load(acc, t * WIDTH)
                for start in range(0, UNIT, step):
                    a, b = splat(np.float32(0)), splat(np.float32(0))
                    for k in range(start, start + step, 2):
                        a = fused(load(values, k * WIDTH), splat(x[t, u * UNIT + k]), a)
                        b = fused(load(values, (k + 1) * WIDTH), splat(x[t, u * UNIT + k + 1]), b)
                    at = (n * groups + (u * UNIT + start) // group) * WIDTH
                    total = sums[t, (u * UNIT + start) // step]
                    so_far = _joined(so_far, a + b, total, scales, biases, times, at)
                store(acc, t * WIDTH, so_far)
        for t in range(count):
            _put(load(acc, t * WIDTH), y, t, n)


@kernel
def _sums(x, units, step):  # pragma: no cover
    """Of every `step` inputs; rows filled up with zeros to whole units, and their sums."""
    size = x.shape[1]
    whole = x
    if size < units * UNIT:
        whole = np.zeros((x.shape[0], units * UNIT), np.float32)
        whole[:, :size] = x
    sums = np.empty((x.shape[0], units * UNIT // step), np.float32)
    for t in range(x.shape[0]):
        for g in range(sums.shape[1]):
            total = np.float32(0)
            for k in range(g * step, g * step + step):
                total += whole[t, k]
            sums[t, g] = total
    return whole, sums


@inlined
def _put(acc, y, t, n):  # pragma: no cover
    """Block n of row t into y (rows, out), whose last block may be cut short."""
    out = y.shape[1]
    if (n + 1) * WIDTH <= out:
        store(y, t * out + n * WIDTH, acc)
    else:
        last = np.empty(WIDTH, np.float32)
        store(last, 0, acc)
        for j in range(out - n * WIDTH):  # a slice compiles for a second
            y[t, n * WIDTH + j] = last[j]


@kernel
def _float(x, words, planes, bits, scales, biases, times, group, y, count):  # pragma: no cover
    units = (x.shape[1] + UNIT - 1) // UNIT
    whole, sums = _sums(x, units, min(group, UNIT))
    _float_blocks(whole, sums, words, planes, bits, scales, biases, times, group, y, 0, count)


@parallel_kernel
def _float_parallel(x, words, planes, bits, scales, biases, times, group, y, bounds):  # pragma: no cover
    units = (x.shape[1] + UNIT - 1) // UNIT
    whole, sums = _sums(x, units, min(group, UNIT))
    for part in numba.prange(len(bounds) - 1):
        _float_blocks(whole, sums, words, planes, bits, scales, biases, times, group, y, bounds[part], bounds[part + 1])


def integer_product(x: np.ndarray, blocks: Blocks, y: np.ndarray, threads: int = 1) -> Call:
    """The call for x (rows, in), float32, rounded to 8 bits, times the weight (out, in), transposed, into float32 y
    (rows, out)."""
    one, several = _integer_kernels(blocks.bits, blocks.group_size >= UNIT)
    weight = blocks.words, *_grid(blocks)
    if threads == 1:
        return one, (x, *weight, y, blocks.count)
    return threaded, (threads, several, x, *weight, y, _bounds(blocks, threads))


def float_product(x: np.ndarray, blocks: Blocks, y: np.ndarray, threads: int = 1) -> Call:
    """The same in float32, nothing rounded."""
    weight = blocks.words, blocks.planes, blocks.bits, *_grid(blocks)
    if threads == 1:
        return _float, (x, *weight, y, blocks.count)
    return threaded, (threads, _float_parallel, x, *weight, y, _bounds(blocks, threads))


def _grid(blocks: Blocks) -> tuple[Numbers, Numbers, np.float32, int]:
    """Scales, and numbers that times a factor are the biases, without a branch where there are none; the group size."""
    if blocks.centred:
        return blocks.scales, blocks.scales, np.float32(-blocks.middle), blocks.group_size
    return blocks.scales, blocks.biases, np.float32(1), blocks.group_size


def _bounds(blocks: Blocks, threads: int) -> np.ndarray:
    """Where each thread's blocks begin, and where the last one's end."""
    return np.linspace(0, blocks.count, threads + 1).astype(np.int64)
