"""How a ring of keys and values lies in arrays: as few as can be, since each is written once a step.

Dense ones that are stored alike are one array (2, B, H, C, D), keys first: both are one write, and each is a view.
Packed ones are `PackedPair`; what is stored in two ways is `Sides`. Knows no slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic

from .arrays import A
from .brief import Brief
from .quantization import Packed


@dataclass(frozen=True)
class PackedPair(Brief, Generic[A]):
    """Packed keys and values of a ring. k, v: words (B, H, C, D * bits / 32). scales, biases: float16 (2, B, H, C, D /
    group_size), of keys and of values: one array each, so that both are written at once."""

    k: A
    v: A
    scales: A
    biases: A
    bits: tuple[int, int]
    group_size: int

    def map(self, change: Callable[[A, int, int], A]) -> PackedPair[A]:
        """The same with `change` applied to each array: its axes of rows and of slots are told."""
        k, v = change(self.k, 0, 2), change(self.v, 0, 2)
        scales, biases = change(self.scales, 1, 3), change(self.biases, 1, 3)
        return replace(self, k=k, v=v, scales=scales, biases=biases)

    def sides(self) -> tuple[Packed[A], Packed[A]]:
        """Keys and values (B, H, C, D), of the same memory."""
        first, second = (
            Packed(words, part(self.scales, i), part(self.biases, i), self.bits[i], self.group_size)
            for i, words in enumerate((self.k, self.v))
        )
        return first, second


@dataclass(frozen=True)
class Sides(Brief, Generic[A]):
    """Keys and values of a ring that are stored in two ways: (B, H, C, D) each, dense or `Packed`."""

    k: A | Packed[A]
    v: A | Packed[A]

    def map(self, change: Callable[[A, int, int], A]) -> Sides[A]:
        """As `PackedPair.map`."""

        def changed(side: A | Packed[A]) -> A | Packed[A]:
            return side.map(lambda part: change(part, 0, 2)) if isinstance(side, Packed) else change(side, 0, 2)

        return Sides(changed(self.k), changed(self.v))

    def sides(self) -> tuple[A | Packed[A], A | Packed[A]]:
        return self.k, self.v


Ring = A | PackedPair[A] | Sides[A]


def sides(kv: Ring[A]) -> tuple[A | Packed[A], A | Packed[A]]:
    """Keys and values (B, H, C, D) of a ring, arrays or `Packed`, of the same memory."""
    return kv.sides() if isinstance(kv, PackedPair | Sides) else (part(kv, 0), part(kv, 1))


def part(x: Any, place: int) -> Any:
    """One of the first axis. An integer as the index would be a copy on MLX."""
    return x[place : place + 1].reshape(x.shape[1:])


def mapped(kv: Ring[A], change: Callable[[A, int, int], A]) -> Ring[A]:
    """A ring with `change` applied to each of its arrays, always in the same order: (array, its axis of rows, its axis
    of slots)."""
    return kv.map(change) if isinstance(kv, PackedPair | Sides) else change(kv, 1, 3)


def cut(kv: Any, count: int) -> Any:
    """The first `count` slots of a ring, of the same memory where a library has views."""
    return mapped(kv, lambda array, _, slots: array[(slice(None),) * slots + (slice(count),)])


def joined(kv: Ring[A], k: Any, v: Any, stack: Callable[[list[Any]], A]) -> Ring[A]:
    """A ring like kv of keys and values (`sides`)."""
    if isinstance(kv, PackedPair):
        grids = [stack([first, second]) for first, second in zip(k.grid, v.grid, strict=True)]
        return replace(kv, k=k.weight, v=v.weight, scales=grids[0], biases=grids[1])
    return Sides(k, v) if isinstance(kv, Sides) else stack([k, v])
