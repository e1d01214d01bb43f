"""Replies on their way out, streamed or whole, for as long as somebody listens. Knows no dialect.

Invariants: when the client goes away, streaming or not, every reply is closed within one of its events; a stream is
never silent for long; what is refused before a reply has started is an answer with a status, later an event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from .asked import Event, Refused, Waiting

PATIENCE = 2.0
"""Seconds in which a refusal is still an answer with a status: then the stream begins."""
SILENCE = 5.0
"""Seconds without an event, after which a comment says that the server is at work."""
KEEP_ALIVE = b": keep-alive\n\n"
Replies = Sequence[AsyncGenerator[Event, None]]
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Gone(Exception):
    """The client has gone away: there is nobody to answer."""


class Writer(Protocol):
    """What a dialect says of its replies, as frames of a stream."""

    def push(self, index: int, event: Event) -> Iterable[bytes]:
        """Of the reply `index`."""
        ...

    def fail(self, why: Refused) -> Iterable[bytes]:
        """The end of a stream that cannot go on."""
        ...

    def finish(self) -> Iterable[bytes]:
        """Behind the last event of all replies."""
        ...


def frame(data: Any, event: str | None = None) -> bytes:
    """A server-sent event. data: text, or a value that becomes JSON."""
    text = data.encode() if isinstance(data, str) else msgspec.json.encode(data)
    return (b"" if event is None else b"event: %s\n" % event.encode()) + b"data: %s\n\n" % text


class Feed:
    """Events of several replies as they come. Each reply is read, and closed, by one task of its own."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._events: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._read(i, each)) for i, each in enumerate(self._replies)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, index: int, reply: AsyncGenerator[Event, None]) -> None:
        try:
            async for event in reply:
                self._events.put_nowait((index, event))
            self._events.put_nowait(None)
        except Exception as error:
            self._events.put_nowait(error)
        finally:
            await reply.aclose()

    async def each(self, silence: float | None = None) -> AsyncGenerator[tuple[int, Event] | None, None]:
        """(index of the reply, event); None after so many seconds without one. Raises what a reply raises."""
        running = len(self._replies)
        while running:
            try:
                async with asyncio.timeout(silence):
                    found = await self._events.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(found, BaseException):
                raise found
            if found is None:
                running -= 1
            else:
                yield found


async def while_heard(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives, unless the client goes away meanwhile: then it is cancelled. Raises Gone."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(receive: Receive, replies: Replies) -> list[list[Event]]:
    """All events of each reply. Raises Gone, and what a reply raises."""

    async def read() -> list[list[Event]]:
        found: list[list[Event]] = [[] for _ in replies]
        async with Feed(replies) as feed:
            async for item in feed.each():
                if item is not None and not isinstance(item[1], Waiting):
                    found[item[0]].append(item[1])
        return found

    return await while_heard(receive, read())


@dataclass
class EventStream:
    """An answer of server-sent events, an ASGI application. patience, silence: seconds, as above.

    It raises Refused where a reply is refused before the answer has begun.
    """

    replies: Replies
    writer: Writer
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    patience: float = PATIENCE
    silence: float = SILENCE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_heard(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        out = _Output(send, self._start())
        try:
            async with Feed(self.replies) as feed:
                await self._relay(feed, out)
            await out.give(self.writer.finish())
        except Refused as why:
            if not out.begun:
                raise
            await out.give(self.writer.fail(why))
        except Exception:
            if not out.begun:
                raise
            _log.exception("a stream failed")
            await out.give(self.writer.fail(Refused("internal error; the server's log has more", "internal")))
        await send({"type": "http.response.body", "body": b""})

    async def _relay(self, feed: Feed, out: _Output) -> None:
        clock = asyncio.get_running_loop().time
        patient_until = said = clock()
        patient_until += self.patience
        async for item in feed.each(min(self.patience, self.silence)):
            frames = [] if item is None else list(self.writer.push(*item))
            starts = item is not None and not isinstance(item[1], Waiting)
            if not out.begun and not starts and clock() < patient_until:
                out.hold(frames)
            elif frames or not out.begun or clock() - said >= self.silence:
                await out.give(frames or [KEEP_ALIVE])
                said = clock()

    def _start(self) -> Message:
        own = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **self.headers}
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in own.items()]
        return {"type": "http.response.start", "status": 200, "headers": headers}


class _Output:
    """begun: whether the answer has its status, and nothing else can be answered any more."""

    def __init__(self, send: Send, start: Message) -> None:
        self._send, self._start = send, start
        self._held: list[bytes] = []
        self.begun = False

    def hold(self, frames: Iterable[bytes]) -> None:
        """Until there is something that must be sent."""
        self._held += frames

    async def give(self, frames: Iterable[bytes]) -> None:
        if not self.begun:
            self.begun = True
            await self._send(self._start)
        data = b"".join([*self._held, *frames])
        self._held = []
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
