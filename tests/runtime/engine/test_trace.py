"""What a traced reply reports beside its tokens is what the model computed and what its cache holds: against the numpy
backend's logits, and against the positions that the cache itself has written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.prefix_cache import PrefixCache
from partita.cache.spec import CacheSpec, LayerSpec, Span
from partita.cache.state import Cache
from partita.engine.held import held
from partita.engine.request import Finished, Held, Progress, Ring, Token
from partita.inference.sampling import Sampling
from partita.language_model import LanguageModel

from .driver import CACHE, Driver, engine
from .test_engine import prompt


class Watched(Driver):
    """Looks, whenever a cache is reported, at what it holds."""

    def step(self) -> list[Any]:
        before = {row.id: (cache, place) for row, cache, place in self.engine._buckets.places()}
        before |= {reading.row.id: (reading.cache, 0) for reading in self.engine._reading if reading.cache is not None}
        events = super().step()
        after = {row.id: (cache, place) for row, cache, place in self.engine._buckets.places()}
        for event in events:
            ends = any(isinstance(other, Finished) and other.id == event.id for other in events)
            if isinstance(event, Held) and not ends:
                cache, place = (before | after)[event.id]
                assert_holds(event, cache, place)
        return events


def assert_holds(report: Held, cache: Cache, row: int) -> None:
    """What follows from a report, slot by slot, is what the cache's own positions say."""
    slots = cache.slots(row)
    assert (report.sinks, report.window, report.free) == (slots.sinks, slots.window, slots.free)
    assert report.seen == cache.offsets[row]
    kinds = {(span.window, span.sinks): positions for span, positions in cache._positions.items()}
    assert len(report.rings) == len(kinds)
    for ring in report.rings:
        found = cache.ops.fetch(kinds[ring.window, ring.sinks])()[row]
        assert found[: ring.sinks].tolist() == [i if i < report.seen else -1 for i in range(ring.sinks)]
        written = found[ring.sinks : ring.sinks + ring.slots]
        assert np.where(written < report.seen, written, -1).tolist() == positions(report, ring)


def positions(report: Held, ring: Ring) -> list[int]:
    """Of each slot behind the sinks, the token that it holds, -1 for none."""
    found = [-1] * ring.slots
    for position in range(ring.sinks, report.reached):
        behind = position - ring.sinks
        found[behind if ring.turns is None else behind % ring.turns] = position if position < report.seen else -1
    return found


def test_what_a_cache_holds_is_told_slot_by_slot(model: LanguageModel) -> None:
    """While its prompt is read, its ring turns and the row is moved to a larger class; beside another one."""
    driver = Watched(engine(model, cache={**CACHE, "context": 40}))
    driver.submit(0, prompt(0, 30), 90, endless=True, trace=True)
    driver.submit(1, prompt(1, 6), 60, endless=True, trace=True)
    driver.submit(2, prompt(2, 6), 20)
    clock = iter(np.arange(0, 1e6, 0.3))
    driver.engine._clock = lambda: float(next(clock))
    driver.run()
    for id, length, count in ((0, 30, 90), (1, 6, 60)):
        reports = [event for event in driver.said[id] if isinstance(event, Held)]
        assert len(reports) > count // 2
        assert [each.seen for each in reports] == sorted(each.seen for each in reports)
        last = driver.said[id][-2:]
        assert isinstance(last[0], Held)
        assert isinstance(last[1], Finished)
        assert length + count - 1 <= last[0].seen <= length + count
        assert (last[0].sinks, last[0].window, last[0].free, last[0].context) == (2, 38, 0, 40)
    assert not any(isinstance(event, Held) for event in driver.said[2])


