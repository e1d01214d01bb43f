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
from .room import full
from .row import Row


def choose(
    ops: Backend, logits: Array, sampler: Sampler, rows: Sequence[Row | None], executor: Executor
) -> list[Event]:
    """Go on by a token in every row (None: nobody's) by float32 logits (B, V), under the rows' rules."""
    ruled, events = _ruled(ops, logits, rows)
    return events + _take(ops, _choice(ops, logits, ruled, sampler, rows), rows, executor)


def _ruled(ops: Backend, logits: Array, rows: Sequence[Row | None]) -> tuple[Array, list[Event]]:
    """Logits under the rows' rules, and what the rules have to report."""
    events, rules = list[Event](), dict[int, np.ndarray]()
    for place, row in enumerate(rows):
        if row is not None and row.ruled:
            events += row.guarded(row.settle)
            if not row.ended:
                rules[place] = row.rule()
    if not rules:
        return logits, events
    free = np.zeros(logits.shape[-1], np.float32)
    return logits + ops.array(np.stack([rules.get(place, free) for place in range(len(rows))])), events


def _choice(ops: Backend, logits: Array, ruled: Array, sampler: Sampler, rows: Sequence[Row | None]) -> Choice:
    most = max((row.request.alternatives for row in rows if row is not None), default=0)
    return Choice(ops, logits, sampler(ruled), None, most)


def _take(ops: Backend, choice: Choice, rows: Sequence[Row | None], executor: Executor) -> list[Event]:
    """Read a choice, and go on in those rows that have not ended."""
    read, events = choice.read(), list[Event]()
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
    more. ahead: on devices that compute while the host goes on, a step that has been built, and for which rows.
    """

    model: LanguageModel
    cache: Cache
    sampler: Sampler
    rows: list[Row | None]
    spare: int = 0
    ahead: tuple[Choice, list[Row | None]] | None = None
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
        """What another bucket is to `put`. To be read before the next step; the slot is to be removed. Nothing may be
        ahead (`flush`), as for `resized`."""
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
        """Decode a token in every row, or all that are forced in the only one.

        As in `decode`: where the device computes while the host builds, the step that follows is built before this one
        is read. A row that has come in between has no part in what was built before, and waits for one step.
        """
        ops, forced = self.model.ops, self._forced()
        if forced:
            return self._step_forced(forced, executor)
        events: list[Event] = []
        if self.ahead is None:
            self._rewind()
            logits = self.runner.decode(ops.array(self._last()))
            ruled, events = _ruled(ops, logits, self.rows)
            self.ahead = _choice(ops, logits, ruled, self.sampler, self.rows), list(self.rows)
        following = self._following(*self.ahead) if self._goes_ahead() else None
        events += self.flush(executor)
        if following is not None and any(not row.ended for _, row in self.live):
            following[0].start()
            self.ahead = following
        return events

    def flush(self, executor: Executor) -> list[Event]:
        """Read what is ahead: then the last token of every row is in no cache yet."""
        if self.ahead is None:
            return []
        (choice, rows), self.ahead = self.ahead, None
        there = [row if row is now else None for row, now in zip(rows, self.rows, strict=True)]
        return _take(self.model.ops, choice, there, executor)

    @property
    def outgrown(self) -> list[int]:
        """Slots of rows without room for another token."""
        if self.cache.room == full(self.cache.spec):
            return []
        return [slot for slot, _ in self.live if self.cache.offsets[slot] >= self.cache.room]

    def _goes_ahead(self) -> bool:
        rows = [row for _, row in self.live]
        if not self.model.ops.asynchronous or self.outgrown or any(row.ruled for row in rows):
            return False
        return any(row.left > 1 for row in rows)

    def _following(self, choice: Choice, rows: list[Row | None]) -> tuple[Choice, list[Row | None]]:
        """The step behind a choice that has not been read."""
        ops, tokens = self.model.ops, choice.tokens
        new = [row is not None and row is not before for row, before in zip(self.rows, rows, strict=True)]
        if any(new):
            tokens = ops.where(ops.array(np.asarray(new)), ops.array(self._last()), tokens)
        self._rewind()
        logits = self.runner.decode(tokens)
        return _choice(ops, logits, logits, self.sampler, self.rows), list(self.rows)

    def _last(self) -> np.ndarray:
        """The last token of every row, int32 (B,)."""
        return np.asarray([0 if row is None else row.tokens[-1] for row in self.rows], np.int32)

    def _step_forced(self, forced: list[int], executor: Executor) -> list[Event]:
        logits, events = self.runner.logits(np.asarray([[*self._last(), *forced]], np.int32)), list[Event]()
        for token, (_, row) in ((token, live) for token in forced for live in self.live):
            events += row.guarded(lambda row=row, token=token: row.take(Generated(token, 0.0), executor))
        self.sampler.accept(forced)
        return events + choose(self.model.ops, logits, self.sampler, self.rows, executor)

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
