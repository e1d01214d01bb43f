"""What the server counts, in Prometheus' text format. Knows no HTTP beyond a status."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .asked import Delta, Ended, Event, Started
from .frames import Beat

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
Beats = Callable[[], Mapping[str, Beat | None]]


class Metrics:
    """Counts of one application. beats: what each model's process said last, by the model's name."""

    def __init__(self, beats: Beats) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Beats(beats))
        own = {"registry": self._registry, "namespace": "partita"}
        self.requests = Counter("http_requests", "Answers by route and status.", ["route", "status"], **own)
        self.prompt = Counter("prompt_tokens", "Tokens of prompts that were accepted.", **own)
        self.cached = Counter("cached_tokens", "Of them, tokens that were in a cache already.", **own)
        self.generated = Counter("generated_tokens", "Tokens of replies.", **own)
        self.ended = Counter("replies", "Replies by how they ended.", ["reason"], **own)
        self.first = Histogram("first_token_seconds", "From a request to the first text.", buckets=_SECONDS, **own)
        self.total = Histogram("reply_seconds", "From a request to its end.", buckets=_SECONDS, **own)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    async def counted(self, reply: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The same reply, counted."""
        begun, first, reason = time.monotonic(), True, "unfinished"
        try:
            async with aclosing(reply) as events:
                async for event in events:
                    if isinstance(event, Started):
                        self.prompt.inc(event.prompt_tokens)
                        self.cached.inc(event.cached_tokens)
                    elif isinstance(event, Delta) and first:
                        first = False
                        self.first.observe(time.monotonic() - begun)
                    elif isinstance(event, Ended):
                        reason = event.reason
                        self.generated.inc(event.completion_tokens)
                        self.total.observe(time.monotonic() - begun)
                    yield event
        finally:
            self.ended.labels(reason).inc()


class _Beats(Collector):
    """Gauges of each model's process."""

    def __init__(self, beats: Beats) -> None:
        self._beats = beats

    def collect(self) -> Iterator[Metric]:
        found = {name: beat for name, beat in self._beats().items() if beat is not None}
        for field, what in (
            ("rows", "Replies being written."),
            ("prefilling", "Prompts being read."),
            ("waiting", "Requests in the queue."),
            ("cache_bytes", "Memory of caches."),
            ("prefix_bytes", "Memory of kept beginnings of prompts."),
            ("memory", "Memory of the model's process, in bytes."),
            ("step_seconds", "Predicted time of the next step."),
        ):
            family = GaugeMetricFamily(f"partita_model_{field}", what, labels=["model"])
            for name, beat in found.items():
                family.add_metric([name], getattr(beat, field))
            yield family
