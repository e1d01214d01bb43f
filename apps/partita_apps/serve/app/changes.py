"""What all open pages are told: that a chat, a run, the models or a training changed. Never what has changed in them.

Invariants: a listener that does not read holds nobody up, and what waits for it is bounded, since of each thing only
the last word is kept; what other processes write into the history is noticed within a second or so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ..streams import SILENCE
from .log import frame

MAX_WAITING = 500
"""Things that changed while a listener did not read; beyond, it is told that everything may have."""

Json = dict[str, Any]


class _Listener:
    def __init__(self) -> None:
        self.waiting: dict[tuple[str, str], Json] = {}
        self.woken = asyncio.Event()


class Changes:
    """For one event loop."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()
        self._number = 0
        self._closed = False

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def tell(self, kind: str, data: Mapping[str, Any], key: str = "") -> None:
        """key: of the thing that changed; a word about it takes the place of an earlier one."""
        for each in self._listeners:
            each.waiting.pop((kind, key), None)
            each.waiting[kind, key] = dict(data)
            if len(each.waiting) > MAX_WAITING:
                each.waiting = {("chat", ""): {"id": None, "change": "all"}, ("models", ""): {}, ("tuning", ""): {}}
            each.woken.set()

    def chat(self, ident: str | None, change: str) -> None:
        self.tell("chat", {"id": ident, "change": change}, ident or "")

    def close(self) -> None:
        """End all streams: the server leaves."""
        self._closed = True
        for each in self._listeners:
            each.woken.set()

    async def listen(self, silence: float = SILENCE) -> AsyncGenerator[bytes, None]:
        """Frames as things change; b"" after so many seconds without one."""
        own = _Listener()
        self._listeners.add(own)
        try:
            while not self._closed:
                try:
                    async with asyncio.timeout(silence):
                        await own.woken.wait()
                except TimeoutError:
                    yield b""
                    continue
                own.woken.clear()
                waiting, own.waiting = own.waiting, {}
                pieces = []
                for (kind, _), data in waiting.items():
                    self._number += 1
                    pieces.append(frame(self._number, kind, data))
                if pieces:
                    yield b"".join(pieces)
        finally:
            self._listeners.discard(own)
