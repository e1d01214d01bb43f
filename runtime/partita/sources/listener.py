"""What is said while a run or a conversion goes on: lines for a person, and how far the work is. Shows nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from .store import Progress, Silent

OnPart = Callable[[int, int], None]
"""Called with (done, total)."""


class Listener:
    """Every method does nothing: override those of interest."""

    def note(self, *lines: str) -> None:
        """What a person should know though nothing failed."""

    def spelled(self, message: str) -> str:
        """A message with the names of settings as they are typed where it is shown."""
        return message

    def fetching(self) -> Progress:
        """Hears of a fetch, of a model or of data."""
        return Silent()

    def working(self, what: str) -> AbstractContextManager[OnPart]:
        """Around work that counts its parts: "reading the data", "loading the model"."""
        return nullcontext(unheard)

    def moving(self, what: str) -> AbstractContextManager[OnPart]:
        """The same around work that counts bytes: "writing"."""
        return self.working(what)


def unheard(done: int, total: int) -> None:
    """An `OnPart` for nobody."""
