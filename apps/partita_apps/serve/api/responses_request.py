"""Bodies of the Responses API: what is asked of a model, and what the response says of it. No HTTP, no model.

This server keeps nothing between requests: what refers to an earlier one is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from partita.files.bounded import is_table

from ..asked import Ask, Format, Refused, ToolChoice
from ..fields import Alternatives, Count
from .responses_items import Conversation
from .responses_tools import Offered
from .sampling_fields import Sampled, effort_variables

Json = dict[str, Any]
_STATELESS = "the whole conversation in `input`, since this server stores none"
_PROBABILITIES, _SEALED = "message.output_text.logprobs", "reasoning.encrypted_content"


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: Any = None


class Text(msgspec.Struct):
    format: Any = None
    verbosity: Any = None


class ResponsesBody(Sampled, kw_only=True):
    """Of `/v1/responses` and `/v1/responses/input_tokens`."""

    HINTS: ClassVar[frozenset[str]] = frozenset(
        {
            "access_programs",
            "background_options",
            "client_metadata",
            "context_management",
            "image",
            "max_tool_calls",
            "moderation",
            "personality",
            "prompt_cache_options",
            "prompt_cache_retention",
            "service_tier",
            "store",
            "stream_options",
            "truncation",
        }
    )
    REFUSED: ClassVar[Mapping[str, str]] = {
        "background": "an answer or a stream",
        "conversation": _STATELESS,
        "previous_response_id": _STATELESS,
        "prompt": "`instructions` and `input`",
    }

    model: str
    input: str | list[Any]
    instructions: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    max_output_tokens: Count | None = None
    top_logprobs: Alternatives | None = None
    stream: bool | None = None
    metadata: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    user: Any = None


_LABELS = ("prompt_cache_key", "safety_identifier", "user")
"""Hints that the response repeats, as it does `metadata`."""


@dataclass(frozen=True)
class ResponsesRequest:
    """head, calls, seal, logprobs: for `ResponseWriter`. ignored: places in the body that nothing is done with."""

    ask: Ask
    head: Mapping[str, Any]
    calls: Mapping[str, Mapping[str, Any]]
    stream: bool
    seal: bool
    logprobs: bool
    ignored: list[str] = field(default_factory=list[str])


def read_responses(body: ResponsesBody) -> ResponsesRequest:
    """What a body asks for. Raises Refused, which names the field."""
    conversation, offered = _conversation(body), Offered()
    offered.add_all("tools", body.tools)
    for where, tools in conversation.tools:
        offered.add_all(where, tools)
    tools, choice = offered.choose(body.tool_choice)
    include = set(body.include or ())
    logprobs = _PROBABILITIES in include or bool(body.top_logprobs)
    effort = None if body.reasoning is None else body.reasoning.effort
    format = _format(None if body.text is None else body.text.format)
    ask = Ask(
        body.model,
        messages=conversation.messages(),
        sampling=body.sampling(),
        max_tokens=body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if logprobs else None,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=format,
        variables=effort_variables(effort, "reasoning.effort"),
    )
    ignored = [*_ignored(body), *conversation.ignored, *offered.ignored]
    head = _head(body, offered, choice)
    return ResponsesRequest(ask, head, offered.calls, bool(body.stream), _SEALED in include, logprobs, ignored)


def _conversation(body: ResponsesBody) -> Conversation:
    found = Conversation()
    if body.instructions:
        found.add("instructions", {"role": "developer", "content": body.instructions})
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for i, item in enumerate(items):
        found.add(f"input[{i}]", item)
    if not found.messages():
        raise Refused("`input` must hold a message at least", field="input")
    return found


def _format(given: Any) -> Format | None:
    """`text.format` of the body."""
    where = "text.format"
    if given is None:
        return None
    if not is_table(given):
        raise Refused(f"`{where}` must be an object", field=where)
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return Format("json_object")
        case "json_schema" if is_table(given.get("schema")):
            return Format("json_schema", given["schema"])
        case "json_schema":
            raise Refused(f"`{where}.schema` must be a JSON schema, an object", field=f"{where}.schema")
        case kind:
            supported = "text, json_object, json_schema"
            raise Refused(f"`{where}.type` {kind!r} is not supported; supported: {supported}", field=f"{where}.type")


def _ignored(body: ResponsesBody) -> list[str]:
    """Hints inside of what is done, and those that are only repeated."""
    found = [name for name in ("metadata", *_LABELS) if getattr(body, name) is not None]
    found += ["text.verbosity"] * (body.text is not None and body.text.verbosity is not None)
    found += ["reasoning.summary"] * (body.reasoning is not None and body.reasoning.summary is not None)
    return [*found, *(f"include.{each}" for each in body.include or () if each not in (_PROBABILITIES, _SEALED))]


def _head(body: ResponsesBody, offered: Offered, choice: ToolChoice) -> Json:
    """The response's fields that repeat the request, as it was understood."""
    metadata = body.metadata.items() if is_table(body.metadata) else ()
    labels = {name: getattr(body, name) for name in _LABELS}
    return {
        "model": body.model,
        "instructions": body.instructions,
        "tools": offered.shown,
        "tool_choice": _shown_choice(body.tool_choice, choice),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {"format": _shown_format(body)},
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "store": False,
        "background": False,
        "conversation": None,
        "previous_response_id": None,
        "prompt": None,
        "service_tier": "default",
        "metadata": {name: text for name, text in metadata if isinstance(text, str)},
        **{name: text if isinstance(text, str) else None for name, text in labels.items()},
    }


def _shown_choice(given: Any, choice: ToolChoice) -> Any:
    if choice.name is not None:
        return {"type": given["type"], "name": given["name"]}
    if is_table(given):  # allowed_tools
        return {
            "type": "allowed_tools",
            "mode": choice.mode,
            "tools": [each for each in given["tools"] if is_table(each)],
        }
    return choice.mode


def _shown_format(body: ResponsesBody) -> Json:
    given = None if body.text is None else body.text.format
    if given is None or given["type"] != "json_schema":
        return {"type": "text"} if given is None else {"type": given["type"]}
    about = given.get("description")
    return {
        "type": "json_schema",
        "name": given["name"] if isinstance(given.get("name"), str) else "schema",
        "description": about if isinstance(about, str) else None,
        "schema": given["schema"],
        "strict": True,  # whatever is asked, a schema is enforced
    }
