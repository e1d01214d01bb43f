"""Stop strings: text that ends a reply without being part of it. Knows no tokens.

Text that could be the beginning of a stop string is held back until it cannot be one, so nothing is shown that would
have to be taken back, however the text is split.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError

MAX_STOPS = 16
MAX_LENGTH = 1024  # characters of one stop string


class StopStrings:
    """Feed text with `push`; what it returns is safe to show. `stop` is the first stop string, once it was found."""

    def __init__(self, stops: Sequence[str] = ()):
        if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_LENGTH for stop in stops):
            raise DataError(
                f"`stop` must be at most {MAX_STOPS} strings of 1 to {MAX_LENGTH} characters each", field="stop"
            )
        self._stops = tuple(stops)
        self._held: str = ""
        self.stop: str | None = None

    @property
    def found(self) -> bool:
        return self.stop is not None

    def push(self, text: str) -> str:
        if self.found:
            return ""
        text, self._held = self._held + text, ""
        places = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            place, self.stop = min(places, key=lambda found: found[0])
            return text[:place]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and turned out to be ordinary text."""
        text, self._held = self._held, ""
        return "" if self.found else text


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a proper beginning of stop."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
