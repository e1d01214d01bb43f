"""The parts of a reply up to the first stop string in what is said; in thoughts and calls one is text."""

from __future__ import annotations

from collections.abc import Sequence

from ..stop_strings import StopStrings
from .parser import ReplyParser
from .parts import Part


class UntilStop:
    """Parts of one reply out of its tokens, as `ReplyParser` gives them; none follows a stop string."""

    def __init__(self, reply: ReplyParser, stops: StopStrings):
        self._reply, self._stops = reply, stops

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._stops.stop

    @property
    def thinking(self) -> bool:
        """Whether what comes next is part of a thought, as far as is certain."""
        return self._reply.thinking

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.found

    def push(self, token: int) -> list[Part]:
        """What became certain with one more token."""
        return self._until_stop(self._reply.push(token))

    def finish(self) -> list[Part]:
        """What was held back."""
        found = self._until_stop(self._reply.finish())
        held = self._stops.finish()
        return [*found, Part("speech", held)] if held else found

    def _until_stop(self, parts: Sequence[Part]) -> list[Part]:
        found: list[Part] = []
        for part in parts:
            if self.stopped:
                break
            if part.kind == "speech":
                found.append(Part("speech", self._stops.push(part.text)))
            else:  # no stop string goes on behind it
                found += [Part("speech", self._stops.finish()), part]
        return [part for part in found if part.text or part.call is not None]
