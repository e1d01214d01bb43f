"""Blocks of weights to integers with small weighed error: loops that numba compiles when they are first called.

The sub-blocks of a block have small integers for scales, in units of one or two float16. A value is `d * s * q - e * m`
(affine: q, s and m from 0 on) or `d * s * q` (symmetric: q and s of either sign). Not here: bytes (`layouts`), what is
tried for which type (`search`). Invariants: the integers are the nearest ones for the scales *as stored*; no block has
a larger weighed error than by the plain rule, whose scales and minima are the ends of each sub-block (`_plain`).

The search: for each sub-block the scale and minimum that fit best (least squares) the integers of several ranges; these
in units of d and e; then in turn d and e of least squares for the integers, and for each sub-block the best of the
neighbouring scales and minima. Values come at the magnitude of one, so that squares neither overflow nor vanish.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...compiled import kept, part


@part
def _half(value: float, exponent: int) -> Any:
    """`value` as a float16 holds it when it is multiplied by 2**exponent."""
    if value == 0.0:
        return 0.0
    _, own = math.frexp(value)
    step = max(own + exponent - 11, -24) - exponent
    rounded = np.rint(math.ldexp(value, -step))
    found = math.ldexp(rounded, step)
    return found if abs(math.ldexp(found, exponent)) <= 65504.0 else math.inf


@part
def _fit(x: Any, w: Any, inverse: Any, offset: Any, low: Any, high: Any) -> Any:
    """Sums over the integers at x * inverse + offset: of w q, w q q, w q x."""
    q1 = q2 = qx = np.float32(0)
    for i in range(len(x)):
        q = min(max(np.floor(x[i] * inverse + offset + np.float32(0.5)), low), high)
        wq = w[i] * q
        q1 += wq
        q2 += wq * q
        qx += wq * x[i]
    return q1, q2, qx


@part
def _error(x: Any, w: Any, scale: Any, bias: Any, low: Any, high: Any) -> Any:
    """Of q * scale + bias with the nearest integers."""
    inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
    offset = np.float32(0.5) - bias * inverse
    total = np.float32(0)
    for i in range(len(x)):
        q = min(max(np.floor(x[i] * inverse + offset), low), high)
        off = q * scale + bias - x[i]
        total += w[i] * off * off
    return total


@part
def _best_affine(x: Any, w: Any, top: Any, clips: Any) -> Any:
    """(scale, minimum) that fit best, of a sub-block. A minimum is no less than 0: what it takes off."""
    low = high = x[0]
    sw = sx = np.float32(0)
    for i in range(len(x)):
        low, high = min(low, x[i]), max(high, x[i])
        sw += w[i]
        sx += w[i] * x[i]
    low = min(low, np.float32(0))
    step = (high - low) / top
    if step <= 0:
        return np.float32(0), -low
    best, scale, minimum = -np.float32(np.inf), step, -low
    for turn in range(len(clips) * len(clips) + 2):
        if turn < len(clips) * len(clips):
            below, above = clips[turn // len(clips)], clips[turn % len(clips)]
            inverse = np.float32(1) / (step * (1 - (below + above) / top))
            offset = -(low + below * step) * inverse
        else:
            inverse = np.float32(1) / scale
            offset = minimum * inverse
        q1, q2, qx = _fit(x, w, inverse, offset, np.float32(0), top)
        d = sw * q2 - q1 * q1
        if d <= 0:
            continue
        a = (sw * qx - q1 * sx) / d
        b = (sx - a * q1) / sw
        if b > 0:
            a, b = (qx / q2 if q2 > 0 else np.float32(0)), np.float32(0)
        gain = a * (2 * qx - a * q2 - 2 * b * q1) + b * (2 * sx - b * sw)
        if a > 0 and gain > best:
            best, scale, minimum = gain, a, -b
    return scale, minimum


@part
def _best_symmetric(x: Any, w: Any, low: Any, high: Any, ends: Any) -> Any:
    """The scale that fits best. ends: integers that the largest magnitude becomes, of either sign."""
    most = np.float32(0)
    for i in range(len(x)):
        most = max(most, abs(x[i]))
    if most == 0:
        return np.float32(0)
    best, scale = np.float32(-1), np.float32(0)
    for turn in range(2 * len(ends) + 2):
        if turn < 2 * len(ends):
            inverse = (ends[turn >> 1] if turn & 1 else -ends[turn >> 1]) / most
        elif scale == 0:
            break
        else:
            inverse = np.float32(1) / scale
        _, q2, qx = _fit(x, w, inverse, np.float32(0), low, high)
        if q2 > 0 and qx * qx > best * q2:
            best, scale = qx * qx / q2, qx / q2
    return scale


@part
def _total(x: Any, w: Any, size: Any, s: Any, m: Any, d: Any, e: Any, low: Any, high: Any) -> Any:
    total = 0.0
    for j in range(len(s)):
        part = slice(j * size, (j + 1) * size)
        total += _error(x[part], w[part], np.float32(d * s[j]), -np.float32(e * m[j]), low, high)
    return total


@part
def _in_units(values: Any, unit: float, least: int, most: int, out: Any) -> None:
    for j in range(len(values)):
        out[j] = 0 if unit == 0 else int(min(max(np.rint(values[j] / unit), least), most))


@part
def _solve(x: Any, w: Any, size: Any, s: Any, m: Any, d: float, e: float, low: Any, high: Any) -> Any:
    """d and e of least squares for the integers that the present ones give."""
    aa = ab = bb = ax = bx = 0.0
    for j in range(len(s)):
        scale, bias = np.float32(d * s[j]), -np.float32(e * m[j])
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        part = slice(j * size, (j + 1) * size)
        q1, q2, qx = _fit(x[part], w[part], inverse, -bias * inverse, low, high)
        aa += s[j] * s[j] * q2
        ax += s[j] * qx
        if m[j] != 0:
            sw = sx = np.float32(0)
            for i in range(j * size, (j + 1) * size):
                sw += w[i]
                sx += w[i] * x[i]
            ab += s[j] * m[j] * q1
            bb += m[j] * m[j] * sw
            bx += m[j] * sx
    determinant = aa * bb - ab * ab
    if bb > 0 and determinant > 1e-9 * aa * bb:
        return (ax * bb - bx * ab) / determinant, (ax * ab - bx * aa) / determinant
    return (ax / aa if aa > 0 else d), e


@part
def _neighbours(
    x: Any, w: Any, size: Any, s: Any, m: Any, d: float, e: float, low: Any, high: Any, s_range: Any, m_most: int
) -> Any:
    """The best of each sub-block's scales and minima one away, put into s and m; the error."""
    total = 0.0
    for j in range(len(s)):
        part = slice(j * size, (j + 1) * size)
        s0, m0 = s[j], m[j]
        best = _error(x[part], w[part], np.float32(d * s0), -np.float32(e * m0), low, high)
        for ds in range(-1, 2):
            for dm in range(-1 if m_most else 0, 2 if m_most else 1):
                s1, m1 = s0 + ds, m0 + dm
                if (ds == 0 and dm == 0) or not (s_range[0] <= s1 <= s_range[1] and 0 <= m1 <= m_most):
                    continue
                error = _error(x[part], w[part], np.float32(d * s1), -np.float32(e * m1), low, high)
                if error < best:
                    best, s[j], m[j] = error, s1, m1
        total += best
    return total


