"""What a row is held to is its own: bias, constraints, and what goes wrong with them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from partita.cache.prefix_cache import PrefixCache
from partita.engine.request import Constraint, Finished, Token, Warned
from partita.errors import DataError
from partita.inference.sampling import Sampling
from partita.language_model import LanguageModel

from .driver import Driver, alone, engine, ids
from .test_engine import prompt

ANY = Constraint("lark", "")


class Fake:
    """Allows what `allowed` says of each place of a reply (None: anything), forces what `forces` says, ends behind
    `length` tokens."""

    def __init__(
        self,
        allowed: dict[int, list[int]] | None = None,
        forces: dict[int, list[int]] | None = None,
        length: int = 1000,
        *,
        breaks: int | None = None,
        warns: int | None = None,
    ) -> None:
        self.allowed, self.forces, self.length, self.breaks, self.warns = (
            allowed or {},
            forces or {},
            length,
            breaks,
            warns,
        )
        self.finished, self.warning = False, None
        self.pushed: list[int] = []
        self.threads: set[str] = set()

    def begin(self, prompt: Sequence[int]) -> None:
        self.prompt = list(prompt)

    def mask(self) -> np.ndarray | None:
        self.threads.add(threading.current_thread().name)
        if len(self.pushed) == self.breaks:
            raise DataError("the grammar is left", field="response_format")
        allowed = self.allowed.get(len(self.pushed))
        if allowed is None:
            return None
        bits = np.zeros(320, bool)
        bits[allowed] = True
        return np.packbits(bits, bitorder="little").view(np.int32)

    def push(self, token: int) -> None:
        assert not self.finished
        self.pushed.append(token)
        self.finished = len(self.pushed) >= self.length
        if len(self.pushed) == self.warns:
            self.warning = "free from here on"

    def forced(self) -> list[int]:
        return self.forces.get(len(self.pushed), [])


def run(model: LanguageModel, fake: Fake, others: int = 0, **options: object) -> Driver:
    driver = Driver(engine(model, matchers=lambda _: fake))
    for other in range(others):
        driver.submit(10 + other, prompt(10 + other, 5), 20)
    driver.submit(0, prompt(0, 9), 12, constraint=ANY, **options)
    driver.run()
    for other in range(others):
        assert driver.tokens(10 + other) == ids(alone(model, prompt(10 + other, 5), 20))
    return driver


@pytest.mark.parametrize("others", [0, 2])
def test_masks_choose_among_what_they_allow(model: LanguageModel, others: int) -> None:
    free = ids(alone(model, prompt(0, 9), 12))
    others_than = [token for token in range(300) if token != free[4]]
    fake = Fake({4: others_than, 6: [77], 7: [250, 251]})
    said = run(model, fake, others).tokens(0)
    assert said[:4] == free[:4]
    assert said[4] != free[4]
    assert said[6] == 77
    assert said[7] in (250, 251)
    assert fake.prompt == prompt(0, 9)
    assert fake.pushed == said
    assert all(name.startswith("masks") for name in fake.threads)


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, repetition_penalty=1.3, seed=3)])
def test_forced_tokens_are_reported_and_what_follows_is_what_would(
    model: LanguageModel, others: int, sampling: Sampling
) -> None:
    forces = {0: [9, 8, 7], 5: [6] * 4}
    driver = run(model, Fake(forces=forces), others, sampling=sampling)
    said = driver.tokens(0)
    assert said[:3] == [9, 8, 7]
    assert said[5:9] == [6] * 4
    assert len(said) == 12
    assert driver.reason(0) == "length"
    allowed = {place + i: [token] for place, tokens in forces.items() for i, token in enumerate(tokens)}
    assert said == run(model, Fake(allowed), others, sampling=sampling).tokens(0)


def test_forced_tokens_of_a_row_alone_are_one_step(model: LanguageModel) -> None:
    driver = Driver(engine(model, matchers=lambda _: Fake(forces={1: [5, 6, 7, 8, 9]})))
    driver.submit(0, prompt(0, 9), 12, constraint=ANY)
    while not driver.engine.statistics()["rows"]:
        driver.step()
    events = driver.step()
    assert [event.token for event in events if isinstance(event, Token)][:5] == [5, 6, 7, 8, 9]
    assert len(events) == 6


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("forces", [{}, {2: [4, 5, 6]}, {0: [4] * 5}])
def test_a_reply_ends_with_its_constraint(model: LanguageModel, others: int, forces: dict[int, list[int]]) -> None:
    fake = Fake(forces=forces, length=5)
    driver = run(model, fake, others)
    assert driver.tokens(0) == fake.pushed
    assert len(fake.pushed) == 5
    assert driver.reason(0) == "stop"


def test_a_warning_is_told_once(model: LanguageModel) -> None:
    driver = run(model, Fake(warns=3))
    assert [event.message for event in driver.said[0] if isinstance(event, Warned)] == ["free from here on"]
    assert driver.tokens(0) == ids(alone(model, prompt(0, 9), 12))


@pytest.mark.parametrize("breaks", [0, 4])
def test_a_constraint_that_breaks_ends_its_row_alone(model: LanguageModel, breaks: int) -> None:
    failed = run(model, Fake(breaks=breaks), 2).failed(0)
    assert (failed.message, failed.kind, failed.field) == ("the grammar is left", "input", "response_format")


def test_a_constraint_that_cannot_be_made_ends_its_row_alone(model: LanguageModel) -> None:
    def matchers(_: Constraint) -> Fake:
        raise DataError("no such grammar")

    driver = Driver(engine(model, matchers=matchers))
    driver.submit(0, prompt(0, 9), constraint=ANY)
    driver.submit(1, prompt(1, 9))
    driver.run()
    assert driver.failed(0).message == "no such grammar"
    assert driver.tokens(1) == ids(alone(model, prompt(1, 9)))


def test_a_schema_holds_a_reply(model: LanguageModel) -> None:
    """By the real matcher, on the tiny model's vocabulary."""
    import json

    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    driver = Driver(engine(model))
    constraint = Constraint("json_schema", json.dumps(schema))
    driver.submit(0, prompt(0, 9), 40, constraint=constraint, sampling=Sampling(temperature=1.0, seed=1))
    driver.submit(1, prompt(1, 9), 10)
    driver.run()
    text = model.tokenizer.decode([token for token in driver.tokens(0) if token not in model.tokenizer.stop_ids])
    assert json.loads(text)["a"] in ("x", "yy")
    assert driver.reason(0) == "stop"
    assert driver.tokens(1) == ids(alone(model, prompt(1, 9), 10))


