"""Tools as a model is told of them: by its chat template, or in its instructions where that has no place for tools.

Not here: what a reply may then be (`structure`). Invariants: a conversation without tools, or with none that may be
called, is left as it is but for calls and results of earlier turns; the same tools give the same text in every turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, takewhile
from typing import Any

from partita.text.reply.formats import GENERIC, NAMED, ReplyFormat

from .asked import Ask, Message, Refused, Tool
from .model_text import ModelText
from .turns import INSTRUCTIONS

Json = dict[str, Any]
_NAME = re.compile(r"[\w.:/-]{1,128}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9]{9}")  # Mistral's templates refuse any other
_END = GENERIC.ends[0]
_INSTRUCTIONS = f"""You can call the functions that are described here, one on each line:
<tools>
{{tools}}
</tools>
To call a function, write its name and its arguments as one JSON object, in this form:
{GENERIC.begin}
{{{{"name": "the name of the function", "arguments": {{{{"the name of an argument": "its value"}}}}}}}}
{_END}
You are then given what it returns, between <tool_response> and </tool_response>."""


def offered(ask: Ask) -> Sequence[Tool]:
    """The tools that may be called in the reply. Raises Refused for names that models cannot write."""
    if ask.tool_choice.mode == "none":
        return ()
    for tool in ask.tools:
        if not _NAME.fullmatch(tool.name):
            raise Refused(
                f"`tools`: {tool.name!r} is no name: use up to 128 letters, digits and _ - . : /", field="tools"
            )
    return ask.tools


def has_tools(text: ModelText) -> bool:
    """Whether a model's template takes tools, and its replies call them in a notation that is read here."""
    form = text.reply_format
    return text.template is not None and text.template.mentions("tools") and form.calls is not None


def form_of(ask: Ask, text: ModelText) -> ReplyFormat:
    """How the reply is read."""
    generic = offered(ask) and text.template is not None and not has_tools(text)
    return text.reply_format.with_generic_calls() if generic else text.reply_format


def with_tools(ask: Ask, text: ModelText) -> tuple[list[Message], list[Json] | None]:
    """Messages, and the tools for the template in OpenAI's form: None where it is not given any, neither where there
    are none nor where the messages tell of them.

    The tools for `ReplyParser` are those of `described(offered(ask))`. Raises Refused.
    """
    messages, tools = list(ask.messages or ()), offered(ask)
    if has_tools(text):
        given = _as_metadata(messages) if _reads_metadata(text) else _with_ids(messages)
        return given, described(tools) if tools else None
    messages = _as_text(messages, text)
    if not tools or text.template is None:
        return messages, None
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in described(tools))
    leading = sum(1 for _ in takewhile(lambda message: message["role"] in INSTRUCTIONS, messages))
    said = {"role": "system", "content": _INSTRUCTIONS.format(tools=lines)}
    return [*messages[:leading], said, *messages[leading:]], None


def described(tools: Iterable[Tool]) -> list[Json]:
    """Tools in OpenAI's form."""
    none = {"type": "object", "properties": {}}
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters) or none,
            },
        }
        for tool in tools
    ]


def _with_ids(messages: Sequence[Message]) -> list[Message]:
    """The same, with ids of calls that every template takes: nine letters and digits."""
    ids = [call.get("id") for message in messages for call in message.get("tool_calls") or ()]
    taken = {ident for ident in ids if isinstance(ident, str) and _ID.fullmatch(ident)}
    free = (name for i in range(len(ids) + len(taken)) if (name := f"call{i:05d}") not in taken)
    new = {ident: ident if ident in taken else next(free) for ident in dict.fromkeys(ids) if isinstance(ident, str)}
    return [_renamed(message, new) for message in messages]


def _renamed(message: Message, new: Mapping[str, str]) -> Message:
    if message.get("tool_call_id") in new:
        return {**message, "tool_call_id": new[message["tool_call_id"]]}
    if message.get("tool_calls"):
        calls = [{**call, "id": new.get(call.get("id"), call.get("id"))} for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}
    return message


def _reads_metadata(text: ModelText) -> bool:
    """Whether a template finds calls in the metadata of messages, as GLM-4's do."""
    calls, template = text.reply_format.calls, text.template
    return calls is not None and calls.begin == NAMED and template is not None and not template.mentions("tool_calls")


def _as_metadata(messages: Sequence[Message]) -> list[Message]:
    """The same with each call a message whose metadata is the tool's name, and with results as observations."""
    found: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            found.append({"role": "observation", "content": message["content"]})
            continue
        calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
        if message.get("content") or not calls:
            found.append({key: value for key, value in message.items() if key != "tool_calls"})
        for call in calls:
            arguments = json.dumps(call.get("arguments") or {}, ensure_ascii=False)
            found.append({"role": "assistant", "metadata": call["name"], "content": arguments})
    return found


# ---------------------------------------------------------------- a template without tools


def _as_text(messages: Sequence[Message], text: ModelText) -> list[Message]:
    """Calls and results as text in what the assistant said and what it was told then."""
    knows_results = text.template is not None and text.template.mentions("tool")
    found: list[Message] = []
    for is_result, group in groupby(messages, key=lambda message: message["role"] == "tool"):
        several = list(group)
        if not is_result:
            found += [_spoken(message) if message.get("tool_calls") else message for message in several]
        elif knows_results:
            found += several
        else:
            results = (f"<tool_response>\n{message['content']}\n</tool_response>" for message in several)
            found.append({"role": "user", "content": "\n".join(results)})
    return found


def _spoken(message: Message) -> Message:
    """An assistant's message with its calls as it wrote them."""
    calls = [call.get("function", call) for call in message["tool_calls"]]
    objects = [{"name": call["name"], "arguments": call.get("arguments") or {}} for call in calls]
    written = [f"{GENERIC.begin}\n{json.dumps(call, ensure_ascii=False)}\n{_END}" for call in objects]
    said = "\n".join(filter(None, (message.get("content"), *written)))
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": said}
