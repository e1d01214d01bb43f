"""The file of a session: a conversation with its keys and values, which another run goes on with and does not reread.

The runtime writes the file and judges whether it suits this model and cache; `saved.held` keeps other chats from it
while this one goes on, as the last writer would win. Here is only what the chat puts beside the tokens: messages, the
system prompt they were given under, and the ids of the answers. Options of a reply (temperature, length, ...) are each
run's own and are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from msgspec import Meta

from partita.cache.session_file import read_extra
from partita.errors import CheckpointError, DataError
from partita.files.typed import Misfit, typed

from .local import LocalConversation
from .saved import Message, refuse_unanswered

_KEY = "conversation"


@dataclass(frozen=True)
class StoredConversation:
    """messages: user and assistant in turn. replies: the ids of each answer, or None where its text counts."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    replies: list[list[int] | None] = field(default_factory=list)
    system: str | None = None


@dataclass(frozen=True)
class _Extra:
    """What stands beside the tokens of a file."""

    messages: list[Message]
    replies: list[list[Annotated[int, Meta(ge=0)]] | None]
    system: str | None


def find(path: Path) -> StoredConversation | None:
    """What was said in the conversation of a file; None where there is no file yet.

    Raises CheckpointError for a file that is no saved conversation.
    """
    if not path.exists():
        return None
    extra = read_extra(path)[1].get(_KEY)
    if extra is None:
        raise CheckpointError(
            f"{path.name}: a saved session without a conversation: give a file that chat has saved as a session"
        )
    try:
        found = typed(extra, _Extra)
        refuse_unanswered(found.messages)
    except (Misfit, DataError):
        raise damaged(path) from None
    if len(found.replies) * 2 != len(found.messages):
        raise damaged(path)
    return StoredConversation(cast("list[dict[str, Any]]", found.messages), found.replies, found.system)


def damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path.name}: its conversation is damaged; begin another file")


class SessionFile:
    """One conversation and the file it is kept in. path None: it is kept nowhere."""

    def __init__(self, conversation: LocalConversation, path: Path | None):
        self._conversation, self._path = conversation, path
        self._kept: StoredConversation | None = None  # as the file has it

    def resume(self, found: StoredConversation) -> None:
        """Go on from the file, which `found` was read from.

        Raises ContextError where it was saved for another model or cache, CheckpointError where its tokens are none of
        this model's; conversation and file are then as they were.
        """
        if self._path is not None:
            known = self._conversation.model.config.vocab_size
            if any(token >= known for reply in found.replies if reply is not None for token in reply):
                raise damaged(self._path)
            self._conversation.session.restore(self._path)
            self._conversation.resume(found.messages, found.replies, found.system)
            self._kept = self._now()

    def save(self) -> None:
        """Write the file, where anything was said or taken back since. Raises DataError where that cannot be done.

        A conversation that was cleared replaces the one in the file once something is said in it.
        """
        now = self._now()
        if self._path is None or not (now.messages or self._conversation.emptied) or now == self._kept:
            return
        said = {"messages": now.messages, "replies": now.replies, "system": now.system}
        self._conversation.session.save(self._path, {_KEY: said})
        self._kept = now

    def _now(self) -> StoredConversation:
        return StoredConversation(
            self._conversation.messages, self._conversation.replies, self._conversation.settings.system
        )
