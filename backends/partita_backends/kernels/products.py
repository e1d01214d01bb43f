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
from .compiled import Call, inlined, inner_kernel, kernel, parallel_kernel, threaded
from .dots import dot, holds_bytes, no_sums, summed
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
from .room import new_bytes, new_float_rows, new_floats, new_int_rows, new_signed_rows
from .rounding import float_of, largest_bits, nearest, store_bytes
from .sums import load_shorter, no_floats

HALF = 16
"""Inputs of a row that are rounded by the largest of them: half a unit. By the largest of 32 the divergence from exact
products is twice as large (docs/experiments.md)."""


@kernel
def rounded(x):  # pragma: no cover
    """Rows in 8 bits: integers int8 (rows, units * 32) from -127 to 127; for each 16 of them what one is worth, the sum
    of the integers times that, float32 (rows, units * 2), and the sum, int32. Where a number is not finite, one is
    worth NaN."""
    size = x.shape[1]
    padded = (size + UNIT - 1) // UNIT * UNIT
    integers, last, groups = new_signed_rows(x.shape[0], padded), new_floats(HALF), padded // HALF
    scales, sums = new_float_rows(x.shape[0], groups), new_float_rows(x.shape[0], groups)
    counts = new_int_rows(x.shape[0], groups)
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
            sums[t, g], counts[t, g] = scale * np.float32(count), count
    return integers, scales, sums, counts


@functools.cache
def _integer_kernels(bits: int, wide: bool, centred: bool) -> tuple[Any, Any]:
    """For weights of so many bits, in groups of whole units or of halves, with or without biases; on one thread, and on
    several."""
    (width, _), (second, low_bit) = (*PLANES[bits], (0, 0))[:2]
    planes = width, second, low_bit, 1 if holds_bytes() else 1 << low_bit
    grid = wide, centred

    @kernel
    def one(x, words, scales, biases, middle, group, y, count):  # pragma: no cover
        row = rounded(x)
        weight = words, scales, biases, middle, group
        _integer_blocks(row, weight, planes, grid, y, 0, count)

    @parallel_kernel
    def several(x, words, scales, biases, middle, group, y, bounds):  # pragma: no cover
        row = rounded(x)
        for part in numba.prange(len(bounds) - 1):
            weight = words, scales, biases, middle, group  # here: no tuple of tuples goes to another thread
            _integer_blocks(row, weight, planes, grid, y, bounds[part], bounds[part + 1])

    return one, several


@inlined
def _integer_blocks(row, weight, planes, grid, y, first, stop):  # pragma: no cover
    """planes: the bits of the first; of the second, which may be 0, with the place of its lowest bit; and what sums of
    the second are multiplied by, or 1 where both planes are one byte before they are multiplied. grid: whether groups
    are whole units, and whether there are no biases."""
    rows = len(row[1])
    for n in range(first, stop):
        for t in range(0, rows - 1, 2):
            a, b = _two_rows(row, weight, planes, grid, t, n)
            _put(a, y, t, n)
            _put(b, y, t + 1, n)
        if rows % 2 == 1:
            _put(_one_row(row, weight, planes, grid, rows - 1, n), y, rows - 1, n)


@inlined
def _one_row(row, weight, planes, grid, t, n):  # pragma: no cover
    """Block n of the product with row t."""
    q, words = row[0], weight[0]
    width, second, _, factor = planes
    units, unit_bytes = q.shape[1] // UNIT, (width + second) * VECTOR
    acc = splat(np.float32(0))
    group, left = _first_group(row, weight, n)
    for u in range(units):
        place, inputs = (n * units + u) * unit_bytes, (t * units + u) * UNIT
        if len(row[1]) == 1:
            _ask(words, place + units * unit_bytes, unit_bytes, 0, 4)
        lower = _one_half(words, place, planes, 0, q, inputs)
        upper = _one_half(words, place, planes, 1, q, inputs + HALF)
        if factor > 1:
            place, rest = place + width * VECTOR, (second, 0, 0, 1)
            lower = lower + _one_half(words, place, rest, 0, q, inputs) * splat(np.int32(factor))
            upper = upper + _one_half(words, place, rest, 1, q, inputs + HALF) * splat(np.int32(factor))
        acc = _scaled(acc, lower, upper, row, weight, grid, t, u, group)
        group, left = _next_group(weight, grid, group, left)
    return acc


