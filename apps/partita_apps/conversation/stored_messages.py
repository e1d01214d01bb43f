"""Messages between a conversation, which holds whole turns, and the history, which holds trees of all that was said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from partita.errors import DataError
from partita.files.bounded import is_table, parse

if TYPE_CHECKING:
    from ..history import Message


def turns(path: Sequence[Message]) -> list[Message]:
    """Whole turns of a path: each text with its reply. A text without one stays out, and so does one whose reply says
    nothing.

    Raises DataError where the terminal cannot go on: behind tools' results, and while somebody else writes.
    """
    found: list[Message] = []
    for i, message in enumerate(path):
        if message.role != ("user", "assistant")[i % 2]:
            raise DataError(
                "this chat is not of texts and replies in turn, as results of tools are in it: use the page"
            )
        if message.state == "running":
            raise DataError("a reply of this chat is being written by another program: wait until it has ended")
        if message.role == "assistant" and (message.content or message.thought or message.calls):
            found += [path[i - 1], message]
    return found


def said(message: Message) -> dict[str, Any]:
    """A message as a conversation holds it."""
    if message.role == "user":
        return {"role": "user", "content": asked_text(message)}
    calls = [call for each in message.calls if (call := _call(each)) is not None]
    found: dict[str, Any] = {"role": "assistant", "content": message.content}
    found |= {"reasoning_content": message.thought} if message.thought else {}
    return found | ({"tool_calls": calls} if calls else {})


def asked_text(message: Message) -> str:
    """A text with the files that were attached to it."""
    if not message.attachments:
        return message.content
    return "\n\n".join([*map(attached, message.attachments), message.content]).strip()


def attached(file: Mapping[str, Any]) -> str:
    """A file as a model reads it."""
    name = " ".join(str(file.get("name", "")).split()).replace('"', "'")
    return f'<file name="{name}">\n{str(file.get("text", "")).strip()}\n</file>'


def _call(call: Mapping[str, Any]) -> dict[str, Any] | None:
    """A tool call as templates want it: its arguments are a table. None for one that was not understood."""
    function = call.get("function", call)
    if not is_table(function) or not isinstance(name := function.get("name"), str):
        return None
    arguments = function.get("arguments", {})
    try:
        arguments = parse(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return None
    if not is_table(arguments):
        return None
    return {"id": str(call.get("id", "")), "type": "function", "function": {"name": name, "arguments": arguments}}


def fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation's message as the history has it, calls as OpenAI's API has them."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    thought = message.get("reasoning_content", "")
    return {"role": message["role"], "content": message["content"], "thought": thought, "calls": calls}
