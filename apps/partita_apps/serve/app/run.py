"""One reply that a page asked for: a task of the server, with its events in a log and its text in the history.

Invariants: it goes on whoever listens, and comes to one end, which is the last event of its log; what it says is in the
history a quarter of a second later, and whole at its end, however it ends; text is rendered at most ten times a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from partita.errors import PartitaError

from .. import replies
from ..asked import Ask, Delta, Ended, Event, Held, Refused, Spoken, Started, Waiting
from ..metrics import Metrics
from ..streams import Feed
from .log import Log
from .rendering import Rendering
from .trace import Trace, inherited

if TYPE_CHECKING:
    from ...history import History

TICK = 0.1
"""Seconds between two looks at what is to be said."""
WRITE = 0.25
"""Seconds between two writes of a reply to the history, at least nine times what the last one took."""
MOST_DETAIL = 64 << 20  # bytes of a log, from which on tokens and the cache are not reported
ENDS = {"stop": "done", "tool_calls": "done", "length": "length"}
End = Literal["stopped", "interrupted"]
Json = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a run is for. run: its name, that of the message that is the reply. text: what the reply begins with, of
    which no tokens are known. origin: the trace of the reply whose tokens it begins with, where there is one."""

    run: str
    chat: str
    parent: str | None
    ask: Ask
    text: str = ""
    origin: Mapping[str, Any] | None = None

    def document(self) -> Json:
        return {"run": self.run, "chat": self.chat, "parent": self.parent, "reply": self.run, "model": self.ask.model}


@dataclass(frozen=True)
class Tools:
    """What runs work with."""

    models: replies.Models
    metrics: Metrics
    history: History
    rendering: Rendering


@dataclass
class _Said:
    """thought, text, calls, ids (tokens): what has come; new_thought, new_text: what of it no event has said yet. new:
    tokens that were computed; first, last: when."""

    thought: list[str] = field(default_factory=list[str])
    text: list[str] = field(default_factory=list[str])
    new_thought: str = ""
    new_text: str = ""
    calls: list[Json] = field(default_factory=list[Json])
    ids: list[int] = field(default_factory=list[int])
    new: int = 0
    first: float = 0.0
    last: float = 0.0

    def token(self, event: Spoken) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.new += 1
        if not event.ends:
            self.ids.append(event.token)

    @property
    def speed(self) -> float | None:
        """Tokens a second behind the first."""
        seconds = self.last - self.first
        return round((self.new - 1) / seconds, 2) if self.new > 1 and seconds > 0 else None


