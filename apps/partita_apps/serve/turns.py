"""Messages as a model's own chat template takes them. Knows no HTTP; which fields a client may send is the dialects'.

In: roles system, developer, user, assistant and tool, contents texts. Out: one system message in front at most, later
ones only where the template writes them, and no other role than those that templates know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, takewhile

from .asked import Message
from .model_text import ModelText

INSTRUCTIONS = frozenset({"system", "developer"})


def normalized(messages: Sequence[Message], text: ModelText) -> list[Message]:
    """All leading instructions as one message, in the first question where the template has no place for them; later
    ones where they stand, as a user's where it has none. Developers' are the system's."""
    leading = list(takewhile(_instructs, messages))
    rest = [_placed(message, text.system_later) for message in messages[len(leading) :]]
    said = _joined(leading)
    if not said:
        return rest
    if text.system_first:
        return [{"role": "system", "content": said}, *rest]
    if rest and rest[0]["role"] == "user":
        first, *rest = rest
        return [{**first, "content": _joined([{"content": said}, first])}, *rest]
    return [{"role": "user", "content": said}, *rest]


def merged(messages: Sequence[Message]) -> list[Message]:
    """The same with each speaker's messages in a row as one, for templates that want speakers to alternate."""
    found: list[Message] = []
    for role, group in groupby(messages, key=lambda message: message["role"]):
        several = list(group)
        if role != "user" or len(several) == 1:
            found += several
        else:
            found.append({**several[0], "content": _joined(several)})
    return found


def _instructs(message: Message) -> bool:
    return message["role"] in INSTRUCTIONS


def _placed(message: Message, system: bool) -> Message:
    return {**message, "role": "system" if system else "user"} if _instructs(message) else message


def _joined(messages: Iterable[Message]) -> str:
    return "\n\n".join(text for message in messages if (text := message["content"]))
