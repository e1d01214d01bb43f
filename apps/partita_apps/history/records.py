"""What the history holds, as values. Reads and writes nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

RUNNING, INTERRUPTED = "running", "interrupted"
STATES = ("done", RUNNING, "stopped", "length", "failed", INTERRUPTED)
ROLES = ("user", "assistant", "tool")


@dataclass(frozen=True)
class Chat:
    """settings: of `Settings.document`, those that a person chose. folder: "" for none. created, updated, deleted:
    seconds since 1970; updated: when something was last said. leaf: the message that the chat goes on from, None before
    the first."""

    id: str
    title: str
    model: str
    settings: dict[str, Any]
    folder: str
    pinned: bool
    created: float
    updated: float
    deleted: float | None
    leaf: str | None

    @property
    def cursor(self) -> str:
        """Where a list of chats goes on behind this one: `History.chats(before=…)`."""
        return json.dumps([self.pinned, self.updated, self.id])

    def document(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Message:
    """One node of a chat's tree. parent: the message it follows, None for a first one.

    thought: what was thought before it was said. calls: as OpenAI's API has them. attachments: each a name, a type and
    a text. state: one of STATES, "running" while a reply is written. model: who replied. meta: what else is known of
    it (usage, seconds, error). ids: the tokens of a reply in order, where they are known.
    """

    id: str
    chat: str
    parent: str | None
    role: str
    content: str
    thought: str
    calls: list[dict[str, Any]]
    attachments: list[dict[str, Any]]
    state: str
    model: str
    meta: dict[str, Any]
    ids: tuple[int, ...]
    created: float

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "ids": list(self.ids)}


@dataclass(frozen=True)
class Hit:
    """Where a text was found. message: None for a title. snippet: plain text, \\x02 and \\x03 around what matches."""

    chat: str
    message: str | None
    title: str
    snippet: str
    updated: float
