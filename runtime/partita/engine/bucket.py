"""Rows of like length that decode together in one cache. Not here: which rows those are (`engine`).

A cache has slots for a power of two of rows, and each of them room for the tokens of its class. A row is put into a
free slot and dropped from it in place: no other row is copied, shapes stay, and so does a step that was compiled for
them. What a free slot computes is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..cache.snapshot import Snapshot
from ..cache.state import Cache
from ..inference.runner import Choice, Generated, ModelRunner
from ..inference.sampling import Sampler, Sampling, not_finite
from ..language_model import LanguageModel
from .request import Event
from .row import Row


def choose(
    ops: Backend, logits: Array, sampler: Sampler, rows: Sequence[Row | None], executor: Executor
) -> list[Event]:
    """Go on by a token in every row (None: nobody's) by float32 logits (B, V), under the rows' rules."""
    events, rules = list[Event](), dict[int, np.ndarray]()
    for place, row in enumerate(rows):
        if row is not None and row.ruled:
            events += row.guarded(row.settle)
            if not row.ended:
                rules[place] = row.rule()
    ruled = logits
    if rules:
        free = np.zeros(logits.shape[-1], np.float32)
        ruled = logits + ops.array(np.stack([rules.get(place, free) for place in range(len(rows))]))
    most = max((row.request.alternatives for row in rows if row is not None), default=0)
    read = Choice(ops, logits, sampler(ruled), None, most).read()
    for place, row in enumerate(rows):
        if row is None or row.ended:
            continue
        if read.finite[place]:
            events += row.guarded(lambda row=row, place=place: row.take(read.generated(place, 0.0), executor))
        else:
            events += row.fail(not_finite(ops), "internal")
    return events


@dataclass(eq=False)
class Bucket:
    """rows: by slot, None where it is free. sampler: of all slots. spare: steps in a row with half of them free, or
    more."""

    model: LanguageModel
    cache: Cache
    sampler: Sampler
    rows: list[Row | None]
    spare: int = 0
    runner: ModelRunner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = ModelRunner(self.model.ops, self.model.decoder, self.cache)

    @property
    def live(self) -> list[tuple[int, Row]]:
        """Slots with a row, and the rows."""
        return [(slot, row) for slot, row in enumerate(self.rows) if row is not None]

    @property
    def free(self) -> int | None:
        """A slot without a row."""
        return next((slot for slot, row in enumerate(self.rows) if row is None), None)

    def put(self, row: Row, snapshot: Snapshot, sampler: Sampler) -> None:
        """Take a row in, into a slot that is free. The sampler must not be used afterwards."""
        slot = self.free
        assert slot is not None
        self.cache.put(slot, snapshot)
        self._replace(slot, row, sampler)

    def remove(self, slot: int) -> None:
        """Free a slot."""
        self.cache.drop(slot)
        self._replace(slot, None, _idle(self.model))

    def _replace(self, slot: int, row: Row | None, sampler: Sampler) -> None:
        batch, self.rows[slot] = len(self.rows), row
        self.sampler.extend(sampler)
        self.sampler.filter([batch if place == slot else place for place in range(batch)])

    def taken_out(self, slot: int) -> tuple[Row, Snapshot, Sampler]:
        """What another bucket is to `put`. To be read before the next step; the slot is to be removed."""
        row = self.rows[slot]
        assert row is not None
        alone = _idle(self.model, 0)
        alone.extend(self.sampler)
        alone.filter([slot])
        return row, self.cache.row(slot), alone

    def resized(self, batch: int) -> Bucket:
        """The same rows in so many slots. This bucket must not be used afterwards."""
        ops, places = self.model.ops, [slot for slot, _ in self.live]
        cache = Cache(ops, self.cache.spec, batch, room=self.cache.room)
        for place, slot in enumerate(places):
            cache.put(place, self.cache.row(slot))
        self.sampler.filter(places)
        self.sampler.extend(_idle(self.model, batch - len(places)))
        for slot in range(len(places), batch):
            cache.drop(slot)
        rows = [self.rows[slot] for slot in places]
        return Bucket(self.model, cache, self.sampler, [*rows, *[None] * (batch - len(rows))])

    # A step

    def step(self, executor: Executor) -> list[Event]:
        """Decode a token in every row, or all that are forced in the only one."""
        ops, last, forced = self.model.ops, [0 if row is None else row.tokens[-1] for row in self.rows], self._forced()
        if forced:
            logits = self.runner.logits(np.asarray([last + forced], np.int32))
        else:
            self._rewind()
            logits = self.runner.decode(ops.array(np.asarray(last, np.int32)))
        events: list[Event] = []
        for token, (_, row) in ((token, live) for token in forced for live in self.live):
            events += row.guarded(lambda row=row, token=token: row.take(Generated(token, 0.0), executor))
        if forced:
            self.sampler.accept(forced)
        return events + choose(ops, logits, self.sampler, self.rows, executor)

    def _forced(self) -> list[int]:
        """The tokens that can be fed behind the last one, where a chunk of them is a step of nobody else: another one
        is chosen after them."""
        row = self.rows[0]
        if len(self.rows) > 1 or row is None or row.request.alternatives or row.matcher is None:
            return []
        tokens = row.queued[:-1] if row.matcher.finished else row.queued
        stop = next((i for i, token in enumerate(tokens) if token in row.request.stop_ids), len(tokens))
        most = min(row.left - 1, self.cache.spec.chunk - 1, self.cache.room - self.cache.offsets[0] - 1)
        return tokens[: max(min(stop, most), 0)]

    def _rewind(self) -> None:
        """Free slots go on computing, within their room."""
        for slot, row in enumerate(self.rows):
            if row is None and self.cache.offsets[slot] >= self.cache.room:
                self.cache.drop(slot)


def _idle(model: LanguageModel, slots: int = 1) -> Sampler:
    """Of free slots."""
    return Sampler(model.ops, Sampling(), model.config.vocab_size, batch=slots)