@part
def _refined(
    x: Any, w: Any, size: Any, s: Any, m: Any, d: float, e: float, low: Any, high: Any, s_range: Any, m_most: int,
    exponent: int, rounds: int,
) -> Any:  # fmt: skip
    """(error, d, e) after the search from a start; s and m are changed to what belongs to them."""
    error = _neighbours(x, w, size, s, m, d, e, low, high, s_range, m_most)
    for _ in range(rounds):
        d1, e1 = _solve(x, w, size, s, m, d, e, low, high)
        d1, e1 = _half(d1, exponent), _half(max(e1, 0.0), exponent)
        if not (math.isfinite(d1) and math.isfinite(e1)):
            break
        s1, m1 = s.copy(), m.copy()
        found = _neighbours(x, w, size, s1, m1, d1, e1, low, high, s_range, m_most)
        if not found < error:
            break
        error, d, e = found, d1, e1
        s[:], m[:] = s1, m1
    return error, d, e


@part
def _largest(values: Any) -> Any:
    """The value of the largest magnitude."""
    found = 0.0
    for value in values:
        if abs(value) > abs(found):
            found = value
    return found


@kept
def search(
    x: Any,  # float32 (blocks, values), of magnitude one or less
    weights: Any,  # float32 (blocks of a row, values): of the columns
    exponents: Any,  # int32 (blocks,): the values are 2**exponent times as large
    size: int,  # of a sub-block
    low: Any, high: Any,  # float32: the integers' range
    s_range: Any,  # (least, most) of scales
    m_most: int,  # the largest minimum; 0: symmetric
    tries: Any,  # float32: clips, or ends
    rounds: int,
    q: Any,  # uint8 (blocks, values), out: integers, less `low`
    s: Any, m: Any,  # int32 (blocks, sub-blocks), out
    halves: Any,  # float64 (blocks, 2), out: d, e at the magnitude of x
    lost: Any,  # float64 (blocks, 2), out: squared error, plain and weighed
) -> None:  # fmt: skip
    """Blocks, one after the other."""
    count = x.shape[1] // size
    scales, minima = np.zeros(count), np.zeros(count)
    s1, m1 = np.zeros(count, np.int32), np.zeros(count, np.int32)
    for block in range(len(x)):
        row, w, exponent = x[block], weights[block % len(weights)], exponents[block]
        best = math.inf
        d = e = 0.0
        for start in range(2):
            for j in range(count):
                part = slice(j * size, (j + 1) * size)
                if start == 0:
                    scales[j], minima[j] = _plain(row[part], low, high, m_most)
                elif m_most:
                    scales[j], minima[j] = _best_affine(row[part], w[part], high, tries)
                else:
                    scales[j] = _best_symmetric(row[part], w[part], low, high, tries)
            most = _largest(scales)
            reach = s_range[1] if m_most or s_range[0] > 0 else s_range[0]
            d1 = _half(most / reach, exponent)
            e1 = _half(_largest(minima) / m_most, exponent) if m_most else 0.0
            if not (math.isfinite(d1) and math.isfinite(e1)):
                continue
            _in_units(scales, d1, s_range[0], s_range[1], s1)
            _in_units(minima, e1, 0, m_most, m1)
            if start == 0:
                error = _total(row, w, size, s1, m1, d1, e1, low, high)
            else:
                error, d1, e1 = _refined(
                    row, w, size, s1, m1, d1, e1, low, high, s_range, m_most, exponent, rounds
                )  # fmt: skip
            if error < best:
                best, d, e = error, d1, e1
                s[block], m[block] = s1, m1
        halves[block, 0], halves[block, 1] = d, e
        lost[block, 1] = best
        lost[block, 0] = _write(row, size, s[block], m[block], d, e, low, high, q[block])


@part
def _plain(x: Any, low: Any, high: Any, m_most: int) -> Any:
    """Scale and minimum by the ends of a sub-block."""
    least = most = x[0]
    for i in range(len(x)):
        least, most = min(least, x[i]), max(most, x[i])
    if m_most:
        least = min(least, np.float32(0))
        return (most - least) / high, -least
    end = most if most > -least else least
    return end / low, np.float32(0)


@part
def _write(x: Any, size: Any, s: Any, m: Any, d: float, e: float, low: Any, high: Any, q: Any) -> Any:
    total = 0.0
    for j in range(len(s)):
        scale, bias = np.float32(d * s[j]), -np.float32(e * m[j])
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        offset = np.float32(0.5) - bias * inverse
        own = np.float32(0)
        for i in range(j * size, (j + 1) * size):
            value = min(max(np.floor(x[i] * inverse + offset), low), high)
            q[i] = np.uint8(value - low)
            off = value * scale + bias - x[i]
            own += off * off
        total += own
    return total
