"""Integers and scales as the bytes of a block, the other way round than `partita.checkpoint.gguf.blocks`, which says
what lies where. Invariant: `blocks.decode` of these bytes gives these integers and scales.

q: uint8 (blocks, values), from 0 on. s, m: integers (blocks, sub-blocks). d, e: float16 (blocks,), the scales' unit and
that of the minima. Results are uint8 (blocks, bytes).
"""

from __future__ import annotations

import numpy as np

_FOUR, _TWO = np.uint8(4), np.uint8(2)


def q4_k(q: np.ndarray, s: np.ndarray, m: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    return np.concatenate([_half(d), _half(e), _six_bit_pairs(s, m), _nibbles(q, 32)], axis=1)


def q5_k(q: np.ndarray, s: np.ndarray, m: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    parts = [_half(d), _half(e), _six_bit_pairs(s, m), _bits(q >> _FOUR, 8), _nibbles(q & np.uint8(15), 32)]
    return np.concatenate(parts, axis=1)


def q6_k(q: np.ndarray, s: np.ndarray, m: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    halves = (q & np.uint8(15)).reshape(-1, 2, 2, 64)
    low = (halves[:, :, 0] | (halves[:, :, 1] << _FOUR)).reshape(-1, 128)
    return np.concatenate([low, _twos(q >> _FOUR), s.astype(np.int8).view(np.uint8), _half(d)], axis=1)


def q3_k(q: np.ndarray, s: np.ndarray, m: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    six = (s + 32).astype(np.uint8)
    low, high = six & np.uint8(15), (six >> _FOUR).reshape(-1, 4, 4)
    top = high[:, 0] | (high[:, 1] << _TWO) | (high[:, 2] << _FOUR) | (high[:, 3] << np.uint8(6))
    scales = [low[:, :8] | (low[:, 8:] << _FOUR), top]
    return np.concatenate([_bits(q >> _TWO, 8), _twos(q & np.uint8(3)), *scales, _half(d)], axis=1)


def q2_k(q: np.ndarray, s: np.ndarray, m: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    both = s.astype(np.uint8) | (m.astype(np.uint8) << _FOUR)
    return np.concatenate([both, _twos(q), _half(d), _half(e)], axis=1)


def q4_0(q: np.ndarray, s: np.ndarray, m: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    return np.concatenate([_half(d), _nibbles(q, 16)], axis=1)


def q5_0(q: np.ndarray, s: np.ndarray, m: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    high = np.packbits(q >> _FOUR, axis=1, bitorder="little")
    return np.concatenate([_half(d), high, _nibbles(q & np.uint8(15), 16)], axis=1)


def q8_0(q: np.ndarray, s: np.ndarray, m: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    return np.concatenate([_half(d), q - np.uint8(127)], axis=1)


def _half(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype("<f2").view(np.uint8).reshape(-1, 2)


def _nibbles(q: np.ndarray, half: int) -> np.ndarray:
    """Of each 2 * half values, the first half in the low bits."""
    pairs = q.reshape(len(q), -1, 2, half)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << _FOUR)).reshape(len(q), -1)


def _twos(q: np.ndarray) -> np.ndarray:
    """Two bits of each of 256 values, as `blocks._pairs` reads them."""
    parts = q.reshape(-1, 2, 4, 32)
    packed = parts[:, :, 0] | (parts[:, :, 1] << _TWO) | (parts[:, :, 2] << _FOUR) | (parts[:, :, 3] << np.uint8(6))
    return packed.reshape(-1, 64)


def _bits(q: np.ndarray, groups: int) -> np.ndarray:
    """A bit of each value of groups of 32: bit g of byte j is that of value 32 g + j."""
    return np.packbits(q.reshape(len(q), groups, 32), axis=1, bitorder="little").reshape(len(q), 32)


def _six_bit_pairs(s: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima in 12 bytes: see `blocks._six_bit_pairs`."""
    s, m = s.astype(np.uint8), m.astype(np.uint8)
    first, second = (v[:, :4] | ((v[:, 4:] >> _FOUR) << np.uint8(6)) for v in (s, m))
    third = (s[:, 4:] & np.uint8(15)) | ((m[:, 4:] & np.uint8(15)) << _FOUR)
    return np.concatenate([first, second, third], axis=1)
