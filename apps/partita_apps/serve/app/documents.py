"""Chats and messages as a page is given them. Data in, data out, apart from the HTML (`rendering`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .rendering import Rendering
from .run import Run

if TYPE_CHECKING:
    from ...history import Chat, Hit, Message

SECONDS = 0.12
"""How long a chat is rendered before it is answered; what is not rendered then has no HTML, and is asked for again."""
Json = dict[str, Any]


def chat(given: Chat) -> Json:
    return asdict(given)


def tree(messages: Sequence[Message], traced: Collection[str], rendering: Rendering, leaf: str | None) -> list[Json]:
    """All messages of a chat, oldest first. HTML is made from the end of what is shown on back."""
    children: dict[str | None, list[str]] = defaultdict(list)
    for each in messages:
        children[each.parent].append(each.id)
    order = _last_first(messages, leaf)
    html = dict(
        zip((each.id for each in order), rendering.some([each.content for each in order], SECONDS), strict=True)
    )
    return [
        {
            **message(each),
            "html": html[each.id],
            "siblings": children[each.parent],
            "has_trace": each.id in traced,
        }
        for each in messages
    ]


def message(given: Message) -> Json:
    """tokens: how many are known. An attached file is told without its text, and with the message that holds it: so it
    can be sent again."""
    found = dict(vars(given))  # asdict would copy each of thousands of ids
    ids = found.pop("ids")
    files = [
        {
            "name": file.get("name"),
            "type": file.get("type"),
            "characters": len(file.get("text", "")),
            "message": given.id,
        }
        for file in given.attachments
    ]
    return {**found, "attachments": files, "tokens": len(ids)}


def hit(given: Hit) -> Json:
    return asdict(given)


def run(given: Run | None) -> Json | None:
    return None if given is None else {**given.task.document(), "state": given.state}


def _last_first(messages: Sequence[Message], leaf: str | None) -> list[Message]:
    """The path to a leaf, from its end on, then all others, the newest first."""
    known = {each.id: each for each in messages}
    path: dict[str, Message] = {}
    at = known.get(leaf) if leaf is not None else None
    while at is not None:
        path[at.id] = at
        at = known.get(at.parent) if at.parent is not None else None
    return [*path.values(), *(each for each in reversed(messages) if each.id not in path)]
