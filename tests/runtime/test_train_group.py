"""What processes that train together tell each other: several threads, each with a backend, in place of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from partita.errors import DataError
from partita.training import group as train_group
from partita.training.group import Group
from partita.training.state import Best, TrainState
from partita_backends.numpy import NumpyBackend


class Member(NumpyBackend):
    """One of `world` threads that sum through a table they share."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier):
        super().__init__(dtype="float32")
        self.rank, self.world_size = rank, len(table)
        self._table, self._barrier = table, barrier

    def all_sum(self, x: np.ndarray) -> np.ndarray:
        self._table[self.rank] = x
        self._barrier.wait(10)
        total = sum(self._table[1:], self._table[0])
        self._barrier.wait(10)
        assert total.dtype == x.dtype
        return total


def together(function: Callable[[Member], Any], world_size: int = 3) -> list[Any]:
    """What the function gives in each of several processes."""
    table, barrier = [None] * world_size, threading.Barrier(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        running = [pool.submit(function, Member(rank, table, barrier)) for rank in range(world_size)]
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
    monkeypatch.setattr(train_group, "BUCKET", bucket)

    def run(ops: Member) -> dict[str, np.ndarray]:
        grads = {name: np.full(shape, ops.rank + 1, np.float32) for name, shape in (("b", (2, 3)), ("a", ()), ("c", 4))}
        Group(ops).gradients(grads, 0.5 * ops.rank)
        return grads

    for grads in together(run):
        assert {name: x.shape for name, x in grads.items()} == {"a": (), "b": (2, 3), "c": (4,)}
        assert all((x == 0.5 * 2 + 1.0 * 3).all() for x in grads.values())


@pytest.mark.parametrize("bucket", [1, 8, 2**22])
def test_the_first_state_is_everybodys(monkeypatch: pytest.MonkeyPatch, bucket: int) -> None:
    monkeypatch.setattr(train_group, "BUCKET", bucket)
    sent = state()
    for found in together(lambda ops: Group(ops).state(sent if ops.rank == 0 else None)):
        assert (found.step, found.position, found.identity, found.random, found.best, found.tokens) == (
            *(sent.step, sent.position, sent.identity, sent.random, sent.best, sent.tokens),
        )
        for part in ("values", "m", "v"):
            assert list(getattr(found, part)) == list(getattr(sent, part))
            for name, x in getattr(sent, part).items():
                np.testing.assert_array_equal(getattr(found, part)[name], x)
                assert getattr(found, part)[name].shape == x.shape
    assert together(lambda ops: Group(ops).state(None)) == [None] * 3


def test_sums_and_agreement() -> None:
    assert together(lambda ops: Group(ops).counts(ops.rank, 2**29)) == [[3, 3 * 2**29]] * 3
    assert together(lambda ops: Group(ops).number(0.5)) == [1.5] * 3
    together(lambda ops: Group(ops).agree({"b": 1, "a": [2]}))

    def disagree(ops: Member) -> str:
        with pytest.raises(DataError) as caught:
            Group(ops).agree({"seed": int(ops.rank == 1)})
        return str(caught.value)

    assert all(text.startswith("process 1 of 3 was given other data") for text in together(disagree))


def test_alone_nothing_is_sent() -> None:
    group = Group(NumpyBackend(dtype="float32"))
    grads = {"a": np.ones(2, np.float32)}
    group.gradients(grads, 0.5)
    group.agree(object())
    sent = state()
    assert group.alone
    assert (grads["a"] == 1).all()
    assert group.state(sent) is sent
    assert group.counts(1, 2) == [1, 2]
    assert group.number(0.1) == 0.1
