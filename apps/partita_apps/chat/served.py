"""`partita chat --server`: which options make sense with a server, and the conversation with one of its models."""

from __future__ import annotations

import os
from typing import Any

from partita.errors import DataError
from partita.text.chat_template import parse_variable

from ..conversation.app_client import of_this_machine
from ..conversation.client import Address, Client
from ..conversation.remote import RemoteConversation
from ..conversation.settings import NAMES, Settings
from ..conversation.shared import SharedConversation
from .begin_history import Kept, chosen

LOCAL = {
    "raw": False,
    "session": None,
    "draft": None,
    "lookup": False,
    "adapters": (),
    "context": None,
    "sinks": None,
    "kv": "auto",
    "backend": "auto",
    "device": None,
    "dtype": "auto",
    "threads": None,
}
"""Options about a model that is loaded here, and what they are when nobody gave them."""
_INSTEAD = {
    "raw": "a server's conversations have a template",
    "session": "/save FILE keeps a conversation",
    "adapters": "MODEL:ADAPTER, or /adapter NAME in the chat, takes one of the server's",
}


def begin_there(model: str | None, raw: bool, once: bool, options: dict[str, Any], kept: Kept) -> RemoteConversation:
    """A conversation at its beginning. Raises DataError for options that are not the client's, and what
    `RemoteConversation` raises."""
    given = {**options, "raw": raw}
    refused = [name for name, usual in LOCAL.items() if given[name] != usual]
    if refused:
        instead = _INSTEAD.get(refused[0], "leave it out") if len(refused) == 1 else "leave them out"
        names = ", ".join(f"`{'adapter' if name == 'adapters' else name}`" for name in refused)
        raise DataError(f"{names} cannot be given with `server`, whose model is loaded already: {instead}")
    variables = dict(map(parse_variable, options["template_var"]))
    given = {name: options[name] for name in NAMES if options[name] is not None} | {"template_var": variables}
    if once:
        given.setdefault("temperature", 0.0)  # as with a model that is loaded here
    address = Address.parse(options["server"])
    client = Client(address, os.environ.get("PARTITA_API_KEY") or None)
    rather = None if kept.chat is None else kept.chat.model
    app = None if kept.history is None else of_this_machine(address, kept.history.file)
    settings, names = Settings.of(given), tuple(given)
    if app is None:
        conversation = RemoteConversation(client, model, settings, names, rather=rather)
    else:
        conversation = SharedConversation(client, app, model, settings, names, rather=rather)
    kept.attach(conversation, chosen(given))
    return conversation
