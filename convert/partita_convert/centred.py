"""Weights to integers around zero: one scale a group and no bias, as servers' 4-bit kernels want them.

A value is (q - half) * scale with an unsigned q and half = 2**(bits - 1): an affine `Packed` of bias -half * scale.
Not here: which weights, and how they are written (`servers.py`). Invariants: the integers are the best ones for the
scale *as stored*; what is in this form already stays as it is; the same input gives the same bytes.

The search, for each group: scales that put its largest magnitude from somewhat inside to somewhat outside the range,
each then fitted to the integers that it gives (least squares); the best by weighted squared error.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from partita.errors import DataError
from partita.quantization import AFFINE, Packed, check_groups, dequantize, pack

REACHES = (0.8, 0.875, 0.9375, 1.0, 1.0625, 1.125, 1.25)
"""Where the largest magnitude of a group comes to lie, in halves of the range."""
_FITS = 2
_VALUES = 1 << 18  # made at a time


def centred(
    x: np.ndarray | Packed, bits: int, group_size: int, dtype: Any, importance: np.ndarray | None, name: str
) -> Packed:
    """x (out, in) as integers around zero, in groups along the last axis; scales in `dtype`.

    importance (in,): what a squared error in each column costs. DataError, naming the weight: a size that does not
    divide, NaN or infinity.
    """
    if isinstance(x, Packed):
        kept = _kept(x, bits, group_size, dtype)
        if kept is not None:
            return kept
        x = dequantize(x)
    out, size = x.shape
    check_groups(size, bits, group_size, name)
    groups, step = size // group_size, max(_VALUES // size, 1)
    weights = np.ones(size, np.float32) if importance is None else np.maximum(importance, 1e-3 * importance.mean())
    weights = (weights / (weights.mean() or 1)).astype(np.float32).reshape(groups, group_size)
    words, scales = np.empty((out, size * bits // 32), np.uint32), np.empty((out, groups), dtype)
    for start in range(0, out, step):
        part = x[start : start + step].astype(np.float32)
        if not np.isfinite(part).all():
            raise DataError(f"{name} holds NaN or infinity and cannot be quantized; the checkpoint is damaged")
        found = _scales(part.reshape(-1, groups, group_size), weights, bits, dtype)
        half = 1 << (bits - 1)
        q = _integers(part.reshape(-1, groups, group_size), found, half) + np.float32(half)
        words[start : start + step] = pack(q.astype(np.uint8).reshape(len(part), size), bits)
        scales[start : start + step] = found.astype(dtype)
    return Packed(words, scales, scales * np.asarray(-(1 << (bits - 1)), dtype), bits, group_size)


def _kept(x: Packed, bits: int, group_size: int, dtype: Any) -> Packed | None:
    """What is in this form already, if `dtype` holds its scales."""
    if x.format[:3] != (AFFINE, bits, group_size):
        return None
    scales, biases = (part.astype(np.float32) for part in x.grid)
    narrow = scales.astype(dtype)
    if not np.array_equal(biases, scales * -(1 << (bits - 1))) or not np.array_equal(narrow.astype(np.float32), scales):
        return None
    return replace(x, scales=narrow, biases=narrow * np.asarray(-(1 << (bits - 1)), dtype))


def _scales(x: np.ndarray, weights: np.ndarray, bits: int, dtype: Any) -> np.ndarray:
    """float32 (rows, groups), each a number of `dtype`, of x (rows, groups, n)."""
    half = 1 << (bits - 1)
    largest: np.ndarray = np.abs(x).max(-1)
    best = np.zeros_like(largest)
    least: np.ndarray = np.einsum("rgn,rgn,gn->rg", x, x, weights)  # of a scale of zero
    for reach in REACHES:
        scale = largest / np.float32(half * reach)
        for turn in range(_FITS + 1):
            scale = scale.astype(dtype).astype(np.float32)
            q = _integers(x, scale, half)
            away = q * scale[..., None] - x
            error: np.ndarray = np.einsum("rgn,rgn,gn->rg", away, away, weights)
            better = error < least  # never where the error is NaN, of a scale that cannot be stored
            best, least = np.where(better, scale, best), np.where(better, error, least)
            if turn < _FITS:
                square: np.ndarray = np.einsum("rgn,rgn,gn->rg", q, q, weights)
                scale = np.einsum("rgn,rgn,gn->rg", q, x, weights) / np.where(square == 0, np.float32(1), square)
    return best


def _integers(x: np.ndarray, scale: np.ndarray, half: int) -> np.ndarray:
    """The nearest integers from -half to half - 1, float32."""
    inverse = 1 / np.where(scale == 0, np.float32(1), scale)
    return np.clip(np.rint(x * inverse[..., None]), -half, half - 1)
