"""A prompt that is being read, in a cache of its own, and which one is read next, by how much. Not here: rows that
decode.

The one with the fewest tokens left goes first, so that a question does not wait for a document; what others were given
in the meantime counts for those that waited, so that a document is read too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np

from ..arrays import Array
from ..cache.prefix_cache import PrefixCache
from ..cache.prefix_reuse import Reuse
from ..cache.snapshot import Snapshot
from ..cache.spec import CacheSpec
from ..cache.state import Cache
from ..inference.runner import ModelRunner
from ..inference.sampling import Sampler
from .bucket import choose
from .matcher import Matcher
from .request import Event, Progress
from .room import AHEAD, room
from .row import Row

AGEING = 4  # so many tokens read for others make up for one that is left
LEAST = 17  # tokens of a chunk: 16 or fewer may be rounded as a decode step is (docs/design.md, Precision)
SECONDS = 0.125  # of a chunk beside rows that wait for it
ALONE = 0.5  # and where nobody waits: what a cancellation or another prompt may have to


@dataclass(eq=False)
class Reading:
    """done: tokens of the prompt in the cache, `reused` of them from before. passed: tokens read for others meanwhile.

    sampler: of the row that will be. clock: seconds.
    """

    row: Row
    spec: CacheSpec
    prefixes: PrefixCache | None
    matcher: Future[Matcher] | None
    clock: Callable[[], float] = time.perf_counter
    done: int = 0
    reused: int = 0
    passed: int = 0
    cache: Cache | None = None
    sampler: Sampler = field(init=False)

    @property
    def prompt(self) -> Sequence[int]:
        return self.row.request.prompt

    @property
    def left(self) -> int:
        return len(self.prompt) - self.done

    @property
    def held(self) -> Snapshot | None:
        """What the cache holds."""
        return None if self.cache is None else self.cache.row(0)

    @property
    def nbytes(self) -> int:
        return 0 if self.cache is None else self.cache.nbytes

    def begin(self) -> Cache:
        """A cache that holds as much of the prompt as is found in earlier ones."""
        if self.cache is None:
            model = self.row.model
            size = room(self.spec, len(self.prompt) + min(self.row.left, AHEAD))
            self.cache = Cache(model.ops, self.spec, room=size)
            self._reuse = Reuse(self.prefixes, model.fingerprint + model.adapter, model.tokenizer.stop_ids)
            self.done = self.reused = self._reuse.align(self.cache, [], self.prompt)
            self.sampler = Sampler(model.ops, self.row.request.sampling, model.config.vocab_size, self.prompt)
        return self.cache

    def read(self, count: int, executor: Executor) -> list[Event]:
        """Read so many tokens more, and behind the last one choose the first of the reply: what there is to report."""
        cache, ops, begun = self.begin(), self.row.model.ops, self.clock()
        runner = ModelRunner(ops, self.row.model.decoder, cache)
        pause = next((pause for pause in self._reuse.pauses if pause > self.done), len(self.prompt))
        end = min(self.done + count, pause)
        tokens = np.asarray([self.prompt[self.done : end]], np.int32)
        if end < len(self.prompt):
            runner.feed(tokens)
            ops.sync()
            events: list[Event] = []
        else:
            events = self._first(runner.logits(tokens), executor)
        self.done = end
        self._reuse.fed(cache, self.prompt[:end])
        seconds = self.clock() - begun
        return [Progress(self.row.id, end, len(self.prompt), self.reused, seconds), *events]

    def finish(self) -> Cache:
        """The whole prompt has been read: keep it for others, where that is worth a copy. The cache goes elsewhere."""
        cache = self.begin()
        if not self.row.ended:
            self._reuse.read(cache, self.prompt, self.row.left)
        return cache

    def _first(self, logits: Array, executor: Executor) -> list[Event]:
        row, found = self.row, self.matcher
        if found is not None:
            events = row.guarded(lambda: row.begin(found.result(), executor))
            if row.ended:
                return events
        else:
            events = []
        return events + choose(row.model.ops, logits, self.sampler, [row], executor)


def next_of(readings: Sequence[Reading]) -> Reading:
    """The one whose turn it is; one that has been read before all others."""
    return min(readings, key=lambda reading: (reading.left > 0, reading.left - reading.passed / AGEING))


@dataclass
class Pace:
    """How fast prompts are read, as measured: a chunk's tokens follow from it."""

    chunk: int
    speed: float | None = None
    """Tokens a second."""

    def tokens(self, *, alone: bool) -> int:
        """Of the next chunk. alone: nobody waits for it."""
        least = min(LEAST, self.chunk)
        if self.speed is None:
            return min(2 * LEAST, self.chunk)
        return round(min(max(self.speed * (ALONE if alone else SECONDS), least), self.chunk))

    def observe(self, tokens: int, seconds: float) -> None:
        if tokens < min(LEAST, self.chunk):
            return  # the end of a prompt says little of how long a chunk takes
        speed = tokens / max(seconds, 1e-6)
        self.speed = speed if self.speed is None else (self.speed + speed) / 2

    @property
    def seconds(self) -> float:
        """What a chunk is predicted to take."""
        return SECONDS if self.speed is None else max(LEAST / self.speed, SECONDS)
