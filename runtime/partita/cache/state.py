"""The quantized rotating key-value cache: one class, one write path, for every kind of layer.

Slots carry positions. Attention is a sum over slots, so their order never matters: nothing is ever moved, and what a
query sees is decided by one rule from positions alone:

    a query at q sees the slot at p  iff  0 <= p <= q and (p > q - window or p < sinks)

A window of W is W keys, the query's own included. The first `sinks` tokens of a row are kept for ever, unquantized; the
others go round a ring of `window + max(slack, chunk - 1)` slots, so that writing first and attending afterwards gives
every query of a chunk the same keys as any other chunking would. Sinks are scored by a query rotated at
min(q, sinks + window - 1): they stay where they were just before the ring began to turn, at any length (the rule of
arXiv 2309.17453, applied to the query, so that stored keys keep their rotation). The last slot of every buffer takes
what must go nowhere (padding, sinks on their way past the ring); its position is always -1. Arrays are made, written
and lengthened in `buffers`.

Positions and indices are device arrays and buffers grow in blocks, so a decode step has static shapes. The host keeps a
mirror of each row's length, and never reads the device to know it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Array
from ..backend import MASKED, Backend, Sinks
from ..brief import Brief
from ..errors import ContextError
from ..model.config import RopeConfig
from ..model.rope import RopeTable
from .buffers import Buffers, Store, Track
from .spec import CacheSpec, LayerSpec, Span, bytes_per_token


@dataclass(frozen=True)
class _View(Brief):
    """Where this step writes and what its queries see, for one kind of layer. None: nothing to write there."""

    ring_index: Array | None
    sink_index: Array | None
    ring_mask: Array
    sink_mask: Array | None
    anchored: dict[RopeConfig, tuple[Array, Array]]
    """Angles of the anchored queries; empty while no query is past the anchor."""


@dataclass(frozen=True)
class Kind:
    """What a step does to one kind of layer, as far as it decides which operations run."""

    writes_sinks: bool
    writes_ring: bool
    anchored: bool


@dataclass(frozen=True)
class Step:
    """What the host knows of a step: equal steps on equal shapes run the same operations.

    lengths: real tokens of each row, None where all are. kinds: in the order of the cache's spans.
    """

    tokens: int
    lengths: tuple[int, ...] | None
    kinds: tuple[Kind, ...]


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


class Cache:
    """Keys and values of `batch` rows. See the module's docstring for the rules."""

    def __init__(self, ops: Backend, spec: CacheSpec, batch: int = 1):
        self.ops, self.spec, self.batch = ops, spec, batch
        self._ropes = {rope: RopeTable(ops, rope) for rope in dict.fromkeys(x.rope for x in spec.layers) if rope}
        self._store = Store(ops, spec.kv)
        self.dense = self._store.dense
        self.reset()

    def __repr__(self) -> str:
        context = "no limit" if self.spec.context is None else f"context {self.spec.context}"
        return f"Cache(tokens {list(self.offsets)}, {context}, kv {self.spec.kv}, {self.nbytes} bytes)"

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        self.offsets = [0] * self.batch
        self._reached = [0] * self.batch  # furthest ever written: what lies a ring behind it is overwritten
        self._next = self.ops.zeros((self.batch,), "int32")
        spans = dict.fromkeys(layer.span for layer in self.spec.layers)
        self._capacity = {span: self.spec.slots(span, 0) for span in spans}
        self._tracks = {span: self._new_track(span) for span in spans}
        self._layers = [self._new_buffers(layer) for layer in self.spec.layers]
        self._views: dict[Span, _View] = {}
        self._angles: dict[RopeConfig, tuple[Array, Array]] = {}

    # What is held

    @property
    def nbytes(self) -> int:
        """Bytes of every array held, positions included."""
        return sum(int(array.nbytes) for array in self.arrays())

    def arrays(self) -> list[Array]:
        """Every device array of the state."""
        found: list[Array] = []
        self._each(lambda array: found.append(array) or array)
        return found

    @property
    def rope_size(self) -> tuple[int, ...]:
        """Blocks of the rotary tables, which grow with the longest row."""
        return tuple(table.blocks for table in self._ropes.values())

    def hold(self, arrays: Sequence[Array]) -> None:
        """Take these arrays, in the order of `arrays()`, as the state."""
        following = iter(arrays)
        self._each(lambda _: next(following))

    def _each(self, change: Callable[[Array], Array]) -> None:
        """Replace every device array of the state by what `change` makes of it, always in the same order."""

        self._next = change(self._next)
        for track in self._tracks.values():
            track.map(change)
        for buffers in self._layers:
            buffers.map(change)

    def bytes_per_token(self) -> float:
        """Bytes that one more token in the ring costs, over all layers."""
        return bytes_per_token(self.spec)

    def slots(self, row: int = 0) -> Slots:
        """Tokens in the sinks and in the window of the full-attention layers (or of the only kind there is)."""
        span = max(self._tracks, key=lambda s: (s.window is None, s.window or 0))
        length = self.offsets[row]
        sinks = min(length, span.sinks)
        window = length - sinks if span.window is None else min(length - sinks, span.window)
        total = self.spec.context or length
        return Slots(sinks, window, max(total - sinks - window, 0))

    # One step: advance, then attend once a layer

    def advance(self, tokens: int, lengths: Sequence[int] | None = None) -> None:
        """Reserve the next positions of every row for a step of `tokens` new ones, and decide what its queries see.

        lengths: how many of them are real in each row (the rest is padding at the end); all, if None.
        Raises ContextError when the step is longer than the chunk that the ring was made for.
        """
        self.begin_step(self.reserve(tokens, lengths))

    def reserve(self, tokens: int, lengths: Sequence[int] | None = None) -> Step:
        """The host's half of `advance`: grow, move the mirror on, and say which kind of step this is."""
        if tokens > self.spec.chunk:
            raise ContextError(f"a step of {tokens} tokens is longer than the cache's chunk of {self.spec.chunk}")
        counts = [tokens] * self.batch if lengths is None else list(lengths)
        first, after = min(self.offsets), [o + n for o, n in zip(self.offsets, counts, strict=True)]
        end = max(after)
        self._grow(end)
        for table in self._ropes.values():
            table.reserve(end + tokens)  # padding is rotated too, past the end
        self.offsets = after
        self._reached = [max(r, a) for r, a in zip(self._reached, after, strict=True)]
        kinds = tuple(
            Kind(
                writes_sinks=first < span.sinks,
                writes_ring=end > span.sinks,
                anchored=span.anchor is not None and span.sinks > 0 and end - 1 > span.anchor,
            )
            for span in self._tracks
        )
        return Step(tokens, None if min(counts) == tokens else tuple(counts), kinds)

    def begin_step(self, step: Step) -> None:
        """The device's half: positions, where to write, and masks. Depends on `step` and device arrays alone."""
        ops, tokens = self.ops, step.tokens
        index = ops.array(np.arange(tokens, dtype=np.int32))[None, :]
        positions = queries = self._next[:, None] + index  # B T
        if step.lengths is None:
            self._next = self._next + tokens
        else:
            lengths = ops.array(np.asarray(step.lengths, np.int32))
            positions = ops.where(index < lengths[:, None], positions, -1)
            self._next = self._next + lengths
        self._angles = {rope: table.angles(queries) for rope, table in self._ropes.items()}
        self._views = {
            span: self._view(span, kind, positions, queries)
            for span, kind in zip(self._tracks, step.kinds, strict=True)
        }

    def _view(self, span: Span, kind: Kind, positions: Array, queries: Array) -> _View:
        ops, track, ring = self.ops, self._tracks[span], self.spec.ring(span)
        spare = self._capacity[span] - 1
        sink_index = ring_index = sink_mask = None
        q = positions[:, :, None]  # B T 1
        if (held := track.sinks) is not None:
            if kind.writes_sinks:
                kept = (positions >= 0) & (positions < span.sinks)
                sink_index = ops.where(kept, positions, span.sinks)
                held = track.sinks = self._store.mark(held, ops.where(kept, positions, -1), sink_index)
            p = held[:, None]  # B 1 S+1
            sink_mask = ops.where((p >= 0) & (p <= q), 0.0, MASKED)
        if kind.writes_ring:
            turning = positions >= span.sinks
            slot = positions - span.sinks
            slot = slot if ring is None else slot % ring
            ring_index = ops.where(turning, slot, spare)
            track.ring = self._store.mark(track.ring, ops.where(turning, positions, -1), ring_index)
        p = track.ring[:, None, :]  # B 1 C
        seen = (p >= 0) & (p <= q)
        if span.window is not None:
            seen = seen & (p > q - span.window)
        anchored = {}
        if kind.anchored and (anchor := span.anchor) is not None:
            clamped = ops.where(queries < anchor, queries, anchor)
            used = {layer.rope for layer in self.spec.layers if layer.span == span}
            anchored = {rope: self._ropes[rope].angles(clamped) for rope in used if rope}
        return _View(ring_index, sink_index, ops.where(seen, 0.0, MASKED), sink_mask, anchored)

    def attend(self, layer: int, q: Array, k: Array, v: Array, sink_logits: Array | None = None) -> Array:
        """Rotate, write, then attend: what this layer's queries see, (B, Hq, T, D).

        q (B, Hq, T, D) and k, v (B, Hkv, T, D) of the step announced by `advance`, before rotation. sink_logits: the
        layer's learned ones, float32 (Hq,).
        """
        ops, spec, buffers = self.ops, self.spec.layers[layer], self._layers[layer]
        view, anchored = self._views[spec.span], None
        if spec.rope is not None:  # else scores do not depend on distance, and there is nothing to anchor
            angles = self._angles[spec.rope]
            anchored = ops.rope(q, *view.anchored[spec.rope]) if view.anchored else None
            q, k = ops.rope(q, *angles), ops.rope(k, *angles)
        if self.spec.kv.hadamard:  # orthonormal on both sides of every product: scores and sums stay what they were
            q, k, v = ops.hadamard(q), ops.hadamard(k), ops.hadamard(v)
            anchored = None if anchored is None else ops.hadamard(anchored)
        if view.sink_index is not None:
            assert buffers.sink_k is not None  # only who has sinks has their index
            assert buffers.sink_v is not None
            buffers.sink_k = ops.write(buffers.sink_k, k, view.sink_index)
            buffers.sink_v = ops.write(buffers.sink_v, v, view.sink_index)
        if view.ring_index is not None:
            buffers.k = self._store.write(buffers.k, k, view.ring_index)
            buffers.v = self._store.write(buffers.v, v, view.ring_index)
        sinks = None
        if view.sink_mask is not None:
            assert buffers.sink_k is not None
            assert buffers.sink_v is not None
            sinks = Sinks(q if anchored is None else anchored, buffers.sink_k, buffers.sink_v, view.sink_mask)
        out = ops.cached_attention(
            q,
            buffers.k,
            buffers.v,
            view.ring_mask,
            scale=spec.scale,
            sinks=sinks,
            softcap=spec.softcap,
            sink_logits=sink_logits,
        )
        return ops.hadamard(out) if self.spec.kv.hadamard else out

    # Taking back

    def trim(self, tokens: int) -> None:
        """Take the last `tokens` of every row back, exactly, as if they had never been written.

        Raises ContextError when a position that the new end sees has been overwritten, or the row is shorter.
        """
        ends = [offset - tokens for offset in self.offsets]
        if tokens < 0 or min(ends) < 0:
            raise ContextError(f"cannot take back {tokens} of {min(self.offsets)} tokens")
        if not self.can_trim(tokens):
            raise ContextError(f"cannot take back {tokens} tokens: what the ring held before them is overwritten")
        # Slots are left as they are: a position past the end is seen by no query (p <= q) until it is written again,
        # and it is written to the very slot that holds it now.
        self.offsets = ends
        self._next = self._next - tokens
        if all(max(ends) <= span.sinks for span in self._tracks):
            self._empty_rings()

    def _empty_rings(self) -> None:
        """Rows that were taken back into their sinks: nothing is overwritten any more, and rings give memory back."""
        end, where = self._next[:, None], self.ops.where
        for span, track in self._tracks.items():
            self._capacity[span] = self.spec.slots(span, max(self.offsets))
            track.ring = self._new_track(span).ring
            track.sinks = None if track.sinks is None else where(track.sinks < end, track.sinks, -1)
        for layer, buffers in zip(self.spec.layers, self._layers, strict=True):
            empty = self._new_buffers(layer)
            buffers.k, buffers.v = empty.k, empty.v
        self._reached = list(self.offsets)

    def can_trim(self, tokens: int) -> bool:
        """Whether every position visible after taking `tokens` back is still held."""
        return self.state().can_trim(tokens)

    # State as data

    def state(self) -> Snapshot:
        """What the cache holds now, in the cache's own memory: to be read before the next write."""
        return Snapshot(self.spec, tuple(self.offsets), tuple(self._reached), self.arrays())

    def snapshot(self) -> Snapshot:
        """What the cache holds now, in memory of its own: later writes do not change it."""
        return replace(self.state(), arrays=[self.ops.copy(array) for array in self.arrays()])

    def restore(self, snapshot: Snapshot) -> None:
        """Hold what a snapshot holds. Raises ContextError for one of another layout."""
        if snapshot.spec != self.spec or len(snapshot.offsets) != self.batch:
            raise ContextError("this snapshot was taken from a cache of another layout")
        self.offsets, self._reached = list(snapshot.offsets), list(snapshot.reached)
        arrays = iter(snapshot.arrays)
        self._each(lambda _: self.ops.copy(next(arrays)))
        self._capacity = {span: track.ring.shape[1] for span, track in self._tracks.items()}

    # Rows

    def filter(self, rows: Sequence[int]) -> None:
        """Hold these rows only, in this order."""
        index = self.ops.array(np.asarray(rows, np.int32))
        self._each(lambda array: self.ops.take(array, index, 0))
        self.offsets = [self.offsets[row] for row in rows]
        self._reached = [self._reached[row] for row in rows]
        self.batch = len(rows)

    def extend(self, other: Cache) -> None:
        """Add the rows of another cache of the same layout behind this one's. The other must not be used afterwards.

        Raises ContextError for another layout.
        """
        if other.spec != self.spec:
            raise ContextError("a cache can be extended by rows of its own layout only")
        furthest = max(*self._reached, *other._reached)
        self._grow(furthest)
        other._grow(furthest)
        theirs = iter(other.arrays())
        self._each(lambda array: self.ops.concat([array, next(theirs)], 0))
        self.offsets += other.offsets
        self._reached += other._reached
        self.batch += other.batch

    # Memory

    def _grow(self, tokens: int) -> None:
        for span, capacity in self._capacity.items():
            wanted = self.spec.slots(span, tokens)
            if wanted <= capacity:
                continue
            more = wanted - capacity
            self._store.lengthen_track(self._tracks[span], more, self.batch)
            for layer, buffers in zip(self.spec.layers, self._layers, strict=True):
                if layer.span == span:
                    self._store.lengthen(buffers, layer, more, self.batch)
            self._capacity[span] = wanted

    def _new_track(self, span: Span) -> Track:
        return self._store.track(span, self._capacity[span], self.batch)

    def _new_buffers(self, layer: LayerSpec) -> Buffers:
        return self._store.buffers(layer, self._capacity[layer.span], self.batch)
