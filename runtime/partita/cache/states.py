"""What recurrent layers keep of each row: the last inputs of a convolution and a matrix a head, float32, whatever the
number of tokens; and the earlier states that a row can be taken back to.

A state says nothing of the tokens that made it, so none can be taken out of it: a row goes back to a checkpoint, a copy
of its states that was made between two steps, or, for what may be taken back at once (drafts), to the mark behind which
the inputs of these layers are kept, from which states are made again without the model. Not here: rings (`buffers`),
when a checkpoint is worth its memory (`prefix_reuse`). Invariant: a checkpoint is never written to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..arrays import Array
from ..backend import Backend
from .buffers import Change
from .spec import CacheSpec, RecurrentSpec

Checkpoint = tuple[Array, ...]
"""The states of one row, in the order of `States.arrays`."""


@dataclass
class _State:
    """Of one layer. tail: (B, K - 1, C), what its convolution has read last. matrix: (B, Hv, Dv, Dk) or None."""

    tail: Array
    matrix: Array | None


@dataclass
class _Inputs:
    """What one layer has been given since a mark, step after step: for its convolution, and for its matrix q, k, v,
    decay and beta."""

    read: list[Array] = field(default_factory=list[Array])
    delta: list[tuple[Array, ...]] = field(default_factory=list[tuple[Array, ...]])


@dataclass
class _Mark:
    """States of all rows at their offsets. inputs: by layer, or None where they are not kept."""

    offsets: list[int]
    states: list[Array]
    inputs: dict[int, _Inputs] | None


class States:
    """Of `batch` rows, empty at first. checkpoints: of each row, by the tokens that it had."""

    def __init__(self, ops: Backend, spec: CacheSpec, batch: int):
        self._ops, self._spec = ops, spec
        self._layers = {i: self._empty(layer, batch) for i, layer in spec.recurrent.items()}
        self.checkpoints: list[dict[int, Checkpoint]] = [{} for _ in range(batch)]
        self._mark: _Mark | None = None
        self._lengths: Array | None = None
        self._real: Array | None = None

    def _empty(self, layer: RecurrentSpec, batch: int) -> _State:
        zeros = self._ops.zeros
        matrix = zeros((batch, *layer.matrix), "float32") if layer.matrix else None
        return _State(zeros((batch, *layer.tail), "float32"), matrix)

    @property
    def nbytes(self) -> int:
        """Of checkpoints."""
        return checkpoint_bytes(self.checkpoints)

    def arrays(self) -> list[Array]:
        found: list[Array] = []
        self.map(lambda array, rows, slots: found.append(array) or array)
        return found

    def map(self, change: Change) -> None:
        """Replace every array by what `change` makes of it; there are no slots."""
        for state in self._layers.values():
            state.tail = change(state.tail, 0, 0)
            state.matrix = None if state.matrix is None else change(state.matrix, 0, 0)

    def _hold(self, arrays: Sequence[Array]) -> None:
        following = iter(arrays)
        self.map(lambda _, rows, slots: next(following))

    # A step

    def begin_step(self, index: Array, lengths: Array | None) -> None:
        """index: int32 (1, T), places in the step. lengths: int32 (B,), real tokens of each row; all, if None."""
        self._lengths = lengths
        self._real = None if lengths is None else (index < lengths[:, None])[:, :, None]

    def causal_conv(self, layer: int, x: Array, weight: Array, bias: Array | None) -> Array:
        """As in `SequenceState`."""
        ops, state = self._ops, self._layers[layer]
        y, tail = ops.causal_conv(x, weight, state.tail, bias=bias, lengths=self._lengths)
        if (kept := self._kept(layer)) is not None:
            kept.read.append(x)
        state.tail = self._put(state.tail, tail)
        return y

    def gated_delta(self, layer: int, q: Array, k: Array, v: Array, decay: Array, beta: Array) -> Array:
        """As in `SequenceState`. Padding forgets nothing and writes nothing."""
        ops, state = self._ops, self._layers[layer]
        assert state.matrix is not None
        if self._real is not None:
            decay, beta = (ops.where(self._real, part, 0.0) for part in (decay, beta))
        y, matrix = ops.gated_delta(q, k, v, decay, beta, state.matrix)
        if (kept := self._kept(layer)) is not None:
            kept.delta.append((q, k, v, decay, beta))
        state.matrix = self._put(state.matrix, matrix)
        return y

    def _put(self, old: Array, new: Array) -> Array:
        """In the old one's memory, unless that is a mark's."""
        return new if self._mark is not None and self._mark.inputs is not None else self._ops.assign(old, new)

    def _kept(self, layer: int) -> _Inputs | None:
        if self._mark is None or self._mark.inputs is None:
            return None
        return self._mark.inputs.setdefault(layer, _Inputs())

    # Taking back

    def checkpoint(self, offsets: Sequence[int]) -> None:
        """Keep what every row has now."""
        if not self._layers:
            return
        for row, offset in enumerate(offsets):
            if offset not in self.checkpoints[row]:
                held = tuple(self._ops.copy(array[row : row + 1]) for array in self.arrays())
                self.checkpoints[row][offset] = held
                _thin(self.checkpoints[row], self._spec.checkpoints)

    def mark(self, offsets: Sequence[int], *, inputs: bool) -> None:
        """Rows can be taken back to here until the next mark. inputs: and to any token behind it, by what the steps
        that follow are given; these must not be compiled, and have no padding."""
        if self._layers:
            states = self.arrays() if inputs else [self._ops.copy(array) for array in self.arrays()]
            self._mark = _Mark(list(offsets), states, {} if inputs else None)

    def unmark(self) -> None:
        self._mark = None

    def hold_checkpoints(self, rows: Iterable[Mapping[int, Checkpoint]]) -> None:
        """Of the rows that there are now."""
        self.checkpoints, self._mark = list(map(dict, rows)), None

    def is_marked(self, ends: Sequence[int]) -> bool:
        """Whether rows can be taken back to these tokens by the mark."""
        mark = self._mark
        if mark is None:
            return not self._layers
        behind = [end - offset for end, offset in zip(ends, mark.offsets, strict=True)]
        return min(behind) >= 0 if mark.inputs is not None and len(set(behind)) == 1 else not any(behind)

    def trim(self, offsets: Sequence[int], ends: Sequence[int]) -> None:
        """Take rows back to tokens that they can be taken back to."""
        if not self._layers or list(offsets) == list(ends):
            return
        if self.is_marked(ends):
            self._replay(ends[0])
        else:
            for row, end in enumerate(ends):
                self._restore(row, end)
        for row, end in enumerate(ends):
            self.checkpoints[row] = {at: held for at, held in self.checkpoints[row].items() if at <= end}

    def empty(self, row: int) -> None:
        """Forget a row."""
        self.checkpoints[row], self._mark = {}, None
        self._restore(row, 0)

    def _restore(self, row: int, end: int) -> None:
        held = iter(self.checkpoints[row].get(end, ()))

        def change(array: Array, rows: int, slots: int) -> Array:
            was = self._ops.zeros((1, *array.shape[1:]), "float32") if end == 0 else next(held)
            return self._ops.place(array, was, [row, *[0] * (len(array.shape) - 1)])

        self.map(change)

    def _replay(self, end: int) -> None:
        """From the mark on, as many tokens as are kept."""
        ops, mark = self._ops, self._mark
        assert mark is not None
        count = end - mark.offsets[0]
        self._hold(mark.states if mark.inputs is not None else [ops.copy(array) for array in mark.states])
        for layer, kept in (mark.inputs or {}).items():
            state = self._layers[layer]
            read = ops.concat([ops.cast(part, "float32") for part in kept.read], 1)[:, :count]
            state.tail = ops.concat([state.tail, read], 1)[:, count:]
            kept.read = [read]
            if kept.delta:
                q, k, v, decay, beta = (ops.concat(steps, 1)[:, :count] for steps in zip(*kept.delta, strict=True))
                kept.delta = [(q, k, v, decay, beta)]
                if count and state.matrix is not None:
                    state.matrix = ops.gated_delta(q, k, v, decay, beta, state.matrix)[1]


def _thin(checkpoints: dict[int, Checkpoint], most: int) -> None:
    """Drop one where there are too many: never the latest, and the one whose loss costs least, a few tokens that lie
    far back."""
    if len(checkpoints) <= most:
        return
    places = sorted(checkpoints)
    before = np.asarray([0, *places[:-2]])
    between = np.asarray(places[:-1])
    del checkpoints[places[int(np.argmin((between - before) / (places[-1] - between)))]]


def checkpoint_bytes(checkpoints: Sequence[Mapping[int, Checkpoint]]) -> int:
    """Of some rows."""
    return sum(int(array.nbytes) for row in checkpoints for held in row.values() for array in held)
