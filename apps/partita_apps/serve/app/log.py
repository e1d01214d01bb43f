"""The events of one run, kept in order, and the stream that sends them. Knows nothing of what they say.

Invariants: events are only added, each with a number of its own from 1 on; a listener keeps no more than its place, so
that a slow one costs nothing and holds nobody up; every listener gets every event behind its place, once and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from ..streams import KEEP_ALIVE, SILENCE, while_heard

AT_ONCE = 1 << 18
"""Bytes that are handed to a connection at a time."""
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
)


def frame(number: int, kind: str, data: Mapping[str, Any]) -> bytes:
    """A server-sent event with its number."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode(), msgspec.json.encode(data))


class Log:
    """size: bytes of all events."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._grown = asyncio.Event()  # another one each time
        self.ended, self.size = False, 0

    def add(self, kind: str, data: Mapping[str, Any]) -> None:
        found = frame(len(self._frames) + 1, kind, data)
        self._frames.append(found)
        self.size += len(found)
        self._wake()

    def end(self) -> None:
        """Nothing more comes."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def after(self, number: int, silence: float = SILENCE) -> AsyncGenerator[bytes, None]:
        """Events behind a number, as they come, several at a time; b"" after so many seconds without one. A number that
        no event has yet is one of another log: all are given then."""
        place = number if 0 <= number <= len(self._frames) else 0
        while True:
            grown = self._grown
            if place < len(self._frames):
                data, place = self._batch(place)
                yield data
                continue
            if self.ended:
                return
            try:
                async with asyncio.timeout(silence):
                    await grown.wait()
            except TimeoutError:
                yield b""

    def _batch(self, place: int) -> tuple[bytes, int]:
        size, end = 0, place
        while end < len(self._frames) and (end == place or size + len(self._frames[end]) <= AT_ONCE):
            size += len(self._frames[end])
            end += 1
        return b"".join(self._frames[place:end]), end


@dataclass(frozen=True)
class Stream:
    """The answer that sends events, an ASGI application. An empty piece is a sign of life. It ends with the events, or
    when the client goes away (Gone)."""

    pieces: AsyncGenerator[bytes, None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_heard(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        await send({"type": "http.response.body", "body": b": partita\n\n", "more_body": True})
        try:
            async for piece in self.pieces:
                await send({"type": "http.response.body", "body": piece or KEEP_ALIVE, "more_body": True})
        finally:
            await self.pieces.aclose()
        await send({"type": "http.response.body", "body": b""})
