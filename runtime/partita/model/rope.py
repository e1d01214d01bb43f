"""Rotary angles for any position, as exact at position 10,000,000 as at 10.

An angle computed in float32 as position * frequency is off by 0.06 rad at a million. Here a position is split as
1024 * high + low; cosines and sines of both parts come from small tables computed in float64 on the host, and the
angle sum is formed on the device: cos(a + b) = cos a cos b - sin a sin b. Positions stay device arrays, so a decode
step has a static shape. The tables grow with the conversation: 1/1024 of a plain table's size.
"""

from __future__ import annotations

import math

import numpy as np

from ..arrays import Array
from ..backend import Backend
from .config import RopeConfig

SPLIT = 1024


def inverse_frequencies(rope: RopeConfig) -> np.ndarray:
    """Radians per position, float64 (dims / 2,): theta ** (-2i / dims), scaled (arXiv 2104.09864).

    linear: positions divided by a factor (arXiv 2306.15595). llama3: long wavelengths divided, short ones kept, a
    smooth step between (Llama 3.1's published configuration). factors: one divisor a frequency, from the file;
    a pair with an infinite one does not turn.
    yarn: as llama3, with the step between two dims (arXiv 2309.00071).
    """
    frequencies = rope.theta ** (-np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims)
    match rope.scaling:
        case "default":
            return frequencies
        case "linear":
            return frequencies / rope.factor
        case "factors":
            return frequencies / np.asarray(rope.factors, np.float64)
        case "llama3":
            turns = rope.original_max_positions * frequencies / (2 * math.pi)  # turns within the original context
            kept = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
            return kept * frequencies + (1 - kept) * frequencies / rope.factor
        case "yarn":
            kept = 1 - _yarn_step(rope)
            return kept * frequencies + (1 - kept) * frequencies / rope.factor
        case _:
            raise ValueError(f"{rope.scaling} has no frequencies before RopeConfig.for_context")


def mean_rotation(rope: RopeConfig, positions: int) -> np.ndarray:
    """exp(i * angle) on average over positions 0 … positions - 1: complex128 (dims / 2,). Near 1 for pairs that hardly
    turn meanwhile, near 0 for those that turn often. The sum of a geometric series."""
    half = inverse_frequencies(rope) / 2
    turns = half != 0
    whole = np.divide(np.sin(positions * half), positions * np.sin(half), out=np.ones_like(half), where=turns)
    return whole * np.exp(1j * (positions - 1) * half)


def _yarn_step(rope: RopeConfig) -> np.ndarray:
    """0 for the pairs that keep their frequency, 1 for those that are divided by the factor, a line between them."""

    def pair(turns: float) -> float:
        """The pair, counted in fractions, that turns so often within the original context."""
        wavelength = rope.original_max_positions / turns
        return rope.dims * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    return np.clip((np.arange(rope.dims // 2) - low) / (high - low if high != low else 0.001), 0, 1)


def grown(ops: Backend, x: Array, heads: int, growth: Array | None) -> Array:
    """x (B, T, H, D) with its first `heads` heads, queries, times `RopeTable.growth` (B, T)."""
    if growth is None:
        return x
    return ops.concat([x[:, :, :heads] * ops.cast(growth, ops.dtype)[:, :, None, None], x[:, :, heads:]], 2)


class RopeTable:
    """Cosines and sines of one `RopeConfig` on one backend."""

    def __init__(self, ops: Backend, rope: RopeConfig):
        self._ops, self._rope = ops, rope
        self._frequencies = inverse_frequencies(rope)
        self._low = self._table(np.arange(SPLIT), 1.0)
        self._factor = rope.attention_factor  # in one of the two tables that are multiplied
        self.blocks = 0
        self._high = self._low

    def reserve(self, positions: int) -> None:
        """Make positions 0 … positions - 1 available. Called before a step; tables double, so shapes rarely change."""
        blocks = positions // SPLIT + 1
        if blocks > self.blocks:
            self.blocks = max(8, 1 << (blocks - 1).bit_length())
            self._high = self._table(np.arange(self.blocks) * SPLIT, self._factor)

    def angles(self, positions: Array) -> tuple[Array, Array]:
        """cos, sin: float32 (B, T, dims / 2), of int32 positions (B, T), each at least 0 and reserved; both times the
        attention factor."""
        ops = self._ops
        cos_a, sin_a = (ops.take(table, positions // SPLIT, 0) for table in self._high)
        cos_b, sin_b = (ops.take(table, positions % SPLIT, 0) for table in self._low)
        return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b

    def growth(self, positions: Array) -> Array | None:
        """float32 (B, T): what queries at positions (B, T) are multiplied by; None where nothing is."""
        if not self._rope.query_growth:
            return None
        past = self._ops.cast(positions // self._rope.original_max_positions, "float32")
        return self._rope.query_growth * self._ops.log(past + 1.0) + 1.0

    def mean_angles(self, positions: int) -> tuple[Array, Array]:
        """cos, sin as `angles` gives them, float32 (1, 1, dims / 2), on average over positions 0 … positions - 1."""
        mean = mean_rotation(self._rope, positions)[None, None] * self._factor
        cos, sin = (self._ops.array(part.astype(np.float32)) for part in (mean.real, mean.imag))
        return cos, sin

    def _table(self, positions: np.ndarray, factor: float) -> tuple[Array, Array]:
        angle = positions[:, None].astype(np.float64) * self._frequencies
        return (
            self._ops.array((np.cos(angle) * factor).astype(np.float32)),
            self._ops.array((np.sin(angle) * factor).astype(np.float32)),
        )