@pytest.mark.parametrize("kv", ["16", "k8v4", "k4v4:64h"])
def test_each_kind_of_layer_has_a_ring_of_its_own(kv: str) -> None:
    """As in models that mix sliding windows with full attention; and what its numbers are kept in."""
    form = KVFormat.parse(kv)
    spans = (Span(8, 0), Span(20, 4), Span(8, 0))
    layers = tuple(LayerSpec(1, 64, span, None, 1.0, None) for span in spans)
    spec = CacheSpec(layers, form, context=24, sinks=4, chunk=6)
    cache = Cache(partita_backends.load("numpy"), spec, batch=2)
    for step in (1, 3, 6, 6, 6, 6, 6, 1, 1, 6):
        cache.advance(step)
        report = held(7, cache, 1)
        assert_holds(report, cache, 1)
        assert report.bytes == cache.nbytes // 2
    assert [(ring.layers, ring.window, ring.sinks, ring.turns) for ring in report.rings] == [
        (1, 20, 4, 25),
        (2, 8, 0, 13),
    ]
    assert (report.kv, report.key_bits, report.value_bits) == (str(form), form.key_bits, form.value_bits)
    assert report.sink_bits == form.sink_bits >= 16
    assert (report.seen, report.sinks, report.window, report.free) == (42, 4, 20, 0)


def test_probabilities_are_those_of_the_model_before_any_rule(model: LanguageModel, numpy_model: LanguageModel) -> None:
    text, biased = prompt(3, 12), {5: 3.0}
    driver = Driver(engine(model))
    sampling = Sampling(temperature=1.4, top_p=0.8, repetition_penalty=1.3, seed=3)
    driver.submit(0, text, 9, sampling=sampling, alternatives=4, trace=True, logit_bias=biased)
    driver.run()
    ops, said = numpy_model.ops, [event for event in driver.said[0] if isinstance(event, Token)]
    cache = Cache(ops, numpy_model.cache_spec(**CACHE))
    fed = text
    for event in said:
        row = np.asarray(numpy_model.decoder(ops, ops.array(np.asarray([fed], np.int32)), cache), np.float64)[0]
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert event.probability == pytest.approx(p[event.token], rel=1e-3)
        assert [value for _, value in event.alternatives] == pytest.approx(sorted(p)[:-5:-1], rel=1e-3)
        assert [value for _, value in event.alternatives] == pytest.approx(
            [p[token] for token, _ in event.alternatives], rel=1e-3
        )
        fed = [event.token]


def test_seconds_are_those_between_tokens_and_of_each_chunk(numpy_model: LanguageModel) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    driver = Driver(engine(numpy_model, clock=clock))
    driver.submit(0, prompt(0, 40), 12, trace=True)
    driver.submit(1, prompt(1, 5), 6)
    driver.run()
    said = [event for event in driver.said[0] if isinstance(event, Token)]
    assert said[0].seconds is None
    assert all(event.seconds and 0 < event.seconds < 0.1 for event in said[1:])
    assert sum(event.seconds or 0 for event in said) < now
    chunks = [event for event in driver.said[0] if isinstance(event, Progress)]
    assert len(chunks) == 3
    assert all(0 < event.seconds < 0.1 for event in chunks)
    assert all(event.seconds is None for event in driver.said[1] if isinstance(event, Token))


def test_a_cache_is_told_of_a_few_times_a_second(numpy_model: LanguageModel) -> None:
    now = 0.0
    driver = Driver(engine(numpy_model, clock=lambda: now))
    driver.submit(0, prompt(0, 10), 60, trace=True)
    while not driver.engine.idle:
        now += 0.05
        driver.step()
    assert 60 * 0.05 / 0.25 - 1 <= sum(isinstance(event, Held) for event in driver.said[0]) <= 60 * 0.05 / 0.25 + 4


def test_a_prompt_that_was_there_before_is_told_as_it_is_held(numpy_model: LanguageModel) -> None:
    """Also where the earlier one was longer: the tokens behind the common ones are not this reply's."""
    made = engine(numpy_model, prefixes=PrefixCache(1 << 24))
    first, text = Watched(made), prompt(0, 110)
    first.submit(0, text, 4)
    first.run()
    second = Watched(made)
    second.submit(1, text[:100], 10, trace=True)
    second.run()
    progress = next(event for event in second.said[1] if isinstance(event, Progress))
    assert progress.reused > 0
    assert next(event for event in second.said[1] if isinstance(event, Held)).seen == 100
