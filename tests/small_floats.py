"""Packed arrays of small floats for tests: any code, multipliers that keep values near those of a weight."""

from __future__ import annotations

import numpy as np

from partita.quantization import NVFP4, SMALL_FLOATS, Packed

KINDS = (("nvfp4", False), ("nvfp4", True), ("mxfp4", False), ("mxfp8", False))
"""Modes, each with whether rows have factors."""
_FROM, _TO = {"nvfp4": 1, "mxfp4": 120, "mxfp8": 114}, {"nvfp4": 44, "mxfp4": 126, "mxfp8": 120}
NO_NUMBER = (0x7F, 0xFF)


def small_floats(mode: str, *shape: int, factors: bool = False, seed: int = 0) -> Packed:
    """Random codes, all of them finite. factors: one number for all rows of a matrix."""
    rng, (bits, group) = np.random.default_rng(seed), SMALL_FLOATS[mode]
    *leading, n = shape
    codes = rng.integers(0, 256, (*leading, n * bits // 8), np.uint8)
    if bits == 8:
        codes[np.isin(codes, NO_NUMBER)] = 0
    scales = rng.integers(_FROM[mode], _TO[mode], (*leading, n // group), np.uint8)
    if mode == NVFP4:
        scales[..., :1] |= 0x80  # which is negative
    every = rng.random((*leading[:-1], 1, 1), np.float32) + np.float32(0.3)
    whole = np.ascontiguousarray(np.broadcast_to(every, (*leading, 1))) if factors else None
    return Packed(codes.view("<u4"), scales, None, bits, group, mode, whole)
