"""What a cache holds, as data: its whole state, and how full it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..arrays import Array
from ..brief import Brief
from .spec import CacheSpec
from .states import Checkpoint, checkpoint_bytes


@dataclass(frozen=True)
class Slots:
    """How full a ring is, for people to see. In tokens."""

    sinks: int
    window: int
    free: int


@dataclass(frozen=True)
class Snapshot(Brief):
    """State of a cache as data. arrays: in the order of `Cache.arrays`. offsets, reached: tokens, a row each.
    checkpoints: of each row's recurrent layers, by the tokens that it had."""

    spec: CacheSpec
    offsets: tuple[int, ...]
    reached: tuple[int, ...]
    arrays: list[Array]
    checkpoints: tuple[Mapping[int, Checkpoint], ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self.arrays) + checkpoint_bytes(self.checkpoints)

    def checkpoints_of(self, row: int) -> Mapping[int, Checkpoint]:
        return self.checkpoints[row] if self.checkpoints else {}

    def can_trim(self, tokens: int) -> bool:
        """Whether `tokens` can be taken back from every row: what is visible then is still held, and recurrent layers
        have a checkpoint there."""
        if not self.sees(tokens):
            return False
        ends = [offset - tokens for offset in self.offsets]
        known = ({0, offset, *self.checkpoints_of(row)} for row, offset in enumerate(self.offsets))
        return not self.spec.recurrent or all(end in held for end, held in zip(ends, known, strict=True))

    def sees(self, tokens: int) -> bool:
        """Whether every position visible after taking `tokens` back is still held."""
        for span in self.spec.spans:
            ring = self.spec.ring(span)
            if ring is None or span.window is None:
                continue
            for offset, reached in zip(self.offsets, self.reached, strict=True):
                end = offset - tokens
                oldest_seen = max(span.sinks, end - span.window + 1)
                if oldest_seen < min(reached - ring, end):
                    return False
        return True
