"""What the runtime and the converter say while they work, on a terminal: notes as lines, work as bars."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from partita.sources.listener import Listener

from .messages import shown
from .options import tell
from .progress import TerminalProgress, bar


class OnTerminal(Listener):
    """All of it on standard error."""

    def note(self, *lines: str) -> None:
        tell(*lines)

    def spelled(self, message: str) -> str:
        return shown(message)

    def fetching(self) -> TerminalProgress:
        return TerminalProgress()

    def working(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        return bar(what)

    def moving(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        return bar(what, of_bytes=True)
