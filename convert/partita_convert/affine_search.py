"""The search of `quantize.py` as one compiled loop over groups, each of which stays in the first cache.

Of the ranges, one pass each finds how well the integers can be fitted; only the best is then stored, and fitted again
as there. On random weights the squared error is 0.1 to 0.5 % above that of storing each, for two thirds of the time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .compiled import kept, part

_F = np.float32
_INF, _FAR = np.float32(np.inf), np.float32(16)
_SMALLEST, _LARGEST = 2.0**-14, 65504.0  # of float16: where its numbers become multiples of one, and end
_HALF, _KEPT = np.int64((1 << 41) - 1), np.int64(-1 << 42)  # of a float64's bits, where ten are left behind the first


@part
def _stored(value: Any, size: Any, wide: Any) -> Any:
    """A scale or bias at the magnitude of one, times `size`, a power of two, as its dtype holds it, over `size` again;
    infinite where that has no such number. wide: float32, else float16."""
    full = np.float64(value) * size
    if wide:
        rounded = np.float64(_F(full))
    elif abs(full) < _SMALLEST:  # float16 has multiples of 2**-24 here
        rounded = np.rint(full * 2.0**24) * 2.0**-24
    else:  # the nearest with ten bits behind the first, even ones of two
        bits = np.float64(full).view(np.int64)
        rounded = np.int64((bits + _HALF + ((bits >> 42) & 1)) & _KEPT).view(np.float64)
        if not abs(rounded) <= _LARGEST:
            return _INF
    return _F(rounded / size) if math.isfinite(rounded) else _INF


@part
def _spacing(value: Any, size: Any, wide: Any) -> Any:
    """How far the next number of the dtype is."""
    least, digits = (-149, 24) if wide else (-24, 11)
    own = math.frexp(np.float64(value) * size)[1] if value != 0 else least
    return _F(math.ldexp(1.0, max(own - digits, least)) / size)


@part
def _error(x: Any, w: Any, scale: Any, bias: Any, top: Any) -> Any:
    """Squared, weighed, with the nearest integers; infinite of numbers beside which a value of one is lost."""
    if not (abs(scale) < _FAR and abs(bias) < _FAR):
        return _INF
    inverse = _F(1) / (scale if scale != 0 else _F(1))
    total = _F(0)
    for i in range(len(x)):
        q = min(max(np.floor((x[i] - bias) * inverse + _F(0.5)), _F(0)), top)
        off = q * scale + bias - x[i]
        total += w[i] * off * off
    return total


@part
def _fit(x: Any, w: Any, scale: Any, bias: Any, top: Any, sw: Any, sx: Any, size: Any, wide: Any) -> Any:
    """Scale, as stored, and bias of least squared error for the integers nearest by these."""
    inverse = _F(1) / (scale if scale != 0 else _F(1))
    q1 = q2 = qx = _F(0)
    for i in range(len(x)):
        q = min(max(np.floor((x[i] - bias) * inverse + _F(0.5)), _F(0)), top)
        wq = w[i] * q
        q1 += wq
        q2 += wq * q
        qx += wq * x[i]
    d = sw * q2 - q1 * q1
    found = _stored((sw * qx - q1 * sx) / (d if d != 0 else _F(1)), size, wide)
    return found, (sx - found * q1) / sw


@part
def _fitted(x: Any, w: Any, scale: Any, bias: Any, top: Any, sw: Any, sx: Any) -> Any:
    """Of the integers nearest by these: what the scale and bias of least squared error take off the sum of squares,
    and these."""
    inverse = _F(1) / scale
    offset = _F(0.5) - bias * inverse
    q1 = q2 = qx = _F(0)
    for i in range(len(x)):
        q = min(max(np.floor(x[i] * inverse + offset), _F(0)), top)
        wq = w[i] * q
        q1 += wq
        q2 += wq * q
        qx += wq * x[i]
    d = sw * q2 - q1 * q1
    if d <= 0:
        return -_INF, scale, bias
    found = (sw * qx - q1 * sx) / d
    other = (sx - found * q1) / sw
    return found * qx + other * sx, found, other


@part
def _least(x: Any, w: Any, top: Any, low: Any, high: Any, size: Any) -> Any:
    """(scale, bias) of MLX's rule, and the smaller error of it and of the minimum and maximum as ends of the grid."""
    below = abs(low) > abs(high)
    step = max((high - low) / top, _F(np.float64(_F(1e-7)) / size))
    step = step if below else -step
    edge = low if below else high
    q = np.rint(edge / step)
    scale, bias = (edge / q, edge) if q != 0 else (step, _F(0))
    ours, ends = _error(x, w, scale, bias, top), _error(x, w, (high - low) / top, low, top)
    return scale, bias, (ends if not ours <= ends else ours)


