"""Packed arrays of small floats, MLX's modes "nvfp4", "mxfp4" and "mxfp8": what cannot be one of them, and the same
numbers for who knows integers and dense arrays alone.

    mode    a value                       values a group    its multiplier
    nvfp4   E2M1, 4 bits                  16                E4M3, and a float32 factor where there is one
    mxfp4   E2M1, 4 bits                  32                E8M0: 2**(e - 127)
    mxfp8   E4M3, 8 bits                  32                E8M0

Not here: what a code and a multiplier stand for (`quantization.dequantize`), files. Invariant: `without_codes` gives
the numbers of `dequantize` bit for bit, but for the sign of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from .errors import CheckpointError
from .quantization import AFFINE, MXFP8, NVFP4, Packed, dequantize, multipliers, pack, require_known, small_floats

CENTRED_BITS = 5
"""Twice a 4-bit float is an integer from -12 to 12: with 16 added it takes 5 bits, and the bias is -16 * scale, which
needs no storage where a format knows integers around a middle."""
_LARGEST = {4: 251, 8: 246}
"""Of E8M0 codes, by the bits of values: beyond it products with integers, or values, pass float32's range."""
_LEAST_EXACT = 3
"""Of E8M0 codes, for 8-bit floats: from here on bfloat16 holds every E4M3 value times the multiplier."""
_VALUES = 1 << 20  # made at a time


def check(packed: Packed, what: str) -> Packed:
    """What was given. CheckpointError, beginning with `what`: a multiplier, a factor or a value is no finite number."""
    scales = packed.scales
    if packed.mode == NVFP4:
        if _nan(scales):
            raise CheckpointError(f"{what}: an NVFP4 scale is NaN")
    elif scales.max(initial=0) > _LARGEST[packed.bits]:
        exponent = int(scales.max()) - 127
        raise CheckpointError(f"{what}: an {packed.mode.upper()} scale of 2**{exponent} is out of range")
    if packed.factors is not None and not np.isfinite(packed.factors).all():
        raise CheckpointError(f"{what}: a global scale is not finite")
    if packed.mode == MXFP8 and _nan(np.ascontiguousarray(packed.weight).view(np.uint8)):
        raise CheckpointError(f"{what}: a value is NaN")
    return packed


def _nan(codes: np.ndarray) -> bool:
    """Whether a code of E4M3 is NaN."""
    return bool(((codes & 0x7F) == 0x7F).any())


def without_codes(packed: Packed) -> Packed | np.ndarray:
    """The same numbers, exactly, in what every backend knows; an affine array as it is.

    4-bit floats become affine integers of 5 bits in the same groups, scales in bfloat16, which holds them. No integers
    of 8 bits hold 8-bit floats: they become dense, bfloat16 where it holds each value, else float32.
    ValueError: there are factors, which no affine array has. UnsupportedModel: a mode that is not known.
    """
    if require_known(packed, "weights").mode == AFFINE:
        return packed
    if packed.factors is not None:
        raise ValueError("factors of rows are for who asks")
    return _dense(packed) if packed.bits == 8 else _centred(packed)


def _centred(packed: Packed) -> Packed:
    *leading, n = packed.shape
    words = np.empty((*leading, n * CENTRED_BITS // 32), "<u4")
    rows = words.reshape(-1, words.shape[-1])
    both = _both_of_a_byte((2 * small_floats(4) + 16).astype(np.uint8))
    for place, part in _parts(packed):
        stream = np.ascontiguousarray(part.weight).view(np.uint8)
        rows[place] = pack(both[stream].view(np.uint8), CENTRED_BITS)
    step = multipliers(packed) / 2
    scales, biases = (part.astype(ml_dtypes.bfloat16) for part in (step, step * -16))
    return Packed(words, scales, biases, CENTRED_BITS, packed.group_size)


def _both_of_a_byte(table: np.ndarray) -> np.ndarray:
    """For each byte, the bytes of a table at its low and its high half, as one uint16: (256,)."""
    byte = np.arange(256)
    return np.stack([table[byte & 15], table[byte >> 4]], -1).view("<u2")[:, 0]


def exact_dtype(packed: Packed) -> np.dtype:
    """Of a dense array that holds the values exactly: bfloat16 for small floats without factors, unless the least
    multipliers are there; float32 for all others, which has what `dequantize` computes."""
    exact = packed.mode != AFFINE and packed.factors is None
    least = packed.bits == 8 and packed.scales.min(initial=255) < _LEAST_EXACT
    return np.dtype(ml_dtypes.bfloat16) if exact and not least else np.dtype(np.float32)


def _dense(packed: Packed) -> np.ndarray:
    sure = packed.scales.min(initial=255) >= _LEAST_EXACT
    result = np.empty(packed.shape, ml_dtypes.bfloat16)
    rows = result.reshape(-1, packed.shape[-1])
    for place, part in _parts(packed):
        found = dequantize(part)
        rows[place] = found
        if not sure and not np.array_equal(rows[place].astype(np.float32), found, equal_nan=True):
            return dequantize(packed)
    return result


def _parts(packed: Packed) -> Iterator[tuple[slice, Packed[Any]]]:
    """Some rows at a time, all leading dimensions in one."""
    flat = packed.map(lambda part: part.reshape(-1, part.shape[-1]))
    step = max(_VALUES // max(packed.shape[-1], 1), 1)
    for start in range(0, len(flat.scales), step):
        place = slice(start, start + step)
        yield place, flat.map(lambda part, place=place: part[place])
