"""What is refused, what waits, what ends early, and whose turn it is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from partita.cache.budget import RESERVE
from partita.cache.prefix_cache import PrefixCache
from partita.engine.engine import Engine
from partita.engine.reading import AGEING, LEAST, Pace, next_of
from partita.engine.request import Failed, Finished, Progress, Request, Token
from partita.engine.room import full, room, row_bytes
from partita.inference.runner import ModelRunner
from partita.language_model import LanguageModel

from .driver import CACHE, Driver, alone, engine, ids
from .test_engine import prompt

# Memory


def test_classes_lie_a_factor_apart_and_end_with_the_ring(numpy_model: LanguageModel) -> None:
    spec = numpy_model.cache_spec(**CACHE)
    assert [room(spec, tokens) for tokens in (1, 16, 17, 64, 65, 143, 5000)] == [16, 16, 64, 64, 143, 143, 143]
    assert full(spec) == 128 + 15
    assert row_bytes(spec, 5000) == row_bytes(spec, 128)


def test_what_can_never_fit_is_refused_with_the_numbers(numpy_model: LanguageModel) -> None:
    driver = Driver(engine(numpy_model, free=lambda: RESERVE + 40_000))
    driver.submit(0, prompt(0, 9), 100)
    driver.submit(1, prompt(1, 9), 5)
    driver.run()
    failed = driver.failed(0)
    assert (failed.kind, failed.field) == ("memory", "max_tokens")
    assert "109 tokens need 148 KiB" in failed.message
    assert "39.1 KiB can be used" in failed.message
    assert "`context`" in failed.message
    assert driver.tokens(1) == ids(alone(numpy_model, prompt(1, 9), 5))


def test_what_does_not_fit_now_waits(numpy_model: LanguageModel) -> None:
    memory = RESERVE + 2 * row_bytes(numpy_model.cache_spec(**CACHE), 60) + 100
    driver = Driver(engine(numpy_model, free=lambda: memory - driver.engine.cache_bytes))
    for id in range(5):
        driver.submit(id, prompt(id, 20), 30)
    most = 0
    while not driver.engine.idle:
        driver.step()
        found = driver.engine.statistics()
        most = max(most, found["rows"] + found["prefilling"])
    assert most == 2
    for id in range(5):
        assert driver.tokens(id) == ids(alone(numpy_model, prompt(id, 20), 30))


def test_kept_prefixes_give_way(numpy_model: LanguageModel) -> None:
    spec, prefixes = numpy_model.cache_spec(**CACHE), PrefixCache(1 << 20)
    memory = RESERVE + row_bytes(spec, 128)
    driver = Driver(Engine({"": numpy_model}, spec, prefixes=prefixes, free=lambda: memory - prefixes.nbytes))
    driver.submit(0, prompt(0, 80), 4)
    driver.run()
    assert prefixes.nbytes > 0
    driver.submit(1, prompt(1, 80), 40)
    assert prefixes.nbytes == 0
    driver.run()
    assert driver.tokens(1) == ids(alone(numpy_model, prompt(1, 80), 40))


@pytest.mark.parametrize("steps", range(0, 24, 3))
def test_a_cancellation_gives_bytes_back_at_once(numpy_model: LanguageModel, steps: int) -> None:
    driver = Driver(engine(numpy_model))
    driver.submit(0, prompt(0, 60), 20)
    driver.submit(1, prompt(1, 60), 20)
    for _ in range(steps):
        driver.step()
    driver.engine.cancel(0)
    assert driver.engine.statistics()["rows"] + driver.engine.statistics()["prefilling"] == 1
    driver.engine.cancel(1)
    driver.engine.cancel(7)  # nobody
    assert driver.engine.cache_bytes == 0
    driver.run()
    assert [driver.reason(id) for id in (0, 1)] == ["cancelled", "cancelled"]


# The queue


def test_a_full_queue_refuses(numpy_model: LanguageModel) -> None:
    driver = Driver(engine(numpy_model, max_waiting=3, max_rows=2))
    for id in range(7):
        driver.submit(id, prompt(id, 5), 4)
    driver.run()
    busy = [id for id in range(7) if isinstance(driver.said[id][-1], Failed)]
    assert busy == [5, 6]
    assert driver.failed(5).kind == "busy"
    assert "3 requests are waiting" in driver.failed(5).message
    assert all(driver.tokens(id) == ids(alone(numpy_model, prompt(id, 5), 4)) for id in range(5))


def test_a_request_that_waits_can_be_cancelled(numpy_model: LanguageModel) -> None:
    driver = Driver(engine(numpy_model, max_rows=1))
    for id in range(3):
        driver.submit(id, prompt(id, 5), 4)
    driver.engine.cancel(1)
    driver.run()
    assert driver.reason(1) == "cancelled"
    assert driver.tokens(1) == []
    assert driver.tokens(2) == ids(alone(numpy_model, prompt(2, 5), 4))


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [1, 9999]}, None, "token 9999"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"adapter": "pirate"}, "adapter", "'pirate'"),
        ({"logit_bias": {9999: 1.0}}, "logit_bias", "9999"),
        ({"prompt": [1] * 129}, "context", "maximum context length is 128 tokens, the prompt has 129"),
    ],
)
def test_what_cannot_be_is_refused(
    numpy_model: LanguageModel, change: dict[str, Any], field: str | None, words: str
) -> None:
    driver = Driver(engine(numpy_model))
    driver.engine.submit(Request(**({"id": 0, "prompt": [1, 2], "max_tokens": 3} | change)))
    assert not driver.engine.idle
    driver.run()
    assert (driver.failed(0).kind, driver.failed(0).field) == ("input", field)
    assert words in driver.failed(0).message


# The end of a context


def test_a_reply_ends_with_the_context(model: LanguageModel) -> None:
    driver = Driver(engine(model))
    driver.submit(0, prompt(0, 120), 50)
    driver.submit(1, prompt(1, 128), 50)
    driver.run()
    assert driver.tokens(0) == ids(alone(model, prompt(0, 120), 8))
    assert driver.tokens(1) == ids(alone(model, prompt(1, 128), 1))
    assert [driver.reason(id) for id in (0, 1)] == ["length", "length"]


def test_an_endless_reply_goes_on(model: LanguageModel) -> None:
    cache = {**CACHE, "context": 24, "chunk": 16}
    driver = Driver(engine(model, cache=cache))
    lengths = (5, 20, 60)
    for id, length in enumerate(lengths):
        driver.submit(id, prompt(id, length), 60, endless=True)
    driver.submit(9, prompt(9, 3), 60)
    driver.run()
    for id, length in enumerate(lengths):
        assert driver.tokens(id) == ids(alone(model, prompt(id, length), 60, cache=cache))
    assert driver.tokens(9) == ids(alone(model, prompt(9, 3), 21, cache=cache))


# Adapters


def test_adapters_answer_side_by_side(numpy_model: LanguageModel) -> None:
    """A stand-in for one: the same decoder with its last norm turned round."""
    norm = numpy_model.decoder.norm
    decoder = replace(numpy_model.decoder, norm=replace(norm, weight=-norm.weight))
    other = replace(numpy_model, decoder=decoder, adapter="turned")
    prefixes = PrefixCache(1 << 20)
    driver = Driver(Engine({"": numpy_model, "turned": other}, numpy_model.cache_spec(**CACHE), prefixes=prefixes))
    for id in range(4):
        driver.submit(id, prompt(id // 2, 70), 10, adapter=("", "turned")[id % 2])
    driver.run()
    for id in range(4):
        assert driver.tokens(id) == ids(alone((numpy_model, other)[id % 2], prompt(id // 2, 70), 10))
    assert driver.tokens(0) != driver.tokens(1)
    assert driver.engine.statistics()["reused"] == 0


# Turns


def test_short_prompts_go_first_and_long_ones_are_read_too(numpy_model: LanguageModel) -> None:
    driver = Driver(engine(numpy_model, clock=lambda: 0.0))  # chunks of 16
    driver.submit(0, prompt(0, 120), 1)
    driver.step()
    driver.submit(1, prompt(1, 10), 1)
    driver.run()
    assert [event.id for event in driver.order if isinstance(event, Finished)] == [1, 0]
    late = Driver(engine(numpy_model, clock=lambda: 0.0, max_rows=3))
    late.submit(0, prompt(0, 120), 1)
    for id in range(1, 200):
        late.submit(id, prompt(id, 60), 1)
        while not late.ended(id) and not late.ended(0):
            late.step()
        if late.ended(0):
            break
    assert id < 2 + AGEING * 120 // 60


def test_a_long_prompt_is_next_when_others_were_long_enough() -> None:
    def reading(left: int, passed: int) -> Any:
        return SimpleNamespace(left=left, passed=passed)

    short, long = reading(100, 0), reading(1000, AGEING * 800)
    assert next_of([short, long]) is short
    long.passed = AGEING * 950
    assert next_of([short, long]) is long


def test_chunks_take_an_eighth_of_a_second_beside_rows() -> None:
    pace = Pace(256)
    assert pace.tokens(alone=False) == 2 * LEAST
    for _ in range(20):
        pace.observe(100, 0.1)  # 1,000 tokens a second
    assert pace.tokens(alone=False) == 125
    assert pace.tokens(alone=True) == 256
    for _ in range(20):
        pace.observe(LEAST, 1.0)
    assert pace.tokens(alone=False) == LEAST
    speed = pace.speed
    pace.observe(1, 5.0)  # the end of a prompt
    assert pace.speed == speed


def test_chunks_follow_from_the_speed_that_was_measured(numpy_model: LanguageModel) -> None:
    now = 0.0
    feed, logits = ModelRunner.feed, ModelRunner.logits

    class Slow:
        """A millisecond a token, by a clock of its own."""

        @staticmethod
        def feed(runner: ModelRunner, tokens: np.ndarray) -> None:
            nonlocal now
            now += tokens.shape[1] / 1000
            feed(runner, tokens)

        @staticmethod
        def logits(runner: ModelRunner, tokens: np.ndarray) -> Any:
            nonlocal now
            now += tokens.shape[1] / 1000
            return logits(runner, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRunner, "feed", Slow.feed)
        patch.setattr(ModelRunner, "logits", Slow.logits)
        cache = {**CACHE, "context": 512, "chunk": 200}
        driver = Driver(engine(numpy_model, cache=cache, clock=lambda: now))
        driver.submit(0, prompt(0, 20), 100)
        driver.submit(1, prompt(1, 480), 1)
        driver.run()
    ends = [event.done for event in driver.said[1] if isinstance(event, Progress)]
    assert ends == [125, 250, 375, 480]


def test_a_token_of_every_row_comes_before_a_chunk(numpy_model: LanguageModel) -> None:
    driver = Driver(engine(numpy_model))
    driver.submit(0, prompt(0, 5), 50)
    driver.submit(1, prompt(1, 5), 50)
    while driver.engine.statistics()["rows"] < 2:
        driver.step()
    driver.submit(2, prompt(2, 100), 5)
    driver.step()
    for _ in range(4):
        events = driver.step()
        assert [event.id for event in events if isinstance(event, Token)] == [0, 1]
        assert [event.id for event in events if isinstance(event, Progress)] == [2]


# Faults


def test_a_fault_of_the_engine_ends_everything_and_is_raised(
    numpy_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(engine(numpy_model, max_rows=2))
    for id in range(4):
        driver.submit(id, prompt(id, 60), 20)
    while not driver.engine.statistics()["rows"]:
        driver.step()

    def broken(*_: object) -> None:
        raise MemoryError("secret")

    monkeypatch.setattr(ModelRunner, "decode", broken)
    with pytest.raises(MemoryError):
        driver.engine.step()
    monkeypatch.undo()
    driver.run()
    assert [driver.failed(id).kind for id in range(4)] == ["internal"] * 4
    assert all("secret" not in driver.failed(id).message for id in range(4))
    assert driver.engine.cache_bytes == 0
    driver.submit(9, prompt(9, 5))
    driver.run()
    assert driver.tokens(9) == ids(alone(numpy_model, prompt(9, 5)))
