"""What all requests of pages share: the history, the runs, and who is told of changes. Knows no HTTP.

Invariants: the history is never waited for in the event loop; what another process writes into it, and what becomes of
the models, is told within a second or so to whoever listens.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from partita.errors import DataError, PartitaError

from ...history import History
from ..asked import Refused
from ..metrics import Metrics
from ..replies import Models
from ..settings import Settings
from .changes import Changes
from .rendering import Rendering
from .run import Tools
from .runs import Runs
from .tuning.tunings import Models as Tuned
from .tuning.tunings import Tunings

FILE = "history.sqlite3"
TUNING = "tuning"
_LOOK = 1.0  # seconds between two looks for what changed elsewhere
_SAVE = 5.0  # seconds that a fine-tuning run has at least to save
_UNKNOWN = re.compile(r"unknown (chat|message|preset) ")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Pages:
    """An asynchronous context of the server's life. Raises DataError where the history cannot be used.

    kept: whether chats outlive the server. data: the folder of what is kept, None for nowhere: then there is no fine-
    tuning, either.
    """

    def __init__(self, models: Models, metrics: Metrics, settings: Settings) -> None:
        self.data: Path | None = settings.data
        self.kept = settings.data is not None and settings.history
        self.history = _opened(settings.data if settings.history else None)
        self.models, self.rendering, self.changes = models, Rendering(), Changes()
        self.runs = Runs(Tools(models, metrics, self.history, self.rendering), self.changes)
        self.tunings: Tunings | None = None
        if settings.data is not None and isinstance(models, Tuned):
            self.tunings = Tunings(settings.data / TUNING, models, self._tuned)
        self._drain, self._left = settings.drain, 0.0
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        if self.tunings is not None:
            await self.tunings.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None):
        self.leave()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        left = self._drain - (time.monotonic() - self._left)
        tuned = [] if self.tunings is None else [self.tunings.close(max(left, _SAVE))]
        await asyncio.gather(self.runs.close(left), *tuned)
        await asyncio.to_thread(self.history.close)

    def leave(self) -> None:
        """The server is about to end: nobody listens for changes any more."""
        self._left = self._left or time.monotonic()
        self.changes.close()
        if self.tunings is not None:
            self.tunings.leave()

    def _tuned(self, ident: str) -> None:
        self.changes.tell("tuning", {"id": ident}, ident)

    @property
    def leaving(self) -> bool:
        return self._left > 0

    async def call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """What a function of the history gives, in a thread. Raises Refused."""
        try:
            return await asyncio.to_thread(function, *arguments, **named)
        except DataError as error:
            kind = "not_found" if _UNKNOWN.match(str(error)) else "invalid"
            raise Refused(str(error), kind, field=error.field) from None

    async def _watch(self) -> None:
        seen_models, number = "", await asyncio.to_thread(self.history.changes)
        seen_chats = await self._look_at_chats(None)  # before the first page asks, which then hears of all that follows
        while True:
            await asyncio.sleep(_LOOK)
            if not self.changes.heard:
                continue
            try:
                seen_models = self._look_at_models(seen_models)
                now = await asyncio.to_thread(self.history.changes)
                if now != number:
                    seen_chats, number = await self._look_at_chats(seen_chats), now
            except PartitaError as error:
                _log.warning("what changed was not seen: %s", error)

    def _look_at_models(self, before: str) -> str:
        found: list[Any] = []
        workers = self.models.workers()
        for name in self.models.names():
            try:
                model = self.models.describe(name)
            except Refused:  # it went away meanwhile
                continue
            found.append((name, model.state, getattr(workers.get(name), "progress", None)))
        if before and before != str(found):
            self.changes.tell("models", {})
        return str(found)

    async def _look_at_chats(self, before: dict[str, Any] | None) -> dict[str, Any]:
        chats = await asyncio.to_thread(self.history.chats)
        found = {each.id: (each.updated, each.title, each.folder, each.pinned, each.leaf) for each in chats}
        if before is None:
            return found
        different = [ident for ident in {**before, **found} if before.get(ident) != found.get(ident)]
        for ident in different:
            self.changes.chat(ident, "changed")
        if not different and not any(self.runs):  # a reply grows that another process writes
            self.changes.chat(None, "elsewhere")
        return found


def _opened(data: Path | None) -> History:
    return History.in_memory() if data is None else History.open(data / FILE)