@kept
def search(
    x: Any,
    lows: Any,
    highs: Any,
    weights: Any,
    top: Any,
    wide: Any,
    clips: Any,
    fits: Any,
    reach: Any,
    q: Any,
    scales: Any,
    biases: Any,
    errors: Any,
) -> None:
    """x: float32 (groups, n), finite. lows, highs: (groups,), the smallest and largest of each. weights: float32
    (k, n), of the groups in turn. wide: whether scales are stored as float32. Written: q uint8 (groups, n), scales and
    biases float64 (groups,), errors float64 (groups, 2), the best and that of the plain rules."""
    v = np.empty(x.shape[1], np.float32)
    for g in range(len(x)):
        row, w = x[g], weights[g % len(weights)]
        size = math.ldexp(1.0, math.frexp(np.float64(max(-lows[g], highs[g])))[1])
        smaller = 1.0 / size
        low, high = _F(lows[g] * smaller), _F(highs[g] * smaller)
        sw = sx = _F(0)
        for i in range(len(v)):
            v[i] = row[i] * smaller
            sw += w[i]
            sx += w[i] * v[i]
        scale, bias, plain = _least(v, w, top, low, high, size)
        step = low - _stored(low, size, wide) if high == low else (high - low) / top
        # Of ranges, the one whose integers fit best by a scale and bias that need not be stored
        most, s, b = -_INF, step, low
        for one in clips:
            for two in clips:
                wide_step, first = step * (_F(1) - (one + two) / top), low + one * step
                if wide_step != 0:
                    gain, found, other = _fitted(v, w, wide_step, first, top, sw, sx)
                    if gain > most:
                        most, s, b = gain, found, other
        best, own, base = _INF, _F(0), _F(0)
        for turn in range(3 + fits):
            if turn == 1:  # what fits the integers of MLX's rule, and that rule
                s, b = _fit(v, w, scale, bias, top, sw, sx, size, wide)
            elif turn == 2:
                s, b = scale, bias
            elif turn > 2:
                s, b = _fit(v, w, own, base, top, sw, sx, size, wide)
            for more in range(2 if turn < 2 else 1):
                if more:
                    s, b = _fit(v, w, s, b, top, sw, sx, size, wide)
                s, b = _stored(s, size, wide), _stored(b, size, wide)
                error = _error(v, w, s, b, top)
                if error < best:
                    best, own, base = error, s, b
        # as they are, the ends of the grid
        s, b = _stored(step, size, wide), _stored(low, size, wide)
        error = _error(v, w, s, b, top)
        if error < best:
            best, own, base = error, s, b
        if best > plain:  # neighbours, where a plain rule with wider scales is luckier
            by, along = _spacing(own, size, wide), _spacing(base, size, wide)
            first, second = own, base
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    s = _stored(first + _F(i) * by, size, wide)
                    b = _stored(second + _F(j) * along, size, wide)
                    error = _error(v, w, s, b, top)
                    if error < best:
                        best, own, base = error, s, b
        inverse = _F(1) / (own if own != 0 else _F(1))
        for i in range(len(v)):
            q[g, i] = np.uint8(min(max(np.floor((v[i] - base) * inverse + _F(0.5)), _F(0)), top))
        scales[g], biases[g] = own * size, base * size
        errors[g, 0], errors[g, 1] = best * size * size, plain * size * size


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
