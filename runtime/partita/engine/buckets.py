"""All rows that decode, in buckets by adapter and class of length. Not here: a bucket's step, prompts.

A row joins the first bucket of its kind with a free slot, else the smallest that may be doubled, else it is one by
itself; it is moved when it outgrows its class. A bucket that has been half empty for a while is halved.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor

from ..cache.snapshot import Snapshot
from ..cache.spec import CacheSpec, cache_bytes
from ..cache.state import Cache
from ..inference.sampling import Sampler
from .bucket import Bucket
from .request import Event
from .room import AHEAD, BUCKET_BYTES, MAX_ROWS, room
from .row import Row

PATIENCE = 32  # steps


class Buckets:
    """spec: of every cache. executor: of masks."""

    def __init__(self, spec: CacheSpec, executor: Executor):
        self._spec, self._executor = spec, executor
        self._told: list[Event] = []
        self._buckets: list[Bucket] = []

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets)

    @property
    def rows(self) -> list[Row]:
        return [row for bucket in self._buckets for _, row in bucket.live]

    def places(self) -> Iterator[tuple[Row, Cache, int]]:
        """Each row, the cache that it is in, and where in it."""
        return ((row, bucket.cache, slot) for bucket in self._buckets for slot, row in bucket.live)

    @property
    def nbytes(self) -> int:
        return sum(bucket.cache.nbytes for bucket in self._buckets)

    def join(self, row: Row, cache: Cache, sampler: Sampler) -> None:
        """Take in a row that is alone in its cache. Neither cache nor sampler must be used afterwards."""
        bucket = self._open(row, cache.room)
        if bucket is None:
            self._buckets.append(Bucket(row.model, cache, sampler, [row]))
        else:
            bucket.put(row, cache.row(0), sampler)

    def settle(self) -> None:
        """Rows that will be moved get to know their last token. Those that end by it are removed before `step`."""
        for bucket in self._buckets:
            if bucket.outgrown:
                self._flush(bucket)

    def step(self) -> list[Event]:
        """A token of every row: what there is to report."""
        while (bucket := next((bucket for bucket in self._buckets if bucket.outgrown), None)) is not None:
            self._move(bucket)  # which may double another one
        return [event for bucket in self._buckets for event in bucket.step(self._executor)]

    def told(self) -> list[Event]:
        """What was to be reported beside what `step` gave, in front of what that gives next."""
        told, self._told = self._told, []
        return told

    def _flush(self, bucket: Bucket) -> Bucket:
        self._told += bucket.flush(self._executor)
        return bucket

    def ended(self) -> Iterator[tuple[Row, Snapshot]]:
        """Remove rows that have ended: each with what it holds, which is to be read before the next."""
        for place, bucket in enumerate(self._buckets):
            ended = [(slot, row) for slot, row in bucket.live if row.ended]
            for slot, row in ended:
                yield row, bucket.cache.row(slot)
                bucket.remove(slot)
            if bucket.live and any(row.failed for _, row in ended):
                # what is not a number hides behind no mask: nothing of such a slot may stay
                self._buckets[place] = self._flush(bucket).resized(len(bucket.rows))
        self._buckets = [self._halved(bucket) for bucket in self._buckets if bucket.live]

    def _open(self, row: Row, size: int) -> Bucket | None:
        """A bucket of a row's kind with a free slot."""
        alike = [bucket for bucket in self._buckets if bucket.model is row.model and bucket.cache.room == size]
        found = next((bucket for bucket in alike if bucket.free is not None), None)
        least = min(alike, key=lambda bucket: len(bucket.rows), default=None)
        if found is not None or least is None:
            return found
        batch = 2 * len(least.rows)
        if batch > MAX_ROWS or cache_bytes(self._spec, size, batch) > BUCKET_BYTES:
            return None
        found = self._flush(least).resized(batch)
        self._buckets[self._buckets.index(least)] = found
        return found

    def _move(self, bucket: Bucket) -> None:
        """Rows that have no room for another token, to where they have."""
        outgrown, size = bucket.outgrown, room(self._spec, bucket.cache.room + AHEAD)
        for slot in outgrown:
            row, snapshot, sampler = bucket.taken_out(slot)
            target = self._open(row, size)
            if target is None:
                cache = Cache(row.model.ops, self._spec, room=size)
                cache.put(0, snapshot)
                self._buckets.append(Bucket(row.model, cache, sampler, [row]))
            else:
                target.put(row, snapshot, sampler)
            bucket.remove(slot)
        if not bucket.live:
            self._buckets.remove(bucket)

    def _halved(self, bucket: Bucket) -> Bucket:
        """The bucket, or one of half its slots in its place."""
        half = len(bucket.rows) // 2
        bucket.spare = bucket.spare + 1 if half and len(bucket.live) <= half else 0
        return self._flush(bucket).resized(half) if bucket.spare > PATIENCE else bucket
