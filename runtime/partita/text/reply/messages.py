"""Replies that are messages (gpt-oss, Muse Glimmer), each behind a header that says whom it is to, or which channel's.

Invariants: as in `parser`. A header that turns out to be none is shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .called import ToolCall
from .calls import read, read_arguments
from .formats import Dialect
from .parts import Kind, Machine
from .values import Malformed

MAX_HEADER = 256  # characters; what is longer is none
_HEADER_TEXT = re.compile(r"[\w .=:/-]*")
_ROLE = re.compile(r" *(assistant)?( *to=\S+)? *")
_CHANNEL = re.compile(r" *\w*( +to=\S+)?( +\w+)? *")
_ITSELF = "self"  # the recipient of what a model thinks
_RECIPIENT = re.compile(r"to=(\S+)")
_UNMARKED = re.compile(r"assistant(analysis|commentary|final)?")


class Messages(Machine):
    """Messages, each behind a header: its role, whom it is to, its channel, the type of what follows."""

    def __init__(self, dialect: Dialect, tools: Sequence[Any] | None, calls: int) -> None:
        super().__init__(tools, calls)
        self._dialect = dialect
        self._kind: Kind | None = None  # of the message; None: inside a header
        self._header = _Header()
        self._body: list[str] = []  # of a call

    def begin(self) -> None:
        """The reply itself begins here: what went before was the prompt's."""
        self._forget()
        self._body, self._header = [], replace(self._header, role="")

    @property
    def thinking(self) -> bool:
        return self._kind == "thought"

    def takes(self, literal: str) -> bool:
        return literal in self._dialect.marks or self._kind == "tool_call"

    def control(self, literal: str) -> None:
        if literal not in self._dialect.marks:
            self._body.append(literal)
        elif literal == "<|message|>":
            if self._kind is None:
                self._kind = self._header.kind()
        elif literal == "<|constrain|>":
            if self._kind is None:
                self._header = replace(self._header, inside="type")
        else:
            channel = literal == "<|channel|>"
            if self._kind is not None or not channel:
                self._close()
            if channel:  # a second one in the same header takes the place of the first
                self._header = _Header(self._header.role, inside="channel")

    def text(self, more: str) -> None:
        if self._kind == "tool_call":
            self._body.append(more)
        elif self._kind is not None:
            self._say(self._kind, more)
        elif more:
            self._header = self._header.longer(more)
            if not self._header.possible():
                self._kind, shown = self._header.shown()
                self._say(self._kind, shown)

    def end(self) -> None:
        self._close()

    def _close(self) -> None:
        """The end of a message, or of a header that had none."""
        kind, self._kind = self._kind, None
        header, body, self._body = self._header, "".join(self._body), []
        self._header = _Header()
        if kind == "tool_call":
            written = f"{header.text()} {body}".strip()
            try:
                self._call(self._read(header.recipient().removeprefix("functions."), body, written))
            except Malformed as error:
                self._call([ToolCall("", "", "", written, str(error))])
        elif kind is not None:
            self._part_from(kind)
        elif not header.whole():
            kind, shown = header.shown()
            self._say(kind, shown)
            self._part_from(kind)

    def _read(self, recipient: str, body: str, written: str) -> list[ToolCall]:
        """The calls of a message to a tool. Raises Malformed."""
        notation = self._dialect.call.notation
        if not notation:
            return [read_arguments(recipient, body, written)]
        return read(notation, body, self._tools, written)


@dataclass(frozen=True)
class _Header:
    """What stands in front of a message. inside: the field that is written."""

    role: str = ""
    channel: str = ""
    type: str = ""
    inside: Literal["role", "channel", "type"] = "role"

    def longer(self, text: str) -> _Header:
        return replace(self, **{self.inside: getattr(self, self.inside) + text})

    def text(self) -> str:
        return self.role + self.channel + self.type

    def possible(self) -> bool:
        """Whether this can still become a header."""
        text = self.text()
        return len(text) <= MAX_HEADER and _HEADER_TEXT.fullmatch(text) is not None

    def whole(self) -> bool:
        """Whether it is one, or the beginning of one: then nobody needs to see it."""
        return _ROLE.fullmatch(self.role) is not None and _CHANNEL.fullmatch(self.channel) is not None

    def shown(self) -> tuple[Kind, str]:
        """What is said where this is no header: all but a role, and the name of a channel without its marker."""
        text = self.text()
        found = _UNMARKED.match(text)
        rest = text if found is None else text[found.end() :]
        return "thought" if found is not None and found[1] == "analysis" else "speech", rest

    def recipient(self) -> str:
        found = _RECIPIENT.search(f"{self.role} {self.channel}")
        return "" if found is None or found[1] in ("assistant", "user") else found[1]

    def kind(self) -> Kind:
        if self.recipient() == _ITSELF or (not self.recipient() and self.channel.split()[:1] == ["analysis"]):
            return "thought"
        return "tool_call" if self.recipient() else "speech"
