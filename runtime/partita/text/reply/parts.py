"""What a reply is told apart into, and how its parts wait to be given out. Knows no markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from .called import ToolCall, offered

Kind = Literal["speech", "thought", "tool_call"]


@dataclass(frozen=True)
class Part:
    """Some text of a reply that became certain, or a whole tool call (its text is then "")."""

    kind: Kind
    text: str
    call: ToolCall | None = None


class Machine:
    """What both forms of replies share: parts that wait to be given out."""

    def __init__(self, tools: Sequence[Any] | None, calls: int) -> None:
        self._tools = offered(tools)
        self._calls = calls
        self._parts: list[Part] = []
        self._apart: dict[Kind, bool] = {}  # a kind has been said, and (True) has ended since

    def given(self) -> list[Part]:
        """The parts since the last time, texts that belong together in one."""
        found: list[Part] = []
        for kind, group in groupby(self._parts, key=lambda part: part.kind):
            same = list(group)
            text = "".join(part.text for part in same)
            found += same if kind == "tool_call" else [replace(same[0], text=text)]
        self._parts = []
        return found

    def _forget(self) -> None:
        self._parts, self._apart = [], {}

    def _say(self, kind: Kind, text: str) -> None:
        if not text:
            return
        if self._apart.get(kind):
            text = f"\n{text}"
        self._apart[kind] = False
        self._parts.append(Part(kind, text))

    def _part_from(self, kind: Kind) -> None:
        """What is said of this kind from now on stands on a line of its own."""
        if kind in self._apart:
            self._apart[kind] = True

    def _call(self, calls: Iterable[ToolCall]) -> None:
        for call in calls:
            if call.error is None:  # nine letters and digits: Mistral's templates want them
                call = replace(call, id=call.id or f"call{self._calls:05d}")
                self._calls += 1
            self._parts.append(Part("tool_call", "", call))