class Run:
    """state: as of the message in the history. ended: monotonic time, None while it runs."""

    def __init__(self, task: Task, tools: Tools, on_end: Callable[[Run], None]) -> None:
        self.task, self.log, self.trace = task, Log(), Trace()
        self.state, self.ended = "running", None
        self._tools, self._on_end = tools, on_end
        self._said, self._blocks = _Said(ids=list(task.ask.begins)), tools.rendering.blocks()
        self._facts: Json = {"reason": None, "error": None, "warnings": []}
        self._started: Started | None = None
        self._held: Held | None = None
        self._begun, self._flushed = time.monotonic(), 0.0
        self._last_wait: Json = {}
        self._changed, self._over = asyncio.Event(), asyncio.Event()
        self._rendering: asyncio.Task[None] | None = None
        self._why: End | None = None
        self._work: asyncio.Task[None] | None = None
        self.log.add("begin", task.document())
        self.done: asyncio.Task[None] = asyncio.create_task(self._run())

    def stop(self, why: End = "stopped") -> None:
        """End it with what it has said, unless it has ended."""
        if self._why is None and self.ended is None:
            self._why = why
            if self._work is not None:
                self._work.cancel()

    async def _run(self) -> None:
        self._work = asyncio.create_task(self._reply())
        writing = asyncio.create_task(self._write_now_and_then())
        try:
            if self._why is not None:
                self._work.cancel()
            await asyncio.wait([self._work])
            self._over.set()
            self._changed.set()
            await asyncio.wait([writing])  # one that is under way would else come behind the last one
            self.state = self._judged(self._work)
            await self._finish()
        except asyncio.CancelledError:  # the event loop is being closed: there is no thread any more
            self.state = "interrupted"
            for task in (self._work, writing):
                task.cancel()
            self._tools.history.write(self.task.run, **self._row(), state=self.state, meta=self._end())
            raise
        finally:
            self.ended = time.monotonic()
            self.log.end()
            self._on_end(self)

    # What comes

    async def _reply(self) -> None:
        async with Feed([self._events()]) as feed:
            async for item in feed.each(TICK):
                self._detail(self.trace.flush() if item is None else self.trace.push(item[1]))
                if item is not None:
                    self._take(item[1])
                if time.monotonic() - self._flushed >= TICK:
                    await self._flush()

    async def _events(self) -> AsyncGenerator[Event, None]:
        ask, models = self.task.ask, self._tools.models
        if self.task.text or ask.begins:
            async with aclosing(models.loading(ask.model)) as layers:
                async for done, total in layers:
                    yield Waiting("loading", done, total)
            async with models.use(ask.model) as model:
                tokenizer = model.text.tokenizer
                if self.task.text:
                    ids = await asyncio.to_thread(tokenizer.encode, self.task.text, bos=False)
                    ask, self._said.ids = replace(ask, begins=ids), list(ids)
                replies.check_ids(ask.begins, model.text, "begins")
                self.trace = Trace(inherited(self.task.origin, ask.begins, tokenizer.token_bytes, tokenizer.stop_ids))
        counted = self._tools.metrics.counted(replies.reply(models, ask))
        async with aclosing(counted) as events:
            async for event in events:
                yield event

    def _take(self, event: Event) -> None:
        if isinstance(event, Waiting):
            self._wait(event)
        elif isinstance(event, Started):
            self._started = event
            counts = {"prompt_tokens": event.prompt_tokens, "cached_tokens": event.cached_tokens}
            self.log.add("start", {**counts, "sampling": event.sampling})
        elif isinstance(event, Delta):
            self._delta(event)
        elif isinstance(event, Spoken):
            self._said.token(event)
        elif isinstance(event, Held):
            self._held = event
        elif isinstance(event, Ended):
            self._facts |= {"reason": event.reason, "thought_tokens": event.thought_tokens, "seconds": event.seconds}
            self._facts["warnings"] = [*self._facts["warnings"], *event.warnings]
            self._said.ids = list(event.ids)

    def _wait(self, event: Waiting) -> None:
        found = {"what": event.what, "done": event.done, "total": event.total, "reused": event.reused}
        if found != self._last_wait:
            self._last_wait = found
            self.log.add("wait", {**found, "seconds": round(event.seconds, 4)})

    def _delta(self, delta: Delta) -> None:
        said = self._said
        if delta.call is not None:
            function = {"name": delta.call.name, "arguments": delta.call.arguments}
            said.calls.append({"id": delta.call.id, "type": "function", "function": function})
            self.log.add("call", {"id": delta.call.id, **function})
        elif delta.kind == "thought":
            said.thought.append(delta.text)
            said.new_thought += delta.text
        else:
            said.text.append(delta.text)
            said.new_text += delta.text
        self._changed.set()

    # What goes out

    async def _flush(self) -> None:
        """Say what has come since the last time."""
        self._flushed = time.monotonic()
        said = self._said
        if said.new_thought:
            self.log.add("thought", {"text": said.new_thought})
            said.new_thought = ""
        if said.new_text:
            text, said.new_text = said.new_text, ""
            self._rendering = asyncio.create_task(self._render(text))
            await asyncio.shield(self._rendering)

    async def _render(self, text: str) -> None:
        change = await asyncio.to_thread(self._blocks.push, text)
        if change.html:
            self.log.add("block", {"html": change.html, "rest": change.rest, "again": False, "text": text})
        else:
            self.log.add("text", {"text": text})

    def _detail(self, told: list[tuple[str, Json]]) -> None:
        for kind, data in told:
            if self.log.size < MOST_DETAIL:
                self.log.add(kind, data)

    def _row(self) -> Json:
        said = self._said
        return {
            "content": "".join(said.text),
            "thought": "".join(said.thought),
            "calls": list(said.calls),
            "ids": tuple(said.ids),
        }

    async def _write_now_and_then(self) -> None:
        while True:
            await self._changed.wait()
            if self._over.is_set():
                return
            self._changed.clear()
            then = time.monotonic()
            await self._write(self._row())
            with suppress(TimeoutError):
                async with asyncio.timeout(max(WRITE, 9 * (time.monotonic() - then))):
                    await self._over.wait()

    async def _write(self, changes: Json) -> None:
        try:
            await asyncio.to_thread(self._tools.history.write, self.task.run, **changes)
        except PartitaError as error:
            _log.warning("the reply %s was not written: %s", self.task.run, error)
            if str(error) not in self._facts["warnings"]:
                self._facts["warnings"].append(str(error))

    # How it ends

    def _judged(self, work: asyncio.Task[None]) -> str:
        """The state of the message from now on."""
        if work.cancelled():
            return self._why or "interrupted"
        error = work.exception()
        if error is None:
            return ENDS.get(self._facts["reason"], "done")
        if self._why is not None:
            return self._why
        if isinstance(error, Refused):
            self._facts["error"] = {"message": error.message, "type": error.kind, "field": error.field}
        else:
            _log.error("the reply %s failed", self.task.run, exc_info=error)
            message = f"internal error; the server's log has more about {self.task.run}"
            self._facts["error"] = {"message": message, "type": "internal", "field": None}
        return "failed"

    async def _finish(self) -> None:
        if self._rendering is not None:
            await asyncio.wait([self._rendering])
        await self._flush()
        self._detail(self.trace.flush())
        change = await asyncio.to_thread(self._blocks.finish)
        if change.html or change.again:
            self.log.add("block", {"html": change.html, "rest": "", "again": change.again})
        end = self._end()
        await self._write({**self._row(), "state": self.state, "meta": end})
        await self._keep_trace()
        self.log.add("end", {"state": self.state, **end, "warnings": self._facts["warnings"]})

    async def _keep_trace(self) -> None:
        try:
            await asyncio.to_thread(self._tools.history.put_trace, self.task.run, [self.trace.document])
        except PartitaError as error:
            _log.warning("the tokens of the reply %s were not written: %s", self.task.run, error)

    def _end(self) -> Json:
        """What is known of the reply at its end."""
        said, started, seconds = self._said, self._started, time.monotonic() - self._begun
        prompt = 0 if started is None else started.prompt_tokens
        return {
            "thought_tokens": None,
            "seconds": round(seconds, 3),
            **self._facts,
            "tokens": len(said.ids),
            "tokens_per_second": said.speed,
            "surprise": self.trace.surprise,
            "prompt_tokens": prompt,
            "cached_tokens": 0 if started is None else started.cached_tokens,
            **self._cache(prompt + len(said.ids) if started else 0),
        }

    def _cache(self, seen: int) -> Json:
        """How full the context is. seen: tokens of prompt and reply, for where nothing was said of the cache."""
        last = self._held
        if last is not None:
            held = last.sinks + last.window
            known = {"context": last.context, "held": held, "forgotten": last.seen - held}
            return {**known, "cache_bytes": last.bytes}
        facts = None
        with suppress(Refused):
            facts = self._tools.models.describe(self.task.ask.model).facts
        context = None if facts is None else facts.context
        held = seen if context is None else min(seen, context)
        return {"context": context, "held": held, "forgotten": seen - held, "cache_bytes": None}
