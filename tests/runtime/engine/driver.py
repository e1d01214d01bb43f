"""Drives an engine and collects what it says, by request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from partita.cache.state import Cache
from partita.engine.engine import Engine
from partita.engine.request import Event, Failed, Finished, Request, Token
from partita.inference.decode import DecodeOptions, decode
from partita.inference.runner import Generated, ModelRunner
from partita.inference.sampling import Sampler, Sampling
from partita.language_model import LanguageModel

CACHE: dict[str, Any] = {"context": 128, "sinks": 2, "chunk": 16, "kv": "32"}


def engine(model: LanguageModel, *, cache: dict[str, Any] | None = None, **options: Any) -> Engine:
    return Engine({"": model}, model.cache_spec(**(CACHE if cache is None else cache)), **options)


class Driver:
    """said: events by request."""

    def __init__(self, engine: Engine):
        self.engine, self.said = engine, defaultdict[int, list[Event]](list)
        self.order: list[Event] = []

    def submit(self, id: int, prompt: Sequence[int], max_tokens: int = 8, **options: Any) -> None:
        self.engine.submit(Request(id, list(prompt), max_tokens, **options))

    def step(self) -> list[Event]:
        events = self.engine.step()
        for event in events:
            assert not self.ended(event.id), "nothing comes behind the end"
            self.said[event.id].append(event)
        self.order += events
        return events

    def run(self, most: int = 10_000) -> None:
        """Until nothing is left to do."""
        while not self.engine.idle:
            self.step()
            most -= 1
            assert most, "the engine does not come to an end"

    def ended(self, id: int) -> bool:
        return any(isinstance(event, Finished | Failed) for event in self.said[id])

    def tokens(self, id: int) -> list[int]:
        return [event.token for event in self.said[id] if isinstance(event, Token)]

    def reason(self, id: int) -> str:
        last = self.said[id][-1]
        assert isinstance(last, Finished), last
        return last.reason

    def failed(self, id: int) -> Failed:
        last = self.said[id][-1]
        assert isinstance(last, Failed), last
        return last


def alone(
    model: LanguageModel,
    prompt: Sequence[int],
    max_tokens: int = 8,
    sampling: Sampling | None = None,
    *,
    alternatives: int = 0,
    stop_ids: Sequence[int] = (),
    cache: dict[str, Any] | None = None,
) -> list[Generated]:
    """What the decode loop says of one prompt in a cache of its own."""
    spec = model.cache_spec(**(CACHE if cache is None else cache))
    runner = ModelRunner(model.ops, model.decoder, Cache(model.ops, spec))
    sampler = Sampler(model.ops, sampling or Sampling(), model.config.vocab_size, prompt)
    options = DecodeOptions(max_tokens, frozenset(stop_ids), alternatives)
    return list(decode(runner, list(prompt), sampler, options))


def ids(generated: Sequence[Generated]) -> list[int]:
    return [each.id for each in generated]
