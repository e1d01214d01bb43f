"""The search of `quantize.py` as one compiled loop: sixteen groups at a time, one in each lane of a vector.

The groups are those of as many rows in the same columns, so that what a column counts is one number for all. Of the
ranges, one pass each finds how well the integers can be fitted; only the best is then stored, and fitted again as
there: on random weights the squared error is 0.1 to 0.5 % above that of storing each. Whatever is tried as stored also
says what fits its integers, so that no second pass asks for it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .compiled import inlined, kept, part
from .lanes import (
    WIDTH,
    any_of,
    ints,
    load,
    magnitude,
    maximum,
    minimum,
    nearest,
    power_of_two,
    shift_left,
    shift_right,
    splat,
    store,
    transpose,
    where,
)

_F = np.float32
_INF, _FAR = np.float32(np.inf), np.float32(16)


class _Block(NamedTuple):
    """A group in each lane, at the magnitude of one."""

    x: Any  # float32 (n * WIDTH,), the first value of each group, the second ...
    w: Any  # float32 (n,), what an error costs
    low: Any
    high: Any
    top: Any  # float32, the largest integer
    sw: Any  # float32, the sum of w
    sx: Any  # of w times x
    digits: Any  # float32, of the dtype of scales: how far neighbours are apart, over the power of two below them
    least: Any  # how far at least
    limit: Any  # its largest number
    tiny: Any  # the smallest step of MLX's rule


class _Best(NamedTuple):
    error: Any
    scale: Any
    bias: Any
    next_scale: Any  # what fits the integers of these best
    next_bias: Any


@inlined
def _spacing(block: Any, value: Any) -> Any:
    """How far the next number of the dtype is."""
    return maximum(power_of_two(value) * block.digits, block.least)


@inlined
def _stored(block: Any, value: Any) -> Any:
    """A scale or bias as its dtype holds it; infinite where that has no such number."""
    unit = _spacing(block, value)
    rounded = nearest(value / unit) * unit
    return where(magnitude(rounded) <= block.limit, rounded, _INF)


@inlined
def _inverse(scale: Any) -> Any:
    return 1 / where(scale == 0, 1, scale)


@inlined
def _tried(block: Any, scale: Any, bias: Any) -> Any:
    """The squared error, weighed, with the nearest integers, infinite of numbers beside which a value of one is lost;
    and the scale, as stored, and bias of least squared error for these integers, found as what is to be added."""
    inverse, sw = _inverse(scale), block.sw
    total = off1 = offq = q1 = q2 = splat(0)
    for i in range(len(block.w)):
        away, w = load(block.x, i * WIDTH) - bias, block.w[i]
        q = nearest(minimum(maximum(away * inverse, 0), block.top))
        off = away - q * scale
        woff, wq = off * w, q * w
        total += woff * off
        off1 += woff
        offq += woff * q
        q1 += wq
        q2 += wq * q
    near = (magnitude(scale) < _FAR) & (magnitude(bias) < _FAR)
    d = sw * q2 - q1 * q1
    fitted = _stored(block, scale + (sw * offq - q1 * off1) / where(d == 0, 1, d))
    return where(near, total, _INF), fitted, bias + (off1 - (fitted - scale) * q1) / sw


@inlined
def _ranged(block: Any, step: Any, clips: Any) -> Any:
    """Of the ranges, the scale and bias, not stored, that fit the integers of the best one. A fit takes `up` squared
    over `d` off the sum of squares, so much more than the mean alone takes off."""
    low, sw, sx = block.low, block.sw, block.sx
    whole, middle = _inverse(step), (block.top + 1) / 2
    most, least, best, sum_ = splat(-1), splat(1), splat(0), splat(0)
    for one in clips:
        for two in clips:
            share = 1 - (one + two) / block.top
            if share == 0:
                continue
            inverse = whole * (1 / share)
            offset = (low + step * one) * inverse + middle
            q1 = q2 = qx = splat(0)
            for i in range(len(block.w)):
                x = load(block.x, i * WIDTH)
                q = nearest(minimum(maximum(x * inverse - offset, -middle), block.top - middle))
                wq = q * block.w[i]
                q1 += wq
                q2 += wq * q
                qx += wq * x
            d, up = sw * q2 - q1 * q1, sw * qx - q1 * sx
            better = (d > 0) & (up * up * least > most * d)
            most, least = where(better, up * up, most), where(better, d, least)
            best, sum_ = where(better, up, best), where(better, q1, sum_)
    scale = best / least
    return where(most >= 0, scale, step), where(most >= 0, (sx - scale * sum_) / sw - scale * middle, low)


@inlined
def _plain(block: Any) -> Any:
    """(scale, bias) of MLX's rule, what fits its integers, and the smaller error of it and of the minimum and maximum
    as ends of the grid."""
    low, high = block.low, block.high
    below, span = magnitude(low) > magnitude(high), (high - low) / block.top
    step = maximum(span, block.tiny)
    step = where(below, step, step * -1)
    edge = where(below, low, high)
    q = nearest(edge / step)
    scale, bias = where(q == 0, step, edge * _inverse(q)), where(q == 0, 0, edge)
    ours, next_scale, next_bias = _tried(block, scale, bias)
    ends, _, _ = _tried(block, span, low)
    return scale, bias, next_scale, next_bias, where(ours <= ends, ours, ends)


@inlined
def _offered(block: Any, best: Any, scale: Any, bias: Any) -> Any:
    """The best so far or these, and what fits the integers of these."""
    scale, bias = _stored(block, scale), _stored(block, bias)
    error, next_scale, next_bias = _tried(block, scale, bias)
    better = error < best.error
    found = _Best(
        where(better, error, best.error),
        where(better, scale, best.scale),
        where(better, bias, best.bias),
        where(better, next_scale, best.next_scale),
        where(better, next_bias, best.next_bias),
    )
    return found, next_scale, next_bias


@inlined
def _closer(block: Any, best: Any, plain: Any, reach: Any) -> Any:
    """Neighbours of the best, for the few groups where a plain rule with wider scales is luckier."""
    error, scale, bias = best.error, best.scale, best.bias
    worse = error > plain
    if any_of(worse):
        by, along = _spacing(block, scale), _spacing(block, bias)
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                one, two = _stored(block, best.scale + by * i), _stored(block, best.bias + along * j)
                other, _, _ = _tried(block, one, two)
                better = worse & (other < error)
                error, scale, bias = where(better, other, error), where(better, one, scale), where(better, two, bias)
    return error, scale, bias


@inlined
def _found(block: Any, clips: Any, fits: Any, reach: Any) -> Any:
    """Scale and bias, as stored, their error and that of the plain rules."""
    constant, span = block.high == block.low, (block.high - block.low) / block.top
    step = where(constant, block.low - _stored(block, block.low), span)  # what the bias cannot hold, the scale adds
    scale, bias, next_scale, next_bias, plain = _plain(block)
    best = _Best(splat(_INF), splat(0), splat(0), splat(0), splat(0))
    s, b = _ranged(block, step, clips)
    for turn in range(6 + fits):  # each of three, and what fits its integers; MLX's rule; the ends; the best, fitted
        if turn == 2:
            s, b = next_scale, next_bias
        elif turn == 4:
            s, b = scale, bias
        elif turn == 5:
            s, b = step, block.low
        elif turn > 5:
            s, b = best.next_scale, best.next_bias
        best, s, b = _offered(block, best, s, b)
    error, scale, bias = _closer(block, best, plain, reach)
    return scale, bias, error, plain


@part
def _size(value: float) -> float:
    """The power of two above, of a magnitude that float32 has."""
    bits = np.float64(value).view(np.int64)
    return np.int64(((bits >> 52) + 1) << 52).view(np.float64) if value > 0 else 1.0


@inlined
def _gather(x: Any, row: Any, column: Any, v: Any) -> None:
    """The groups of WIDTH rows, the last row again beyond it, into v (n * WIDTH,)."""
    n, width = len(v) // WIDTH, x.shape[1]
    for i in range(0, n, WIDTH):
        transpose(x, row * width + column + i, width, len(x) - row, v, i * WIDTH)


@inlined
def _packed(block: Any, scale: Any, bias: Any, bits: Any, words: Any) -> Any:
    """The nearest integers into words, uint32 (n * bits / 32 * WIDTH,), the first word of each group, the second ...
    The squares of what they are off by, and of the values, all columns alike."""
    inverse, held, room, place = _inverse(scale), ints(splat(0)), 32, 0
    lost = squares = splat(0)
    for i in range(len(block.w)):
        x = load(block.x, i * WIDTH)
        away = x - bias
        near = nearest(minimum(maximum(away * inverse, 0), block.top))
        off, q = away - near * scale, ints(near)
        lost += off * off
        squares += x * x
        held = held | shift_left(q, 32 - room)
        room -= bits
        if room <= 0:
            store(words, place, held)
            place += WIDTH
            held = shift_right(q, bits + room) if room < 0 else ints(splat(0))
            room += 32
    return lost, squares


@inlined
def _block(v: Any, w: Any, top: Any, wide: Any, sizes: Any, spare: Any) -> Any:
    """The block of values as they are, which are brought to the magnitude of one in place. Written: sizes float64."""
    low = high = load(v, 0)
    for i in range(1, len(w)):
        x = load(v, i * WIDTH)
        low, high = minimum(low, x), maximum(high, x)
    store(spare, 0, maximum(low * -1, high))
    for lane in range(WIDTH):
        size = sizes[lane] = _size(spare[lane])
        by = min(max(1 / size, 2.0**-100), 2.0**100)
        spare[lane], spare[WIDTH + lane] = by, 1 / size / by
        spare[2 * WIDTH + lane] = min(max((2.0**-149 if wide else 2.0**-24) / size, 2.0**-126), 2.0**127)
        spare[3 * WIDTH + lane] = (3.4028234663852886e38 if wide else 65504.0) / size
        spare[4 * WIDTH + lane] = np.float64(_F(1e-7)) / size
    once, twice = load(spare, 0), load(spare, WIDTH)
    sw, sx = _F(0), splat(0)
    for i in range(len(w)):
        x = load(v, i * WIDTH) * once * twice
        store(v, i * WIDTH, x)
        sw += w[i]
        sx += x * w[i]
    digits = _F(2.0**-23 if wide else 2.0**-10)
    grid = load(spare, 2 * WIDTH), load(spare, 3 * WIDTH), load(spare, 4 * WIDTH)
    return _Block(v, w, low * once * twice, high * once * twice, top, sw, sx, digits, *grid)


@kept
def search(
    x: Any,
    weights: Any,
    bits: Any,
    wide: Any,
    clips: Any,
    fits: Any,
    reach: Any,
    words: Any,
    scales: Any,
    biases: Any,
) -> Any:
    """x: float32 (rows, groups * n), finite. weights: float32 (groups, n), of every row. wide: whether scales are
    stored as float32, else float16. Written: words uint32 (rows, groups * n * bits / 32); scales and biases float32
    (rows, groups), as stored. Returns sums: the squared error and that of the plain rules, weighed; the squared error
    and the squares of x, all columns alike."""
    n, top = weights.shape[1], _F(2**bits - 1)
    v, out = np.empty(n * WIDTH, _F), np.empty(n * bits // 32 * WIDTH, np.uint32)
    sizes, spare = np.empty(WIDTH), np.empty(6 * WIDTH, _F)
    error = plain = lost = squares = 0.0
    for row in range(0, len(x), WIDTH):
        for g in range(len(weights)):
            _gather(x, row, g * n, v)
            block = _block(v, weights[g], top, wide, sizes, spare)
            scale, bias, best, rule = _found(block, clips, fits, reach)
            off, whole = _packed(block, scale, bias, bits, out)
            for i, each in enumerate((scale, bias, best, rule, off, whole)):
                store(spare, i * WIDTH, each)
            for lane in range(min(WIDTH, len(x) - row)):
                size = sizes[lane]
                scales[row + lane, g], biases[row + lane, g] = spare[lane] * size, spare[WIDTH + lane] * size
                error += spare[2 * WIDTH + lane] * size * size
                plain += spare[3 * WIDTH + lane] * size * size
                lost += spare[4 * WIDTH + lane] * size * size
                squares += spare[5 * WIDTH + lane] * size * size
                for i in range(len(out) // WIDTH):
                    words[row + lane, g * (len(out) // WIDTH) + i] = out[i * WIDTH + lane]
    return error, plain, lost, squares


@kept
def lost(x: Any, q: Any, scales: Any, biases: Any) -> Any:
    """(squares of q * scale + bias - x, squares of x), both summed in float64. x: float32 (groups, n), of which what is
    not finite is left out. q: uint8 (groups, n). scales, biases: float32 (groups,)."""
    away = total = 0.0
    for g in range(len(x)):
        scale, bias = np.float64(scales[g]), np.float64(biases[g])
        for i in range(x.shape[1]):
            value = np.float64(x[g, i])
            if math.isfinite(value):
                off = q[g, i] * scale + bias - value
                away += off * off
                total += value * value
    return away, total
