"""The events of a run while it goes on, numbered, for whoever reads them now or comes back later. Knows no HTTP.

Invariant: numbers go up by one; what is old enough is forgotten, which `since` says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple

MOST = 5_000


class Event(NamedTuple):
    number: int
    kind: str
    data: Any


class Log:
    """For one event loop."""

    def __init__(self, most: int = MOST) -> None:
        self._events: deque[Event] = deque(maxlen=most)
        self.last = 0
        self.closed = False
        self._more = asyncio.Event()

    def add(self, kind: str, data: Any) -> None:
        self.last += 1
        self._events.append(Event(self.last, kind, data))
        self.wake()

    def close(self) -> None:
        """Nothing more comes."""
        self.closed = True
        self.wake()

    def since(self, number: int) -> list[Event] | None:
        """What came after an event; None where some of that is forgotten."""
        missed = self.last - max(number, 0)
        if missed > len(self._events):
            return None
        return list(self._events)[len(self._events) - missed :] if missed > 0 else []

    async def wait(self) -> None:
        """Until there is more, nothing more will come, or somebody was woken."""
        if not self.closed:
            await self._more.wait()

    def wake(self) -> None:
        """Have everybody look who waits."""
        self._more.set()
        self._more = asyncio.Event()
