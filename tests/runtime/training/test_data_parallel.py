"""What processes that train together tell each other: several threads, each with a group, in place of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from partita.errors import DataError
from partita.group import Alone
from partita.training import data_parallel
from partita.training.data_parallel import DataParallel
from partita.training.state import Best, TrainState
from partita_backends.numpy import NumpyBackend


class Member:
    """A `Group` of one of `world_size` threads that sum through a table they share. It counts what is waited for."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier):
        self.rank, self.world_size = rank, len(table)
        self.waited = 0
        self._table, self._barrier = table, barrier

    def all_sum(self, x: np.ndarray) -> np.ndarray:
        parts = self._parts(x)
        total = sum(parts[1:], parts[0])
        assert total.dtype == x.dtype
        return total

    def all_gather(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate(self._parts(x))

    def wait(self, *arrays: np.ndarray) -> None:
        self.waited += len(arrays)

    def _parts(self, x: np.ndarray) -> list[np.ndarray]:
        self._table[self.rank] = x
        self._barrier.wait(10)
        parts = list(self._table)
        self._barrier.wait(10)
        return parts


def together(function: Callable[[DataParallel], Any], world_size: int = 3) -> list[Any]:
    """What the function gives in each of several processes."""
    table, barrier = [None] * world_size, threading.Barrier(world_size)

    def member(rank: int) -> Any:
        return function(DataParallel(NumpyBackend(dtype="float32"), Member(rank, table, barrier)))

    with ThreadPoolExecutor(world_size) as pool:
        running = [pool.submit(member, rank) for rank in range(world_size)]
        return [each.result() for each in running]


def state() -> TrainState:
    random = np.random.default_rng(0)
    parts = [
        {name: random.standard_normal(shape).astype(np.float32) for name, shape in (("a", (3, 2)), ("b", ()), ("c", 7))}
        for _ in range(3)
    ]
    position = {"epoch": 1, "index": 4, "data": "é"}
    return TrainState(9, *parts, position, {"rank": 4}, {"dropout": [0, 10]}, Best(5, 1.5, 2), 123)


@pytest.mark.parametrize("bucket", [1, 5, 2**22])
def test_gradients_are_weighted_sums(monkeypatch: pytest.MonkeyPatch, bucket: int) -> None:
    monkeypatch.setattr(data_parallel, "BUCKET", bucket)

    def run(processes: DataParallel) -> dict[str, np.ndarray]:
        rank = processes.group.rank
        grads = {name: np.full(shape, rank + 1, np.float32) for name, shape in (("b", (2, 3)), ("a", ()), ("c", 4))}
        processes.gradients(grads, 0.5 * rank)
        return grads

    for grads in together(run):
        assert {name: x.shape for name, x in grads.items()} == {"a": (), "b": (2, 3), "c": (4,)}
        assert all((x == 0.5 * 2 + 1.0 * 3).all() for x in grads.values())


@pytest.mark.parametrize("bucket", [1, 8, 2**22])
def test_the_first_state_is_everybodys(monkeypatch: pytest.MonkeyPatch, bucket: int) -> None:
    monkeypatch.setattr(data_parallel, "BUCKET", bucket)
    sent = state()
    for found in together(lambda processes: processes.state(sent if processes.group.rank == 0 else None)):
        assert (found.step, found.position, found.identity, found.random, found.best, found.tokens) == (
            *(sent.step, sent.position, sent.identity, sent.random, sent.best, sent.tokens),
        )
        for part in ("values", "m", "v"):
            assert list(getattr(found, part)) == list(getattr(sent, part))
            for name, x in getattr(sent, part).items():
                np.testing.assert_array_equal(getattr(found, part)[name], x)
                assert getattr(found, part)[name].shape == x.shape
    assert together(lambda processes: processes.state(None)) == [None] * 3


def test_sums_and_agreement() -> None:
    assert together(lambda processes: processes.counts(processes.group.rank, 2**29)) == [[3, 3 * 2**29]] * 3
    assert together(lambda processes: processes.number(0.5)) == [1.5] * 3
    together(lambda processes: processes.agree({"b": 1, "a": [2]}))

    def disagree(processes: DataParallel) -> str:
        with pytest.raises(DataError) as caught:
            processes.agree({"seed": int(processes.group.rank == 1)})
        return str(caught.value)

    assert all(text.startswith("process 1 of 3 was given other data") for text in together(disagree))


def test_every_sum_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group's `wait` alone notices a process that is gone or silent."""
    monkeypatch.setattr(data_parallel, "BUCKET", 4)

    def run(processes: DataParallel) -> list[int]:
        waited = []
        grads = {name: np.ones(3, np.float32) for name in "ab"}
        for call in (lambda: processes.counts(1, 2), processes.barrier, lambda: processes.gradients(grads, 1.0)):
            call()
            waited.append(processes.group.waited)
        return waited

    assert together(run) == [[1, 2, 4]] * 3


def test_alone_nothing_is_sent() -> None:
    processes = DataParallel(NumpyBackend(dtype="float32"), Alone())
    grads = {"a": np.ones(2, np.float32)}
    processes.gradients(grads, 0.5)
    processes.agree(object())
    sent = state()
    assert processes.alone
    assert (grads["a"] == 1).all()
    assert processes.state(sent) is sent
    assert processes.counts(1, 2) == [1, 2]
    assert processes.number(0.1) == 0.1
