"""All runs: those that are under way, and those that ended a short while ago, for listeners that come late.

Invariants: a chat has one run at a time; what is kept of ended runs is bounded in time and bytes, and what is forgotten
is in the history; when the server ends, every run comes to an end before the models do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager

from ..asked import Refused
from .changes import Changes
from .run import Run, Task, Tools

MOST = 32
"""Runs at a time; the engine computes half of them side by side."""
KEPT_SECONDS = 300.0
KEPT_BYTES = 32 << 20


class Runs:
    """For one event loop."""

    def __init__(self, tools: Tools, changes: Changes) -> None:
        self._tools, self._changes = tools, changes
        self._runs: dict[str, Run] = {}
        self._claimed: set[str] = set()
        self._closed = False

    def __iter__(self) -> Generator[Run, None, None]:
        """Those under way."""
        yield from [run for run in self._runs.values() if run.ended is None]

    def get(self, ident: str) -> Run | None:
        return self._runs.get(ident)

    def of_chat(self, chat: str) -> Run | None:
        return next((run for run in self if run.task.chat == chat), None)

    @contextmanager
    def claim(self, chat: str) -> Generator[None, None, None]:
        """Nobody else begins a run of the chat meanwhile. Raises Refused: conflict, busy, engine."""
        if self._closed:
            raise Refused("the server is shutting down", "engine", retry_after=10)
        if chat in self._claimed or self.of_chat(chat) is not None:
            raise Refused("a reply of this chat is being written: stop it, or wait for its end", "conflict")
        if len(self._claimed) + sum(1 for _ in self) >= MOST:
            raise Refused(f"{MOST} replies are being written: wait for one, or stop it", "busy", retry_after=2)
        self._claimed.add(chat)
        try:
            yield
        finally:
            self._claimed.discard(chat)

    def begin(self, task: Task) -> Run:
        """To be called while the chat is claimed."""
        self._forget()
        run = self._runs[task.run] = Run(task, self._tools, self._ended)
        self._say(run)
        return run

    async def close(self, patience: float) -> None:
        """Take nothing new, let runs end for some seconds, and end them with what they have said."""
        self._closed = True
        running = [run.done for run in self]
        if running:
            await asyncio.wait(running, timeout=patience)
        for run in self:
            run.stop("interrupted")
        if running:
            await asyncio.wait(running)

    def _ended(self, run: Run) -> None:
        self._say(run)
        self._changes.chat(run.task.chat, "messages")

    def _say(self, run: Run) -> None:
        own = {"run": run.task.run, "chat": run.task.chat, "reply": run.task.run, "state": run.state}
        self._changes.tell("run", own, run.task.run)

    def _forget(self) -> None:
        """Ended runs, the oldest first, until the others are few and young enough."""
        ended = sorted((run.ended, ident) for ident, run in self._runs.items() if run.ended is not None)
        size, now = sum(self._runs[ident].log.size for _, ident in ended), time.monotonic()
        for when, ident in ended:
            if now - when < KEPT_SECONDS and size <= KEPT_BYTES:
                return
            size -= self._runs.pop(ident).log.size
