"""Weights kept as integers with a scale, and mostly a zero point, for so many columns: what their packings share.

A value is (q - zero) * scale. As a `Packed` it is q * scale + bias with bias = -zero * scale, which float32 holds
exactly for scales of 16 bits and zero points of 8; where the dtype of the scales holds every bias exactly, as it does
for a zero point that is a power of two, both stay in it.

Not here: where a format keeps its integers. Invariants: integers are those of the files; a scale that more columns
share than a group of `Packed` has stands beside each of its groups; what has no such groups (fewer columns than 32 to a
scale, or columns that take their scales in another order) is made dense, in the dtype that config.json names, and
`stored_as` says so.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from ...errors import CheckpointError
from ...quantization import Packed, pack, unpack
from .affine import BITS, GROUP_SIZES
from .stored import ReadTensor, StoredWeight

FLOATS = ("F16", "BF16", "F32")
"""What scales are kept in."""


@dataclass(frozen=True)
class Integers:
    """words: uint32, (*leading, words of a row), one stream of bits a row. scales: float, (*leading, groups). zeros:
    what stands for zero, (*leading, groups), or one number for all. order: the group of each column, (in,), where it is
    not the one that the column's place says."""

    words: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | int
    order: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class IntegerWeight(StoredWeight):
    """bits: of an integer in the files. step: columns that share a scale there. ordered: whether columns take their
    scales in an order of their own. dtype: of what is made dense."""

    bits: int
    step: int
    dtype: np.dtype
    ordered: bool = False

    @abstractmethod
    def integers(self, tensor: ReadTensor) -> Integers:
        """What the files hold. CheckpointError: a number that cannot be."""

    def read(self, tensor: ReadTensor) -> np.ndarray | Packed:
        found = self.integers(tensor)
        group = None if self.ordered else group_for(self.shape[-1], self.step)
        if group is None:
            return self._dense(found)
        scales, biases = grid(found.scales, found.zeros)
        if found.scales.shape[-1] * self.step != self.shape[-1] or self.step != group:
            owner = np.arange(0, self.shape[-1], group) // self.step
            scales, biases = scales[..., owner], biases[..., owner]
        bits = width(self.bits)
        words = found.words if bits == self.bits else pack(self._unpacked(found.words), bits)
        return Packed(words, np.ascontiguousarray(scales), np.ascontiguousarray(biases), bits, group)

    def _dense(self, found: Integers) -> np.ndarray:
        columns = np.arange(self.shape[-1])
        order = columns // self.step if found.order is None else found.order
        values = self._unpacked(found.words).astype(np.float32)
        zeros = found.zeros if isinstance(found.zeros, int) else found.zeros[..., order]
        values -= np.float32(zeros) if isinstance(zeros, int) else zeros.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            values *= found.scales.astype(np.float32)[..., order]
            return values.astype(self.dtype, copy=False)

    def _unpacked(self, words: np.ndarray) -> np.ndarray:
        """uint8 (*leading, in)."""
        whole = -words.shape[-1] % self.bits  # a row of words that eight integers fill
        if whole:
            words = np.concatenate([words, np.zeros((*words.shape[:-1], whole), words.dtype)], -1)
        return unpack(words, self.bits)[..., : self.shape[-1]]


def group_for(size: int, step: int) -> int | None:
    """The largest groups of `Packed` in a row of `size` whose columns share a scale, where `step` columns do."""
    return next((g for g in reversed(GROUP_SIZES) if step % g == 0 and size % g == 0), None)


def width(bits: int) -> int:
    """Bits of the narrowest integers of `Packed` that hold those of so many bits."""
    return next(wide for wide in BITS if wide >= bits)


def stored_as(bits: int, size: int, step: int, *, ordered: bool = False) -> str:
    """See `StoredWeight.stored_as`: "4-bit:128" of what is read packed, "INT4" of what is read dense."""
    group = None if ordered else group_for(size, step)
    return f"INT{bits}" if group is None else f"{width(bits)}-bit:{group}"


def grid(scales: np.ndarray, zeros: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """(scales, biases) of `Packed`, in the dtype of the scales where it holds every bias exactly, else in float32."""
    wide = scales.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        biases = -wide * (np.float32(zeros) if isinstance(zeros, int) else zeros.astype(np.float32))
        narrow = biases.astype(scales.dtype)
    return (scales, narrow) if np.array_equal(narrow.astype(np.float32), biases) else (wide, biases)


def in_order(index: np.ndarray, size: int, step: int, groups: int, what: str) -> np.ndarray | None:
    """The group of each column, as a file lists them (in,); None where each is the one that its place says.

    CheckpointError, naming `what`: a group that there is not.
    """
    if index.shape != (size,) or index.min(initial=0) < 0 or index.max(initial=0) >= groups:
        raise CheckpointError(f"{what}: its {index.size} columns do not take their scales from {groups} groups")
    return None if np.array_equal(index, np.arange(size) // step) else index.astype(np.int64)
