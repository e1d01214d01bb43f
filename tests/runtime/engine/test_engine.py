"""Whatever comes and goes, and when: every reply is the one that its request would get alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import partita
import partita_backends
from partita.cache.prefix_cache import PrefixCache
from partita.engine.request import Finished, Token
from partita.inference.sampling import Sampling
from partita.language_model import LanguageModel

from .driver import Driver, alone, engine, ids

SAMPLINGS = (
    Sampling(),
    Sampling(temperature=1.2, seed=5),
    Sampling(temperature=0.9, top_k=30, top_p=0.9, seed=6),
    Sampling(repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.4),
    Sampling(temperature=1.0, min_p=0.02, repetition_penalty=1.2, seed=7),
)


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 250, length).tolist()


def test_replies_side_by_side_are_those_of_each_alone(model: LanguageModel) -> None:
    """Of every length and sampling, submitted while others are under way; rows outgrow their classes, twice some."""
    driver, asked = Driver(engine(model)), dict[int, tuple[list[int], int, Sampling]]()
    lengths = ((3, 30), (20, 3), (50, 9), (14, 55), (1, 25), (90, 38), (33, 2), (7, 70), (60, 1), (12, 20))
    for id, (length, count) in enumerate(lengths):
        asked[id] = prompt(id, length), count, SAMPLINGS[id % 5]
        driver.submit(id, asked[id][0], asked[id][1], sampling=asked[id][2], alternatives=2 * (id % 2))
        for _ in range(id):
            driver.step()
    driver.run()
    for id, (text, count, sampling) in asked.items():
        assert driver.tokens(id) == ids(alone(model, text, count, sampling))
        assert driver.reason(id) == "length"


def test_alternatives_are_those_of_each_row(model: LanguageModel) -> None:
    driver = Driver(engine(model))
    for id in range(3):
        driver.submit(id, prompt(id, 9), 6, alternatives=id, sampling=SAMPLINGS[id])
    driver.run()
    for id in range(3):
        said = [event for event in driver.said[id] if isinstance(event, Token)]
        lone = alone(model, prompt(id, 9), 6, SAMPLINGS[id], alternatives=max(id, 1))
        for event, expected in zip(said, lone, strict=True):
            assert event.token == expected.id
            if id:
                assert event.probability == pytest.approx(expected.probability, rel=1e-3)
                assert [i for i, _ in event.alternatives] == [i for i, _ in expected.alternatives]
            else:
                assert (event.probability, event.alternatives) == (None, ())


class Requests(RuleBasedStateMachine):
    """Requests come, go and are cancelled between any two steps."""

    model: LanguageModel

    @initialize(kept=st.sampled_from([0, 1 << 20]))
    def begin(self, kept: int) -> None:
        self.driver = Driver(engine(self.model, prefixes=PrefixCache(kept), max_rows=5))
        self.asked: dict[int, tuple[list[int], int, Sampling]] = {}
        self.cancelled: set[int] = set()

    @rule(
        seed=st.integers(0, 3),
        length=st.integers(1, 100),
        count=st.integers(1, 40),
        sampling=st.sampled_from(SAMPLINGS),
    )
    def submit(self, seed: int, length: int, count: int, sampling: Sampling) -> None:
        id = len(self.asked)
        self.asked[id] = prompt(seed, length), min(count, 128 - length), sampling
        self.driver.submit(id, *self.asked[id][:2], sampling=sampling)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.asked)))
        if not self.driver.ended(id):
            self.cancelled.add(id)
        self.driver.engine.cancel(id)

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.driver.step()

    @invariant()
    def counts(self) -> None:
        found = self.driver.engine.statistics()
        assert found["rows"] + found["prefilling"] <= 5
        assert all(value >= 0 for value in found.values())

    def teardown(self) -> None:
        self.driver.run()
        assert self.driver.engine.cache_bytes == 0
        for id, (text, count, sampling) in self.asked.items():
            said = self.driver.tokens(id)
            expected = ids(alone(self.model, text, count, sampling))
            if id in self.cancelled:
                assert said == expected[: len(said)]
                assert self.driver.reason(id) in ("cancelled", "length")
            else:
                assert said == expected
                assert self.driver.reason(id) == "length"


@pytest.mark.parametrize("name", ["numpy", "torch", "mlx"])
def test_requests_come_and_go_at_any_moment(name: str, tiny_model: Path) -> None:
    model = partita.load(tiny_model, backend=partita_backends.load(name, dtype="float32"))
    machine = type("Machine", (Requests,), {"model": model})
    machine.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
    machine.TestCase("runTest").runTest()


def test_a_stop_id_ends_a_reply_as_its_last_token(model: LanguageModel) -> None:
    text = prompt(1, 10)
    stop = ids(alone(model, text, 12))[7]
    expected = ids(alone(model, text, 12, stop_ids=[stop]))
    driver = Driver(engine(model))
    driver.submit(0, text, 12, stop_ids=(stop,))
    driver.submit(1, text, 12)
    driver.run()
    assert driver.tokens(0) == expected
    assert driver.reason(0) == "stop"
    assert driver.tokens(1) == ids(alone(model, text, 12))


def test_a_second_turn_reads_what_is_new(model: LanguageModel) -> None:
    driver = Driver(engine(model, prefixes=PrefixCache(1 << 22)))
    first = prompt(3, 70)
    driver.submit(0, first, 20)
    driver.run()
    second = [*first, *driver.tokens(0), *prompt(4, 9)]
    driver.submit(1, second, 5)
    driver.run()
    held = len(first) + 19  # the last token of a reply is not in any cache
    assert driver.engine.statistics()["reused"] == held
    assert driver.engine.statistics()["prefilled"] == 70 + len(second) - held
    assert driver.tokens(1) == ids(alone(model, second, 5))


def test_a_cancelled_prompt_is_not_read_again(model: LanguageModel) -> None:
    driver, text = Driver(engine(model, prefixes=PrefixCache(1 << 22))), prompt(5, 110)
    driver.submit(0, text)
    for _ in range(6):
        driver.step()
    read = driver.engine.statistics()["prefilled"]
    assert 64 <= read < 110
    driver.engine.cancel(0)
    assert driver.engine.cache_bytes == 0
    driver.submit(1, text)
    driver.run()
    assert driver.reason(0) == "cancelled"
    assert driver.engine.statistics()["reused"] == read
    assert driver.tokens(1) == ids(alone(model, text))


def test_three_hundred_requests_leave_memory_as_it_was(numpy_model: LanguageModel) -> None:
    driver = Driver(engine(numpy_model, prefixes=PrefixCache(1 << 18)))
    random, held = np.random.default_rng(2), list[int]()
    for id in range(300):
        driver.submit(id, prompt(id, int(random.integers(1, 40))), int(random.integers(1, 6)))
        driver.step()
        if id % 50 == 49:
            driver.run()
            held.append(driver.engine.statistics()["prefix_bytes"])
            assert driver.engine.cache_bytes == 0
    assert max(held) <= 1 << 18
    assert sum(isinstance(event, Finished) for event in driver.order) == 300


def test_a_request_that_has_ended_is_not_cancelled_too(numpy_model: LanguageModel) -> None:
    driver = Driver(engine(numpy_model))
    driver.submit(0, prompt(0, 9), 1)
    while not driver.ended(0):
        driver.step()
    driver.engine.cancel(0)
    driver.run()
    assert driver.reason(0) == "length"


def test_a_bucket_may_be_doubled_while_rows_of_it_are_moved(model: LanguageModel) -> None:
    """Both rows outgrow their classes in one step, one of them into that of the other."""
    driver, lengths = Driver(engine(model)), (55, 1)
    for id, length in enumerate(lengths):
        driver.submit(id, prompt(id, length), 40)
    driver.run()
    for id, length in enumerate(lengths):
        assert driver.tokens(id) == ids(alone(model, prompt(id, length), 40))
