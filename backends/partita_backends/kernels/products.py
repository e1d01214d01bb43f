"""Rows times a weight in blocks, without ever making the weight dense.

Two ways. In integers: a row is rounded to 8 bits, by the largest of every 16 inputs (`rounded`); sums of a unit's
products are exact, and scales follow in float32. In float32: as if the weight were dense. In both a unit is unpacked
once for all rows, and every row is computed by itself, in the same order of additions, whatever the number of rows.
"""

from __future__ import annotations

import numba
import numpy as np

from .blocks import PLANE_BYTES, UNIT, Blocks, spread, unit_values
from .compiled import Call, kernel, parallel_kernel, threaded
from .lanes import WIDTH, bits_of, dot_pairs, floats, fused, ints, load, load_floats, load_pairs, splat, store

HALF = 16
"""Numbers of a row that are rounded by the largest of them."""


@kernel
def rounded(x):  # pragma: no cover
    """Rows in 8 bits: integers int8 (rows, units * 32) from -127 to 127; for each 16 of them what a step is worth, and
    the sum of the integers times that, float32 (rows, units * 2). Where a number is not finite a step is worth NaN."""
    size = x.shape[1]
    units = (size + UNIT - 1) // UNIT
    integers = np.zeros((x.shape[0], units * UNIT), np.int8)
    scales, sums = np.empty((x.shape[0], 2 * units), np.float32), np.empty((x.shape[0], 2 * units), np.float32)
    for t in range(x.shape[0]):
        for u in range(2 * units):
            start, stop = min(u * HALF, size), min(u * HALF + HALF, size)
            largest, total = np.float32(0), np.float32(0)
            for k in range(start, stop):
                largest = max(largest, abs(x[t, k]))
                total += abs(x[t, k])  # not a number if one of them is not
            scale = largest / np.float32(127) if np.isfinite(total) else np.float32(np.nan)
            per = np.float32(1) / scale if scale > np.float32(1e-37) else np.float32(0)
            count = 0
            for k in range(start, stop):
                q = np.int8(np.rint(x[t, k] * per)) if scale == scale else np.int8(0)
                integers[t, k] = q
                count += q
            scales[t, u] = scale
            sums[t, u] = scale * np.float32(count)
    return integers, scales, sums


