"""Requests in, events out: replies of one model, and of its adapters, computed side by side. It owns no thread but that
of masks: whoever calls `step` again and again drives it.

A step is one token for every reply, then one chunk of one prompt. Each event belongs to a request by its id; a request
ends in one `Finished` or `Failed`. Every reply is the one that its request would get alone. What fails one row ends
that row.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from ..cache.budget import RESERVE
from ..cache.prefix_cache import PrefixCache
from ..cache.prefix_reuse import LEAST
from ..cache.snapshot import Snapshot
from ..cache.spec import CacheSpec
from ..errors import ContextError, DataError, PartitaError
from ..language_model import LanguageModel
from .buckets import Buckets
from .constraint import Grammars
from .held import with_held
from .matcher import Matcher, Matchers
from .reading import Pace, Reading, next_of
from .request import Constraint, Event, Failed, Request
from .room import MAX_ROWS, refusal, row_bytes
from .row import Row

FLOOR = 1.0  # seconds; a step that is the first of its kind is compiled


class Engine:
    """models: by adapter's name, "" without one; all of the same weights. spec: of every row's cache.

    max_waiting: requests that may wait for a place. prefixes: what prompts and replies are kept in for later ones, None
    for nowhere. matchers: what makes a constraint enforced, that of `constraint` where left out. free: bytes of memory
    that may still be taken. clock: seconds. For one thread.
    """

    def __init__(
        self,
        models: Mapping[str, LanguageModel],
        spec: CacheSpec,
        *,
        max_waiting: int = 64,
        max_rows: int = MAX_ROWS,
        prefixes: PrefixCache | None = None,
        matchers: Matchers | None = None,
        free: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._models, self.spec, self.prefixes = dict(models), spec, prefixes
        self._max_waiting, self._max_rows, self._clock = max_waiting, max_rows, clock
        self._matchers = matchers or Grammars(models[""].tokenizer, models[""].config.vocab_size).matcher
        self._free = free or (lambda: models[""].ops.memory().free)
        self._waiting: deque[Row] = deque()
        self._reading: list[Reading] = []
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="masks")
        self._buckets = Buckets(spec, self._executor)
        self._events: list[Event] = []
        self._pace = Pace(spec.chunk)
        self._decoding = 0.0  # seconds of a decode step
        self._generated = self._prefilled = self._reused = 0

    # What is asked

    def submit(self, request: Request) -> None:
        """Take a request. Its events, an immediate failure too, come with the next steps."""
        try:
            row = self._row(request)
        except PartitaError as error:
            self._events.append(Failed(request.id, str(error), "input", error.field))
            return
        needed, budget = self._bytes(row), self._budget()
        if needed > budget:
            message = refusal(self.spec, len(row.tokens) + row.left, budget)
            self._events.append(Failed(row.id, message, "memory", "max_tokens"))
        elif self._waiting and len(self._waiting) >= self._max_waiting:
            self._events.append(Failed(row.id, f"{len(self._waiting)} requests are waiting already", "busy"))
        else:
            self._waiting.append(row)
            self._admit()

    def cancel(self, id: int) -> None:
        """End a request: before the next step nothing of it is left but what later prompts may use."""
        for row in [row for row in self._waiting if row.id == id]:
            self._waiting.remove(row)
            self._events += row.end("cancelled")
        for reading in [reading for reading in self._reading if reading.row.id == id]:
            self._events += [] if reading.row.ended else reading.row.end("cancelled")
            self._reading.remove(reading)
            self._keep(reading.row, reading.held)
        for row in [row for row in self._buckets.rows if row.id == id and not row.ended]:
            self._events += row.end("cancelled")
        self._leave()

    @property
    def model(self) -> LanguageModel:
        """The one without an adapter."""
        return self._models[""]

    def put(self, adapter: str, model: LanguageModel | None) -> None:
        """From now on requests may name this adapter: the same weights with it. None: no longer. Replies that are being
        written keep what they began with."""
        if model is None:
            self._models.pop(adapter, None)
        else:
            self._models[adapter] = model

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing and report nothing."""
        return not (self._events or self._waiting or self._reading or self._buckets.rows)

    @property
    def step_seconds(self) -> float:
        """What the next step is predicted to take, generously."""
        return max(self._decoding + (self._pace.seconds if self._reading else 0.0), FLOOR)

    def statistics(self) -> dict[str, int]:
        """rows, prefilling, waiting: requests; cache_bytes, prefix_bytes; generated, prefilled, reused: tokens so
        far."""
        return {
            "rows": len(self._buckets.rows),
            "prefilling": len(self._reading),
            "waiting": len(self._waiting),
            "cache_bytes": self.cache_bytes,
            "prefix_bytes": 0 if self.prefixes is None else self.prefixes.nbytes,
            "generated": self._generated,
            "prefilled": self._prefilled,
            "reused": self._reused,
        }

    @property
    def cache_bytes(self) -> int:
        """Bytes of the caches of all rows."""
        return self._buckets.nbytes + sum(reading.nbytes for reading in self._reading)

    # A step

    def step(self) -> list[Event]:
        """Compute a token of every reply, then a chunk of a prompt; what there is to report.

        What is raised is no request's own fault: everything that was under way has failed, which the next step reports.
        """
        try:
            self._admit()
            self._decode()
            self._read()
        except BaseException as error:
            self._fail_all(error)
            raise
        events, self._events = self._events, []
        return events

    def _decode(self) -> None:
        begun, rows = self._clock(), self._buckets.rows
        if not rows:
            return
        before = sum(len(row.tokens) for row in rows)
        self._buckets.settle()
        self._leave()
        events = self._buckets.step()
        events = self._buckets.told() + events
        self._events += with_held(events, self._buckets.places(), self._clock())
        self._generated += sum(len(row.tokens) for row in rows) - before
        self._leave()
        self._decoding = (self._decoding + self._clock() - begun) / 2

    def _read(self) -> None:
        """A chunk of one prompt. To make a cache for it, and to take it to the others, are steps of their own: beside a
        chunk, rows that decode would feel them."""
        if not self._reading:
            return
        reading = next_of(self._reading)
        if reading.cache is None:
            reading.begin()
            self._reused += reading.reused
        elif not reading.left:
            self._join(reading)
        else:
            self._read_chunk(reading)

    def _read_chunk(self, reading: Reading) -> None:
        begun, before = self._clock(), reading.done
        events = reading.read(self._pace.tokens(alone=not self._buckets.rows), self._executor)
        count, now = reading.done - before, self._clock()
        self._pace.observe(count, now - begun)
        self._events += with_held(events, [(reading.row, reading.begin(), 0)], now)
        self._prefilled += count
        self._generated += len(reading.row.tokens) - len(reading.prompt)
        for other in self._reading:
            other.passed += 0 if other is reading else count

    def _join(self, reading: Reading) -> None:
        """Have the row of a prompt that has been read decode with the others."""
        self._reading.remove(reading)
        cache = reading.finish()
        if reading.row.ended:
            self._keep(reading.row, cache.row(0))
        else:
            self._buckets.join(reading.row, cache, reading.sampler)

    # Rows come and go

    def _row(self, request: Request) -> Row:
        """Raises DataError where the request cannot be."""
        model = self._models.get(request.adapter)
        if model is None:
            raise DataError(f"no adapter is called {request.adapter!r}", field="adapter")
        if not request.prompt:
            raise DataError("the prompt is empty: give at least one token", field="prompt")
        if request.max_tokens < 1:
            raise DataError(f"`max_tokens` must be >= 1, got {request.max_tokens}", field="max_tokens")
        model.decoder.check(request.prompt)
        wrong = next((token for token in request.logit_bias if not 0 <= token < model.config.vocab_size), None)
        if wrong is not None:
            raise DataError(f"`logit_bias` names token {wrong}, which the model has not", field="logit_bias")
        left, context, count = request.max_tokens, self.spec.context, len(request.prompt)
        if context is not None and not request.endless:
            if count > context:
                message = f"maximum context length is {context} tokens, the prompt has {count}"
                raise ContextError(message, field="context")
            left = min(left, max(context - count, 1))
        return Row(request, model, list(request.prompt), left, self._clock)

    def _admit(self) -> None:
        """Take requests in that have waited longest, while there is memory for them."""
        while self._waiting and len(self._running()) < self._max_rows:
            promised = sum(map(self._bytes, self._running())) + self._bytes(self._waiting[0])
            budget = self._budget()
            if promised > budget:
                return
            if self.prefixes is not None:
                self.prefixes.shrink(budget - promised)
            row = self._waiting.popleft()
            constraint = row.request.constraint
            matcher = None if constraint is None else self._executor.submit(self._matcher, constraint, row)
            self._reading.append(Reading(row, self.spec, self.prefixes, matcher, self._clock))

    def _matcher(self, constraint: Constraint, row: Row) -> Matcher:
        matcher = self._matchers(constraint)
        matcher.begin(row.request.prompt)
        return matcher

    def _leave(self) -> None:
        """Rows that have ended."""
        for row, snapshot in self._buckets.ended():
            self._keep(row, snapshot)
        self._events += self._buckets.told()

    def _keep(self, row: Row, held: Snapshot | None) -> None:
        """For later prompts that begin as this one did, or go on behind its reply."""
        count = 0 if held is None else held.offsets[0]
        if self.prefixes is not None and held is not None and not row.failed and LEAST <= count <= len(row.tokens):
            name, copy = row.model.fingerprint + row.model.adapter, row.model.ops.copy
            self.prefixes.put(row.tokens[:count], held, model=name, copy=copy)

    def _fail_all(self, error: BaseException) -> None:
        message = f"the engine failed ({type(error).__name__})"
        rows = [row for row in (*self._waiting, *self._running()) if not row.ended]
        self._events += [Failed(row.id, message) for row in rows]
        self._waiting, self._reading, self._buckets = deque(), [], Buckets(self.spec, self._executor)

    # Memory

    def _running(self) -> list[Row]:
        return [*(reading.row for reading in self._reading), *self._buckets.rows]

    def _bytes(self, row: Row) -> int:
        """What a row may come to."""
        return row_bytes(self.spec, len(row.tokens) + row.left)

    def _budget(self) -> int:
        """Bytes for all rows: what is free, were it not for them and for kept prefixes, which give way first."""
        kept = 0 if self.prefixes is None else self.prefixes.nbytes
        return self._free() - RESERVE + self.cache_bytes + kept
