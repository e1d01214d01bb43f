"""Weights to small floats with small error: of the multipliers that a mode has, the one that fits each group best.

Not here: integers with scales and biases (`quantize.py`), which weight gets which mode (`recipes.py`). Invariants:
every value is the nearest one for the multiplier; no group has a larger squared error than MLX's rule gives it
(`mx.quantize`); the same input gives the same bytes.

MLX takes the multiplier from the largest magnitude of a group: divided by 6, the largest 4-bit float, and rounded to
E4M3 (nvfp4); or the next power of two above, so that nothing is cut off (mxfp4; with 448 for mxfp8). Values near the
largest are far apart, so that a smaller multiplier, which cuts the largest off, or a larger one often costs less.
All numbers of the format around MLX's are tried.
"""

from __future__ import annotations

import numpy as np

from partita.quantization import MXFP8, NVFP4, SMALL_FLOATS, small_floats

E4M3_AROUND = range(-4, 7)
"""Codes of E4M3 that are tried, eight an octave: down to where the largest value is cut off by a third, and up to where
it is 3.6 of 6. On normal and heavy-tailed random numbers a range twice as wide takes 0.02 % off the squared error."""
E8M0_AROUND = range(-2, 1)
"""Of exponents: down to where all from a quarter of the largest on is cut off. MLX's cuts nothing off, so that a larger
one only loses."""
_TOP, _LEAST = {4: 6.0, 8: 448.0}, {4: 1.0, 8: 2.0**-6}
_STEPS = {4: 2.0, 8: 8.0}
"""Of values: the largest, the smallest that is no subnormal, and into how many an octave is divided."""
_ZERO = 127  # the exponent of a group of zeros


def encode(rows: np.ndarray, mode: str, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """float32 (rows, n), finite, in whole groups: the bytes of codes (rows, n * bits / 8) and those of multipliers
    (rows, n / group). weights: float32 (n / group, group), what a squared error costs."""
    bits, group = SMALL_FLOATS[mode]
    count, groups = len(rows), rows.reshape(-1, group)
    scales, codes = _searched(groups, mode, None if weights is None else np.tile(weights, (count, 1)))
    stream = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
    return stream.reshape(count, -1), scales.reshape(count, -1)


def _searched(x: np.ndarray, mode: str, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Codes of multipliers (G,) and of values (G, n), uint8, of groups (G, n)."""
    bits, _ = SMALL_FLOATS[mode]
    largest = np.abs(x).max(-1)
    first, around, last = _plain(largest, mode)
    table, (_, exponent) = _multipliers(mode), np.frexp(largest)
    near_one = np.ldexp(x, -exponent[:, None])  # squares neither overflow nor vanish
    best, least = first, np.full(len(x), np.inf, np.float32)
    for offset in sorted(around, key=abs):  # MLX's own first: another must be better
        code = np.clip(first + offset, 0, last)
        error = _errors(near_one, np.ldexp(table[code], -exponent), bits, weights)
        better = error < least
        best, least = np.where(better, code, best), np.where(better, error, least)
    best = np.where(largest > 0, best, 0 if mode == NVFP4 else _ZERO)
    return best.astype(np.uint8), _codes(near_one, np.ldexp(table[best], -exponent), bits)


def _plain(largest: np.ndarray, mode: str) -> tuple[np.ndarray, range, int]:
    """MLX's codes (G,), which others are tried around, and the last one that there is."""
    if mode == NVFP4:
        import ml_dtypes

        scale = np.minimum(largest / np.float32(6), np.float32(448))
        return scale.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).astype(np.int32), E4M3_AROUND, 0x7E
    top = _TOP[SMALL_FLOATS[mode][0]]
    fraction, exponent = np.frexp(largest / np.float32(top))
    above = exponent - (fraction == 0.5)
    return np.clip(above + 127, 0, 246), E8M0_AROUND, 246 if mode == MXFP8 else 251


def _multipliers(mode: str) -> np.ndarray:
    """What each code stands for, float32 (256,)."""
    if mode == NVFP4:
        return small_floats(8)
    return np.ldexp(np.float32(1), np.minimum(np.arange(256), 254) - 127)


def _magnitudes(x: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """The nearest values to |x| / scale, ties to even, float32 (G, n): zero where the multiplier is."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    y = np.abs(x * inverse[:, None])
    np.minimum(y, np.float32(_TOP[bits]), out=y)
    octave = (y.view(np.int32) & 0x7F800000).view(np.float32)
    step = np.maximum(octave, np.float32(_LEAST[bits])) / np.float32(_STEPS[bits])
    y /= step
    np.rint(y, out=y)
    y *= step
    return y


def _errors(x: np.ndarray, scale: np.ndarray, bits: int, weights: np.ndarray | None) -> np.ndarray:
    """Squared errors (G,), weighted."""
    d = _magnitudes(x, scale, bits)
    d *= scale[:, None]
    d -= np.abs(x)
    if weights is None:
        return np.einsum("gn,gn->g", d, d)
    return np.einsum("gn,gn,gn->g", d, d, weights)


def _codes(x: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """Codes of the nearest values, uint8 (G, n)."""
    y = _magnitudes(x, scale, bits)
    sign = ((x < 0) & (y > 0)).astype(np.uint8) << (bits - 1)
    if bits == 8:
        import ml_dtypes

        return y.astype(ml_dtypes.float8_e4m3fn).view(np.uint8) | sign
    return np.searchsorted(small_floats(4)[:8], y).astype(np.uint8) | sign
