"""What a cache holds, as data: its whole state, and how full it is."""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays import Array
from ..brief import Brief
from .spec import CacheSpec


@dataclass(frozen=True)
class Slots:
    """How full a ring is, for people to see. In tokens."""

    sinks: int
    window: int
    free: int


@dataclass(frozen=True)
class Snapshot(Brief):
    """State of a cache as data. arrays: in the order of `Cache.arrays`. offsets, reached: tokens, a row each."""

    spec: CacheSpec
    offsets: tuple[int, ...]
    reached: tuple[int, ...]
    arrays: list[Array]

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self.arrays)

    def can_trim(self, tokens: int) -> bool:
        """Whether every position visible after taking `tokens` back is still held."""
        for span in {layer.span for layer in self.spec.layers}:
            ring = self.spec.ring(span)
            if ring is None or span.window is None:
                continue
            for offset, reached in zip(self.offsets, self.reached, strict=True):
                end = offset - tokens
                oldest_seen = max(span.sinks, end - span.window + 1)
                if oldest_seen < min(reached - ring, end):
                    return False
        return True
