"""Conversations with a server's model, for tests of `partita chat --server`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from partita_apps.conversation.client import Address, Client
from partita_apps.conversation.remote import RemoteConversation
from partita_apps.conversation.settings import Settings
from partita_apps.conversation.stats import ReplyStats

from .served import Served

Serve = Callable[..., Served]


def conversation(url: str, model: str | None = None, key: str | None = None, **settings: Any) -> RemoteConversation:
    return RemoteConversation(
        Client(Address.parse(url), key), model, Settings.of({"max_tokens": 8, **settings}), tuple(settings)
    )


def reply(talk: RemoteConversation, text: str, alternatives: int = 0) -> ReplyStats:
    """A whole reply, counted."""
    found = ReplyStats(talk)
    for piece in talk.reply(text, alternatives=alternatives):
        found.add(piece)
    return found
