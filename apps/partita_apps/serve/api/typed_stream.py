"""Streams of dialects whose events name their type twice, in the data and in the `event:` line. One reply each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from ..asked import Ended, Event, Refused
from ..streams import frame


class EventWriter(Protocol):
    """Events of one reply, each with its "type"."""

    def push(self, event: Event) -> list[dict[str, Any]]: ...
    def fail(self, why: Refused) -> list[dict[str, Any]]: ...


class TypedStream:
    """A `streams.Writer`. What was asked for and not done is said in comments, in front of the reply's end."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer

    def push(self, index: int, event: Event) -> Iterable[bytes]:
        for warning in event.warnings if isinstance(event, Ended) else ():
            yield f": {' '.join(warning.split())}\n\n".encode()
        yield from _frames(self._writer.push(event))

    def fail(self, why: Refused) -> Iterable[bytes]:
        return _frames(self._writer.fail(why))

    def finish(self) -> Iterable[bytes]:
        return ()


def _frames(events: Iterable[dict[str, Any]]) -> Iterable[bytes]:
    return [frame(event, event["type"]) for event in events]
