"""The rows of a cache: their arrays and lengths; rows that come, go and are moved; all of it as data.

Not here: what a step writes and what its queries see (`state`). Invariant: every device array has an axis of rows, and
all arrays are always met in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..errors import ContextError
from ..model.rope import RopeTable
from .buffers import Buffers, Change, Store
from .sinks import SinkKeys
from .snapshot import Snapshot
from .spec import CacheSpec, LayerSpec, Span
from .states import States


class Rows:
    """`batch` rows, empty at first. room: tokens of a row that there is memory for from the start. offsets: tokens of
    each row."""

    def __init__(self, ops: Backend, spec: CacheSpec, batch: int, *, room: int):
        self.ops, self.spec, self.batch, self.room = ops, spec, batch, room
        ropes = dict.fromkeys(layer.rope for layer in spec.attention.values())
        self._ropes = {rope: RopeTable(ops, rope) for rope in ropes if rope}
        self._store = Store(ops, spec.kv)
        self.reset()

    def reset(self) -> None:
        """Forget everything and give back the memory beyond `room`."""
        self.offsets = [0] * self.batch
        self._reached = [0] * self.batch  # furthest ever written: what lies a ring behind it is overwritten
        self._next = self.ops.zeros((self.batch,), "int32")
        self._capacity = {span: self.spec.slots(span, self.room) for span in self.spec.spans}
        self._positions = {span: self._new_positions(span) for span in self.spec.spans}
        self._sink_keys = SinkKeys(self.ops, self.spec, self._store, self._ropes, self.batch)
        self._layers = {i: self._new_buffers(layer) for i, layer in self.spec.attention.items()}
        self._states = States(self.ops, self.spec, self.batch)

    # What is held

    @property
    def nbytes(self) -> int:
        """Bytes of every array held, positions and checkpoints included."""
        return sum(int(array.nbytes) for array in self.arrays()) + self._states.nbytes

    @property
    def reached(self) -> tuple[int, ...]:
        """Of each row, the most tokens that it ever had: what lies a ring behind them is overwritten."""
        return tuple(self._reached)

    @property
    def capacity(self) -> dict[Span, int]:
        """Slots behind the sinks that there is memory for, by the kind of layer: those that are ever used."""
        rings = {span: self.spec.ring(span) for span in self._capacity}
        usable = {span: capacity - 1 for span, capacity in self._capacity.items()}  # one takes what must go nowhere
        return {span: min(usable[span], ring or usable[span]) for span, ring in rings.items()}

    def arrays(self) -> list[Array]:
        """Every device array of the state."""
        found: list[Array] = []
        self._each(lambda array, rows, slots: found.append(array) or array)
        return found

    def hold(self, arrays: Sequence[Array]) -> None:
        """Take these arrays, in the order of `arrays()`, as the state."""
        following = iter(arrays)
        self._each(lambda _, rows, slots: next(following))

    def _each(self, change: Change, *, of: Callable[[Span], Change] | None = None) -> None:
        """Replace every device array of the state by what `change` makes of it, always in the same order. of: what
        makes those with the slots of a span, where that is another change."""
        self._next = change(self._next, 0, 0)

        def made(span: Span) -> Change:
            return change if of is None else of(span)

        self._positions = {span: made(span)(positions, 0, 1) for span, positions in self._positions.items()}
        self._sink_keys.map(change)
        for i, buffers in self._layers.items():
            buffers.map(made(self.spec.attention[i].span), change)
        self._states.map(change)

    # State as data

    def state(self) -> Snapshot:
        """What the cache holds now, in the cache's own memory: to be read before the next write."""
        checkpoints = tuple(map(dict, self._states.checkpoints))
        return Snapshot(self.spec, tuple(self.offsets), tuple(self._reached), self.arrays(), checkpoints)

    def snapshot(self) -> Snapshot:
        """What the cache holds now, in memory of its own: later writes do not change it."""
        return replace(self.state(), arrays=[self.ops.copy(array) for array in self.arrays()])

    def restore(self, snapshot: Snapshot) -> None:
        """Hold what a snapshot holds. Raises ContextError for one of another layout."""
        if snapshot.spec != self.spec or len(snapshot.offsets) != self.batch:
            raise ContextError("this snapshot was taken from a cache of another layout")
        if self.room and self.batch == 1:
            self.put(0, snapshot)
            return
        self.offsets, self._reached = list(snapshot.offsets), list(snapshot.reached)
        arrays = iter(snapshot.arrays)
        self._each(lambda _, rows, slots: self.ops.copy(next(arrays)))
        self._states.hold_checkpoints(map(snapshot.checkpoints_of, range(self.batch)))
        self._capacity = {span: positions.shape[1] - span.sinks for span, positions in self._positions.items()}

    # Rows

    def filter(self, rows: Sequence[int]) -> None:
        """Hold these rows only, in this order."""
        index = self.ops.array(np.asarray(rows, np.int32))
        self._each(lambda array, rows, _: self.ops.take(array, index, rows))
        self.offsets = [self.offsets[row] for row in rows]
        self._reached = [self._reached[row] for row in rows]
        self._states.hold_checkpoints(self._states.checkpoints[row] for row in rows)
        self.batch = len(rows)

    def extend(self, other: Rows) -> None:
        """Add the rows of another cache of the same layout behind this one's. The other must not be used afterwards.

        Raises ContextError for another layout.
        """
        if other.spec != self.spec:
            raise ContextError("a cache can be extended by rows of its own layout only")
        wanted = {span: max(held, other._capacity[span]) for span, held in self._capacity.items()}
        self._grow(wanted)
        other._grow(wanted)
        theirs = iter(other.arrays())
        self._each(lambda array, rows, _: self.ops.concat([array, next(theirs)], rows))
        self.offsets += other.offsets
        self._reached += other._reached
        self._states.hold_checkpoints([*self._states.checkpoints, *other._states.checkpoints])
        self.batch += other.batch

    def row(self, row: int) -> Snapshot:
        """What one row holds, in the cache's own memory where it can be, without slots that it has never reached: to be
        read before the next write."""
        reached, found = self._reached[row], list[Array]()

        def part(unused: int) -> Change:
            def change(array: Array, rows: int, slots: int) -> Array:
                index = [slice(None)] * len(array.shape)
                if unused:
                    index[slots] = slice(array.shape[slots] - unused)
                index[rows] = slice(row, row + 1)
                found.append(array[tuple(index)])
                return array

            return change

        unused = {span: capacity - self.spec.slots(span, reached) for span, capacity in self._capacity.items()}
        self._each(part(0), of=lambda span: part(unused[span]))
        return Snapshot(self.spec, (self.offsets[row],), (reached,), found, (dict(self._states.checkpoints[row]),))

    def put(self, row: int, snapshot: Snapshot) -> None:
        """Hold a snapshot of one row in place of a row, the others staying where they are.

        Raises ContextError for one of another layout.
        """
        if snapshot.spec != self.spec or len(snapshot.offsets) != 1:
            raise ContextError("this snapshot was taken from a cache of another layout")
        self._grow({span: self.spec.slots(span, snapshot.reached[0]) for span in self._capacity})
        self.drop(row)
        arrays = iter(snapshot.arrays)

        def change(array: Array, rows: int, slots: int) -> Array:
            start = [0] * len(array.shape)
            start[rows] = row
            return self.ops.place(array, next(arrays), start)

        self._each(change)
        self._states.checkpoints[row] = dict(snapshot.checkpoints_of(0))
        self.offsets[row], self._reached[row] = snapshot.offsets[0], snapshot.reached[0]

    def drop(self, row: int) -> None:
        """Empty a row. It goes on behind sinks that nobody sees: so a step of the others stays the step that it was."""
        ops = self.ops
        self.offsets[row] = self._reached[row] = max((span.sinks for span in self._positions), default=0)
        self._next = ops.assign(self._next, ops.array(np.asarray(self.offsets, np.int32)))
        emptied = ops.array((np.arange(self.batch) == row)[:, None])
        for span, held in self._positions.items():
            self._positions[span] = ops.assign(held, ops.where(emptied, -1, held))
        self._states.empty(row)

    # Memory

    def _grow(self, slots: Mapping[Span, int]) -> None:
        for span, wanted in slots.items():
            more = wanted - self._capacity[span]
            if more <= 0:
                continue
            new = self._store.positions(more, self.batch)
            self._positions[span] = self.ops.concat([self._positions[span], new], 1)
            for i, buffers in self._layers.items():
                if (layer := self.spec.attention[i]).span == span:
                    self._store.lengthen(buffers, layer, more, self.batch)
            self._capacity[span] = wanted

    def _new_positions(self, span: Span) -> Array:
        return self._store.positions(span.sinks + self._capacity[span], self.batch)

    def _new_buffers(self, layer: LayerSpec) -> Buffers:
        return self._store.buffers(layer, self._capacity[layer.span], self.batch)