@kernel
def _integer_blocks(
    q, scale, sums, words, planes, bits, scales, biases, middle, group, y, first, stop
):  # pragma: no cover
    count, units = len(scale), scale.shape[1] // 2
    unit_bytes, groups = bits * UNIT * WIDTH // 8, (units * UNIT) // group
    unpacked, acc = np.empty(2 * PLANE_BYTES, np.uint8), np.zeros((count, WIDTH), np.float32)
    for n in range(first, stop):
        for u in range(units):
            place, at = (n * units + u) * unit_bytes, (n * groups + (u * UNIT) // group) * WIDTH
            packed = count == 1 and bits == 4  # the one case in which unpacking first costs more than it saves
            if not packed:
                spread(words, place, planes, unpacked)
            for t in range(count):
                inputs = t * units * UNIT + u * UNIT
                if packed:
                    lower, upper = _four_bits(words, place, q, inputs)
                else:
                    lower, upper = _unit(unpacked, planes, q, inputs)
                so_far = load(acc, t * WIDTH) if u > 0 else splat(np.float32(0))
                a, b = floats(lower) * splat(scale[t, 2 * u]), floats(upper) * splat(scale[t, 2 * u + 1])
                if group >= UNIT:
                    total = splat(sums[t, 2 * u] + sums[t, 2 * u + 1])
                    so_far = _joined(so_far, a + b, total, scales, biases, middle, at)
                else:
                    so_far = _joined(so_far, a, splat(sums[t, 2 * u]), scales, biases, middle, at)
                    so_far = _joined(so_far, b, splat(sums[t, 2 * u + 1]), scales, biases, middle, at + WIDTH)
                store(acc, t * WIDTH, so_far)
        _put(acc, y, n)


@kernel
def _unit(unpacked, planes, q, inputs):  # pragma: no cover
    """Sums of a unit's products with a row's integers from `inputs` on: of its first and of its second 16 inputs."""
    lower, upper = splat(np.int32(0)), splat(np.int32(0))
    for plane in range(planes.shape[0]):
        start = plane * PLANE_BYTES
        a, b = splat(np.int16(0)), splat(np.int16(0))
        for r in range(8):  # 8 pairs of at most 15 * 127 fit in a short
            a = a + dot_pairs(load_pairs(unpacked, start + r * 64), q, inputs + 2 * r)
            b = b + dot_pairs(load_pairs(unpacked, start + (r + 8) * 64), q, inputs + 2 * r + 16)
        weight = splat(np.int32(1 << planes[plane, 1]))
        lower, upper = lower + ints(a) * weight, upper + ints(b) * weight
    return lower, upper


@kernel
def _four_bits(words, place, q, inputs):  # pragma: no cover
    """The same of a unit of 4 bits that is still packed."""
    a, b = splat(np.int16(0)), splat(np.int16(0))
    for r in range(8):
        x = load_pairs(words, place + r * 64)
        a = a + dot_pairs(bits_of(x, 0, 15), q, inputs + 2 * r)
        b = b + dot_pairs(bits_of(x, 4, 15), q, inputs + 2 * r + 16)
    return ints(a), ints(b)


@kernel
def _joined(so_far, product, total, scales, biases, middle, at):  # pragma: no cover
    """so_far + scale * product + bias * total, of the group at `at`."""
    scale = load_floats(scales, at)
    if len(biases) == 0:
        return fused(scale, product - splat(np.float32(middle)) * total, so_far)
    return fused(load_floats(biases, at), total, fused(scale, product, so_far))


@kernel
def _float_blocks(x, sums, words, planes, bits, scales, biases, middle, group, y, first, stop):  # pragma: no cover
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
                    total = splat(sums[t, (u * UNIT + start) // step])
                    so_far = _joined(so_far, a + b, total, scales, biases, middle, at)
                store(acc, t * WIDTH, so_far)
        _put(acc, y, n)


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


@kernel
def _put(acc, y, n):  # pragma: no cover
    """A block's results into y (rows, out), whose last block may be cut short."""
    out = y.shape[1]
    for t in range(acc.shape[0]):
        if (n + 1) * WIDTH <= out:
            store(y, t * out + n * WIDTH, load(acc, t * WIDTH))
        else:
            for j in range(out - n * WIDTH):
                y[t, n * WIDTH + j] = acc[t, j]


@kernel
def _integer(x, words, planes, bits, scales, biases, middle, group, y, count):  # pragma: no cover
    q, scale, sums = rounded(x)
    _integer_blocks(q, scale, sums, words, planes, bits, scales, biases, middle, group, y, 0, count)


@parallel_kernel
def _integer_parallel(x, words, planes, bits, scales, biases, middle, group, y, bounds):  # pragma: no cover
    q, scale, sums = rounded(x)
    for part in numba.prange(len(bounds) - 1):
        _integer_blocks(
            q, scale, sums, words, planes, bits, scales, biases, middle, group, y, bounds[part], bounds[part + 1]
        )


@kernel
def _float(x, words, planes, bits, scales, biases, middle, group, y, count):  # pragma: no cover
    units = (x.shape[1] + UNIT - 1) // UNIT
    whole, sums = _sums(x, units, min(group, UNIT))
    _float_blocks(whole, sums, words, planes, bits, scales, biases, middle, group, y, 0, count)


@parallel_kernel
def _float_parallel(x, words, planes, bits, scales, biases, middle, group, y, bounds):  # pragma: no cover
    units = (x.shape[1] + UNIT - 1) // UNIT
    whole, sums = _sums(x, units, min(group, UNIT))
    for part in numba.prange(len(bounds) - 1):
        _float_blocks(
            whole, sums, words, planes, bits, scales, biases, middle, group, y, bounds[part], bounds[part + 1]
        )


def integer_product(x: np.ndarray, blocks: Blocks, y: np.ndarray, threads: int = 1) -> Call:
    """The call for x (rows, in), float32, rounded to 8 bits, times the weight (out, in), transposed, into float32 y
    (rows, out)."""
    if threads == 1:
        return _integer, (x, *blocks.operands, y, blocks.count)
    return threaded, (threads, _integer_parallel, x, *blocks.operands, y, _bounds(blocks, threads))


def float_product(x: np.ndarray, blocks: Blocks, y: np.ndarray, threads: int = 1) -> Call:
    """The same in float32, nothing rounded."""
    if threads == 1:
        return _float, (x, *blocks.operands, y, blocks.count)
    return threaded, (threads, _float_parallel, x, *blocks.operands, y, _bounds(blocks, threads))


def _bounds(blocks: Blocks, threads: int) -> np.ndarray:
    """Where each thread's blocks begin, and where the last one's end."""
    return np.linspace(0, blocks.count, threads + 1).astype(np.int64)
