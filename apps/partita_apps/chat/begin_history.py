"""Whether a chat is kept, and which one it goes on with, from the options; before any model is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from partita.errors import DataError
from partita.files.paths import own

if TYPE_CHECKING:
    from ..conversation.conversation import Conversation
    from ..history import Chat, History


@dataclass(frozen=True)
class Kept:
    """kept: whether there is a history to speak of: not for one reply, nor for plain text. history: None while it is
    off. chat: to go on with."""

    kept: bool = False
    history: History | None = None
    chat: Chat | None = None

    def model(self, named: str | None) -> str | None:
        """The model to load: the one that was named, else the one that the chat was held with, if it is here."""
        if named is not None or self.chat is None or not _is_here(self.chat.model):
            return named
        return self.chat.model

    def attach(self, conversation: Conversation, given: Mapping[str, Any]) -> None:
        """Give a conversation its place. given: settings that a person gave now."""
        from ..conversation.record import Record
        from ..conversation.shared import SharedConversation, SharedRecord
        from ..history import History

        if not self.kept:
            return
        conversation.chosen = set(given)
        on = self.history is not None

        def opening() -> History:
            return self.history or History.open()

        if isinstance(conversation, SharedConversation):
            record: Record = SharedRecord(conversation, opening, on=on)
        else:
            record = Record(conversation, opening, on=on)
        conversation.record = record
        if self.chat is not None:
            record.trouble = record.open(self.chat, given)


def begin_history(options: Mapping[str, Any], *, raw: bool, once: bool) -> Kept:
    """Raises DataError for options that exclude each other, a history that cannot be used, no chat to go on with."""
    go_on, off, file = options["go_on"], options["no_history"], options["session"]
    if go_on and (raw or once):
        raise DataError("--continue goes on with a conversation in a terminal: leave it out to have one text answered")
    if go_on and (off or file is not None):
        raise DataError(
            f"--continue and {'--no-history' if off else '--session'} exclude each other: choose one of them"
        )
    if raw or once:
        return Kept()
    if off or file is not None:
        return Kept(True)
    from ..history import History

    history = History.open()
    if not go_on:
        return Kept(True, history)
    latest = history.latest(1)
    if not latest:
        raise DataError(f"there is no chat to go on with in {history.file}: leave --continue out to begin one")
    return Kept(True, history, latest[0])


def chosen(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of options, those that say something."""
    return {name: value for name, value in given.items() if value not in (None, {}, ())}


def _is_here(model: str) -> bool:
    """Whether a name leads to a model without a network."""
    from partita.sources.resolve import full_name, list_models

    if not model:
        return False
    if os.path.lexists(own(model)):
        return True
    return full_name(model) != model or any(each.name in (model, f"hf:{model}") for each in list_models())
