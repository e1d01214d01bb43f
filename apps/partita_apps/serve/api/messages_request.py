"""Bodies of the Messages API: what is asked of a model. No HTTP, no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import msgspec

from ..asked import Ask, Format, Refused
from ..fields import Body, Count, Share, Stop, Temperature, TopK, texts
from .messages_items import Turns, read_tool_choice, read_tools, system_message
from .sampling_fields import bounded, effort_variables, thought_variables


class Thinking(msgspec.Struct):
    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    display: Literal["summarized", "omitted"] | None = None
    budget_tokens: Any = None


class OutputFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: OutputFormat | None = None


class MessagesBody(Body, kw_only=True):
    """Of `/v1/messages` and `/v1/messages/count_tokens`, which has no max_tokens."""

    HINTS: ClassVar[frozenset[str]] = frozenset(
        {
            "anthropic_beta",
            "anthropic_version",
            "betas",
            "billing_policy",
            "cache_control",
            "compaction",
            "context_management",
            "diagnostics",
            "inference_geo",
            "metadata",
            "service_tier",
            "speed",
            "user_profile_id",
            "workspace_id",
        }
    )
    REFUSED: ClassVar[Mapping[str, str]] = {
        "container": "`tools` that the client runs",
        "mcp_servers": "`tools` that the client runs",
        "thread": "the whole conversation in `messages`, since this server stores none",
    }

    model: str
    messages: list[Any]
    system: Any = None
    max_tokens: Count | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    stop_sequences: Stop | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    stream: bool | None = None


_SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class MessagesRequest:
    """show_thoughts: for `MessageWriter`. ignored: places in the body that nothing is done with."""

    ask: Ask
    stream: bool
    show_thoughts: bool
    ignored: list[str] = field(default_factory=list[str])


def read_messages(body: MessagesBody, *, counted: bool = False) -> MessagesRequest:
    """What a body asks for. counted: its tokens are to be counted, and no reply is written. Raises Refused, which names
    the field."""
    if body.max_tokens is None and not counted:
        raise Refused("`max_tokens` is missing", field="max_tokens")
    turns = Turns()
    for i, turn in enumerate(body.messages):
        turns.add(f"messages[{i}]", turn)
    if not turns.messages:
        raise Refused("`messages` must hold one at least", field="messages")
    if turns.messages[-1]["role"] == "assistant":
        raise Refused(
            "`messages` must end with the user's: a reply that is begun is not gone on with", field="messages"
        )
    ignored = [*turns.ignored]
    ignored += ["thinking.budget_tokens"] * (body.thinking is not None and body.thinking.budget_tokens is not None)
    tools = read_tools(body.tools, turns.found, ignored)
    choice, parallel = read_tool_choice(body.tool_choice, tools)
    config = body.output_config or OutputConfig()
    form = config.format or body.output_format
    thinks = body.thinking is not None and body.thinking.type != "disabled"
    ask = Ask(
        body.model,
        messages=[*system_message(body.system), *turns.messages],
        sampling=bounded({name: getattr(body, name) for name in _SAMPLING}),
        max_tokens=body.max_tokens,
        stop=texts(body.stop_sequences),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        format=None if form is None else Format("json_schema", form.schema),
        variables={**effort_variables(config.effort, "output_config.effort"), **thought_variables(thinks)},
    )
    shown = body.thinking is None or body.thinking.display != "omitted"
    return MessagesRequest(ask, bool(body.stream), shown, ignored)
