"""What processes that train together tell each other, all of it through the sums of a `Group`.

Data parallel: each has the whole model and its share of every batch. Not here: launching, which is torchrun's and
mlx.launch's; waiting, which the group bounds. Invariants: every process makes the same calls in the same order,
whatever its share holds; alone, nothing is sent and nothing costs anything.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..errors import DataError
from ..group import Group
from .buckets import grouped
from .state import Best, TrainState

BUCKET = 2**22  # numbers that are sent at once: few messages, and little memory beside the gradients
_PARTS = ("values", "m", "v")


class DataParallel:
    """The processes of a run, as this one sees them. ops: whose arrays the group sums."""

    def __init__(self, ops: Backend, group: Group):
        self.ops, self.group = ops, group

    @property
    def alone(self) -> bool:
        return self.group.world_size == 1

    def counts(self, *counts: int) -> list[int]:
        """Each summed over the processes; below 2**31."""
        if self.alone:
            return list(counts)
        return [int(x) for x in self._sum(np.asarray(counts, np.int32))]

    def number(self, x: float) -> float:
        """x summed over the processes, rounded to float32."""
        return x if self.alone else float(self._sum(np.asarray([x], np.float32))[0])

    def gradients(self, grads: dict[str, Array], share: float) -> None:
        """Make each gradient the sum of `share` times the gradient of every process."""
        if self.alone:
            return
        ops, group = self.ops, self.group
        ops.launch(*grads.values())
        ops.sync()  # what this process has to compute is no part of the time that the group waits
        for names in grouped(((name, _size(grads[name].shape)) for name in sorted(grads)), BUCKET):
            shapes = [tuple(grads[name].shape) for name in names]
            flat = ops.concat([grads.pop(name).reshape(-1) * share for name in names], 0)
            total, start = group.all_sum(flat), 0
            group.wait(total)  # before the next is sent: one is in memory at a time
            for name, shape in zip(names, shapes, strict=True):
                grads[name] = total[start : start + _size(shape)].reshape(shape)
                start += _size(shape)

    def agree(self, about: Any) -> None:
        """Raise DataError in every process where `about`, for JSON, is not the same in all."""
        if self.alone:
            return
        mine = zlib.crc32(json.dumps(about, sort_keys=True).encode()) & 0x7FFFFFFF
        group = self.group
        (first,) = self.counts(mine if group.rank == 0 else 0)
        others = self.counts(*(int(rank == group.rank and mine != first) for rank in range(group.world_size)))
        if any(others):
            raise DataError(
                f"process {others.index(1)} of {group.world_size} was given other data or settings than the first: "
                "start all of them with the same model, data and flags"
            )

    def state(self, state: TrainState | None) -> TrainState | None:
        """That of the first process, in every one."""
        if self.alone:
            return state
        first = self.group.rank == 0
        said = b"" if state is None or not first else json.dumps(_described(state)).encode()
        (length,) = self.counts(len(said))
        if not length:
            return None
        text = np.frombuffer(said, np.uint8) if first else np.zeros(length, np.uint8)
        described = json.loads(self._sum(text.astype(np.int32)).astype(np.uint8).tobytes())
        arrays: dict[str, dict[str, np.ndarray]] = {part: {} for part in _PARTS}
        for part in _PARTS:
            shapes = {name: tuple(shape) for name, shape in described[part].items()}
            for names in grouped(((name, _size(shape)) for name, shape in shapes.items()), BUCKET):
                mine = [getattr(state, part)[name].reshape(-1) for name in names] if first else None
                count = sum(_size(shapes[name]) for name in names)
                flat, start = self._sum(np.zeros(count, np.float32) if mine is None else np.concatenate(mine)), 0
                for name in names:
                    size = _size(shapes[name])
                    arrays[part][name] = flat[start : start + size].reshape(shapes[name]).copy()
                    start += size
        best = described.pop("best")
        rest: dict[str, Any] = {**described, **arrays}
        return TrainState(**rest, best=None if best is None else Best(**best))

    def barrier(self) -> None:
        """Until every process is here."""
        self.counts(0)

    def _sum(self, x: np.ndarray) -> np.ndarray:
        total = self.group.all_sum(self.ops.array(x))
        self.group.wait(total)
        return self.ops.to_numpy(total)


def _described(state: TrainState) -> dict[str, Any]:
    """Everything of a state but its arrays, of which the shapes."""
    shapes: dict[str, Mapping[str, Any]] = {
        part: {name: list(x.shape) for name, x in getattr(state, part).items()} for part in _PARTS
    }
    best = None if state.best is None else asdict(state.best)
    rest = {"step": state.step, "position": state.position, "identity": dict(state.identity)}
    return {**rest, "random": dict(state.random), "best": best, "tokens": state.tokens, **shapes}


def _size(shape: Iterable[int]) -> int:
    return int(np.prod(tuple(shape), dtype=np.int64))