@inlined
def _one_half(words, at, planes, half, q, inputs):  # pragma: no cover
    """Sums of 16 inputs of a unit that begins at `at`, its first or second, with a row's integers."""
    a = no_sums()
    for r in range(4):
        a = dot(a, _quads(words, at, planes, half, r), q, inputs + 4 * r)
    return summed(a)


@inlined
def _quads(words, at, planes, half, r):  # pragma: no cover
    """Quad r of 4 of a unit's half; of the first plane where the second has sums of its own."""
    width, second, low_bit, factor = planes
    x = _of_plane(words, at, width, half, r, 0)
    if second > 0 and factor == 1:
        x = x + _of_plane(words, at + width * VECTOR, second, half, r, low_bit)
    return x


@inlined
def _of_plane(words, at, width, half, r, low_bit):  # pragma: no cover
    """The bits of a plane, their lowest at low_bit of each byte."""
    if width == 4:
        place, vector = 4 * half, r
    elif width == 2:
        place, vector = 4 * half + r // 2 * 2, r % 2
    else:
        place, vector = 4 * half + r, 0
    return bits_of(load_quads(words, at + vector * VECTOR), place - low_bit, ((1 << width) - 1) << low_bit)


@inlined
def _ask(words, place, unit_bytes, first, quarters):  # pragma: no cover
    """Have some quarters of a unit brought nearer."""
    for k in range(first, first + quarters):
        for i in range(0, unit_bytes // 4, 64):
            prefetch(words, place + k * (unit_bytes // 4) + i)


@inlined
def _two_rows(row, weight, planes, grid, t, n):  # pragma: no cover
    """The same with rows t and t + 1: what is read of the weight is used twice."""
    q, words = row[0], weight[0]
    width, second, _, factor = planes
    units, unit_bytes = q.shape[1] // UNIT, (width + second) * VECTOR
    acc, acc_ = splat(np.float32(0)), splat(np.float32(0))
    pairs = len(row[1]) // 2
    quarters = 1 if pairs >= 4 else 2 if pairs >= 2 else 4  # of the next block, for which all pairs together ask
    first = t // 2 * quarters % 4
    group, left = _first_group(row, weight, n)
    for u in range(units):
        place, inputs = (n * units + u) * unit_bytes, (t * units + u) * UNIT
        _ask(words, place + units * unit_bytes, unit_bytes, first, quarters)
        lower, lower_ = _two_halves(words, place, planes, 0, q, inputs)
        upper, upper_ = _two_halves(words, place, planes, 1, q, inputs + HALF)
        if factor > 1:
            place, rest, times = place + width * VECTOR, (second, 0, 0, 1), splat(np.int32(factor))
            a, b = _two_halves(words, place, rest, 0, q, inputs)
            lower, lower_ = lower + a * times, lower_ + b * times
            a, b = _two_halves(words, place, rest, 1, q, inputs + HALF)
            upper, upper_ = upper + a * times, upper_ + b * times
        acc = _scaled(acc, lower, upper, row, weight, grid, t, u, group)
        acc_ = _scaled(acc_, lower_, upper_, row, weight, grid, t + 1, u, group)
        group, left = _next_group(weight, grid, group, left)
    return acc, acc_


@inlined
def _two_halves(words, at, planes, half, q, inputs):  # pragma: no cover
    """As `_one_half`, of two rows."""
    a, b, size = no_sums(), no_sums(), q.shape[1]
    for r in range(4):
        x = _quads(words, at, planes, half, r)
        a, b = dot(a, x, q, inputs + 4 * r), dot(b, x, q, inputs + 4 * r + size)
    return summed(a), summed(b)


@inlined
def _first_group(row, weight, n):  # pragma: no cover
    """Where the scales of block n begin, and the inputs that are left of that group. Divisions are left out of the loop
    over units: with two of them LLVM keeps vectors in memory."""
    return n * (row[0].shape[1] // weight[4]) * WIDTH, weight[4]


@inlined
def _next_group(weight, grid, at, left):  # pragma: no cover
    """The same after one unit more."""
    if not grid[0]:
        return at + 2 * WIDTH, left
    left -= UNIT
    return (at + WIDTH, weight[4]) if left == 0 else (at, left)


@inlined
def _scaled(so_far, lower, upper, row, weight, grid, t, u, at):  # pragma: no cover
    """so_far and what unit u of row t adds, of its integer sums. at: where the scales of its group are."""
    _, scale, sums, counts = row
    wide, centred = grid
    if centred:  # as if the middle had been subtracted from every integer
        lower = lower - splat(np.int32(weight[3] * counts[t, 2 * u]))
        upper = upper - splat(np.int32(weight[3] * counts[t, 2 * u + 1]))
    first, second = floats(lower) * splat(scale[t, 2 * u]), floats(upper) * splat(scale[t, 2 * u + 1])
    _, scales, biases, _, _ = weight
    if wide:
        total = sums[t, 2 * u] + sums[t, 2 * u + 1]
        return _joined(so_far, first + second, total, scales, biases, centred, at)
    so_far = _joined(so_far, first, sums[t, 2 * u], scales, biases, centred, at)
    return _joined(so_far, second, sums[t, 2 * u + 1], scales, biases, centred, at + WIDTH)


@inlined
def _joined(so_far, product, total, scales, biases, centred, at):  # pragma: no cover
    """so_far + scale * product + bias * total, of the group at `at`. centred: there are no biases."""
    so_far = fused(load_numbers(scales, at), product, so_far)
    return so_far if centred else fused(load_numbers(biases, at), splat(total), so_far)


@inner_kernel
def _float_blocks(x, sums, words, planes, bits, scales, biases, times, group, y, first, stop):  # pragma: no cover
    count, units = x.shape[0], x.shape[1] // UNIT
    unit_bytes, groups = bits * UNIT * WIDTH // 8, x.shape[1] // group
    unpacked, values, acc = new_bytes(2 * PLANE_BYTES), new_floats(UNIT * WIDTH), new_float_rows(count, WIDTH)
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
                    total = np.float32(times * sums[t, (u * UNIT + start) // step])
                    so_far = _joined(so_far, a + b, total, scales, biases, False, at)
                store(acc, t * WIDTH, so_far)
        for t in range(count):
            _put(load(acc, t * WIDTH), y, t, n)


@inner_kernel
def _sums(x, units, step):  # pragma: no cover
    """Of every `step` inputs; rows filled up with zeros to whole units, and their sums."""
    size = x.shape[1]
    whole = x
    if size < units * UNIT:
        whole = new_float_rows(x.shape[0], units * UNIT)
        for t in range(x.shape[0]):
            for k in range(units * UNIT):
                whole[t, k] = x[t, k] if k < size else np.float32(0)
    sums = new_float_rows(x.shape[0], units * UNIT // step)
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
        last = new_floats(WIDTH)
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
    one, several = _integer_kernels(blocks.bits, blocks.group_size >= UNIT, blocks.centred)
    weight = blocks.words, blocks.scales, blocks.biases, blocks.middle, blocks.group_size
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
    """Scales, and numbers that times a factor are the biases, also where there are none; the group size."""
    if blocks.centred:
        return blocks.scales, blocks.scales, np.float32(-blocks.middle), blocks.group_size
    return blocks.scales, blocks.biases, np.float32(1), blocks.group_size


def _bounds(blocks: Blocks, threads: int) -> np.ndarray:
    """Where each thread's blocks begin, and where the last one's end."""
    return np.linspace(0, blocks.count, threads + 1).astype(np.int64)