def test_bias_is_a_rows_own(model: LanguageModel) -> None:
    driver, free = Driver(engine(model)), ids(alone(model, prompt(0, 9), 6))
    driver.submit(0, prompt(0, 9), 6, logit_bias={free[2]: -100.0}, alternatives=1)
    driver.submit(1, prompt(0, 9), 6)
    driver.submit(2, prompt(0, 9), 6, logit_bias={33: 100.0})
    driver.run()
    said = driver.tokens(0)
    assert said[:2] == free[:2]
    assert said[2] != free[2]
    third = [event for event in driver.said[0] if isinstance(event, Token)][2]
    assert third.alternatives[0][0] == free[2]  # probabilities are those before any rule
    assert third.probability is not None
    assert third.probability < third.alternatives[0][1]
    assert driver.tokens(1) == free
    assert driver.tokens(2) == [33] * 6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what is not a number
def test_a_row_without_numbers_fails_alone(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from partita.inference.runner import ModelRunner

    driver, decode = Driver(engine(model, prefixes=PrefixCache(1 << 20))), ModelRunner.decode
    driver.submit(0, prompt(0, 20), 20)
    driver.submit(1, prompt(1, 20), 20)
    while len(driver.tokens(1)) < 3:
        driver.step()

    def damaged(runner: ModelRunner, tokens: Any) -> Any:
        logits, held = decode(runner, tokens), runner.cache.arrays()
        for place, array in enumerate(held):
            if len(array.shape) == 5:  # keys and values (2, B, H, C, D), of the first row
                lost = np.full((2, 1, *array.shape[2:]), np.nan, np.float32)
                held[place] = model.ops.place(array, model.ops.array(lost), [0] * 5)
        runner.cache.hold(held)
        return logits + model.ops.array(np.asarray([[np.nan], [0.0]], np.float32))

    monkeypatch.setattr(ModelRunner, "decode", damaged)
    events = driver.step()
    monkeypatch.undo()
    if model.ops.asynchronous:  # that was a step ahead
        events = driver.step()
    assert sum(not isinstance(event, Token) for event in events) == 1
    driver.submit(2, prompt(2, 20), 20)  # comes to where that row was
    driver.run()
    assert driver.tokens(2) == ids(alone(model, prompt(2, 20), 20))
    assert "not finite" in driver.failed(0).message
    assert driver.failed(0).kind == "internal"
    assert driver.tokens(1) == ids(alone(model, prompt(1, 20), 20))
    assert isinstance(driver.said[1][-1], Finished)
