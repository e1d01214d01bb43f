"""Conversations and tools as clients of the Responses and the Messages API send them, as a chat template takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from partita_apps.serve.api.messages_items import Turns, read_tool_choice, read_tools, system_message
from partita_apps.serve.api.responses_items import Conversation
from partita_apps.serve.api.responses_tools import Offered
from partita_apps.serve.api.thoughts import sealed
from partita_apps.serve.asked import Refused, Tool, ToolChoice

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def items(*given: Any) -> Conversation:
    found = Conversation()
    for i, item in enumerate(given):
        found.add(f"input[{i}]", item)
    return found


def chosen(tools: Any, choice: Any) -> tuple[Sequence[Tool], ToolChoice]:
    offered = Offered()
    offered.add_all("tools", tools)
    return offered.choose(choice)


def turns(*given: Any) -> Turns:
    found = Turns()
    for i, turn in enumerate(given):
        found.add(f"messages[{i}]", turn)
    return found


def test_items_of_a_turn_are_one_message() -> None:
    found = items(
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "id": "fc", "call_id": "c1", "name": "weather", "arguments": '{"city": "Wien"}'},
        {"type": "function_call", "call_id": "c2", "name": "list", "namespace": "mcp__cal", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "nothing"}]},
    )
    first = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Wien"}}}
    second = {"id": "c2", "type": "function", "function": {"name": "mcp__cal__list", "arguments": {}}}
    assert found.messages() == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [first, second]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "name": "mcp__cal__list", "content": "nothing"},
    ]
    assert not found.ignored


@pytest.mark.parametrize(
    ("item", "thought"),
    [
        ({"summary": [], "encrypted_content": sealed("hm")}, "hm"),
        ({"summary": [], "content": None, "encrypted_content": sealed("hm")}, "hm"),
        ({"summary": [{"type": "summary_text", "text": "so"}], "encrypted_content": "gAAAA"}, "so"),
        ({"summary": [], "encrypted_content": "gAAAA"}, None),
    ],
)
def test_thoughts_come_back(item: dict[str, Any], thought: str | None) -> None:
    found = items({"type": "reasoning", **item}, {"role": "assistant", "content": "Hi"})
    assert found.messages()[0].get("reasoning_content") == thought
    assert len(found.messages()) == 1


def test_phases_of_one_speaker_are_joined() -> None:
    found = items(
        {"role": "assistant", "phase": "commentary", "content": "Looking."},
        {"role": "assistant", "phase": "final_answer", "content": "Four."},
    )
    assert found.messages() == [{"role": "assistant", "content": "Looking.\nFour."}]


def test_what_another_service_did_is_left_out() -> None:
    found = items({"type": "web_search_call", "id": "ws_1", "status": "completed"}, {"role": "user", "content": "Hi"})
    assert found.ignored == ["input[0].web_search_call"]
    assert len(found.messages()) == 1


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ("Hi", "input[0]"),
        ({"type": "item_reference", "id": "x"}, "input[0].type"),
        ({"type": "compaction", "encrypted_content": "x"}, "input[0].type"),
        ({"content": "no role"}, "input[0].type"),
        ({"role": "tool", "content": "Hi"}, "input[0].role"),
        ({"role": "user", "content": 3}, "input[0].content"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}, "input[0].content[0].type"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "input[0].call_id"),
        (
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]},
            "input[0].output[0].type",
        ),
    ],
)
def test_items_that_cannot_be_read_are_named(item: Any, field: str) -> None:
    with pytest.raises(Refused) as refused:
        items(item)
    assert refused.value.field == field
    assert field in refused.value.message


def test_a_call_that_was_no_json_is_no_end() -> None:
    found = items({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{oops"})
    assert found.messages()[0]["tool_calls"][0]["function"]["arguments"] == {"arguments": "{oops"}


def test_tools_of_an_agent() -> None:
    offered = Offered()
    namespace = {"type": "namespace", "name": "mcp__cal", "description": "A calendar"}
    offered.add_all(
        "tools",
        [
            {"type": "function", "name": "shell", "description": "Run", "strict": False, "parameters": SCHEMA},
            {"type": "web_search", "external_web_access": False},
            {**namespace, "tools": [{"type": "function", "name": "list", "parameters": {}}, {"type": "odd"}]},
            {"type": "custom", "name": "note", "description": "Write", "format": {"type": "text"}},
            {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
            {"name": "bare", "parameters": None},  # a function without its type
            {"type": "function", "function": {"name": "nested"}},
        ],
    )
    names = ["shell", "mcp__cal__list", "note", "bare", "nested"]
    assert [tool.name for tool in offered.tools] == names
    assert offered.tools[0] == Tool("shell", "Run", SCHEMA)
    assert offered.tools[1].namespace == "mcp__cal"
    assert offered.calls["mcp__cal__list"] == {"name": "list", "namespace": "mcp__cal"}
    assert offered.calls["note"] == {"name": "note", "custom": True}
    assert offered.ignored == ["tools[1].web_search", "tools[2].tools[1].odd", "tools[4].custom"]
    assert [tool["type"] for tool in offered.shown] == ["function", "namespace", "custom", "function", "function"]


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        (None, "auto", None),
        ("none", "none", None),
        ("required", "required", None),
        ({"type": "function", "name": "weather"}, "required", "weather"),
        ({"type": "function", "name": "list", "namespace": "cal"}, "required", "cal__list"),
        ({"type": "function", "name": "list"}, "required", "cal__list"),
    ],
)
def test_tool_choice(choice: Any, mode: Any, name: str | None) -> None:
    calendar = {"type": "namespace", "name": "cal", "description": "", "tools": [{"type": "function", "name": "list"}]}
    tools, found = chosen([{"type": "function", "name": "weather"}, calendar], choice)
    assert found == ToolChoice(mode, name)
    assert len(tools) == 2


def test_some_tools_allowed() -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    tools, choice = chosen([{"type": "function", "name": name} for name in "abc"], allowed)
    assert [tool.name for tool in tools] == ["b"]
    assert choice == ToolChoice("required")


@pytest.mark.parametrize(
    ("tools", "choice", "field"),
    [
        ("x", None, "tools"),
        ([3], None, "tools[0]"),
        ([{"type": "function"}], None, "tools[0].name"),
        ([{"type": "function", "name": "f", "parameters": []}], None, "tools[0].parameters"),
        ([{"type": "function", "name": "f"}, {"type": "function", "name": "f"}], None, "tools[1].name"),
        ([{"type": "namespace", "name": "n"}], None, "tools[0].tools"),
        ([], "required", "tool_choice"),
        ([], {"type": "function", "name": "f"}, "tool_choice"),
        ([{"type": "function", "name": "f"}], {"type": "function", "name": "g"}, "tool_choice"),
        ([], {"type": "web_search_preview"}, "tool_choice"),
        ([], "any", "tool_choice"),
    ],
)
def test_tools_that_cannot_be_read_are_named(tools: Any, choice: Any, field: str) -> None:
    with pytest.raises(Refused) as refused:
        chosen(tools, choice)
    assert refused.value.field == field


# ---------------------------------------------------------------- Messages


def test_turns_of_an_agent() -> None:
    found = turns(
        {"role": "user", "content": [{"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}]},
        {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "", "signature": sealed("hm")},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Wien"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And?"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [{"type": "text", "text": "gone"}],
                    "is_error": True,
                },
            ],
        },
    )
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Wien"}}}
    assert found.messages == [
        {"role": "user", "content": "Weather?"},
        {"role": "system", "content": "Be short."},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "Error: gone"},
        {"role": "user", "content": "And?"},
    ]
    assert found.ignored == ["messages[2].content[1].redacted_thinking"]


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_a_list_and_a_string_are_the_same(role: str) -> None:
    blocks = [{"type": "text", "text": "Hi"}]
    assert turns({"role": role, "content": "Hi"}).messages == turns({"role": role, "content": blocks}).messages
    assert system_message("Hi") == system_message(blocks) == [{"role": "system", "content": "Hi"}]
    item = {"type": "message", "role": role, "content": "Hi"}
    parts = [{"type": "input_text", "text": "Hi"}]
    assert items(item).messages() == items({**item, "content": parts}).messages()


def test_the_billing_header_is_no_text() -> None:
    header = "x-anthropic-billing-header: cc_version=2.1; cch=00000"
    assert system_message([{"type": "text", "text": header}, {"type": "text", "text": "You help."}]) == [
        {"role": "system", "content": "You help."}
    ]
    assert system_message(header) == system_message(None) == system_message([]) == []


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        (3, "messages[0]"),
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": {}}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image", "source": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "document", "source": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "tool_result", "content": "x"}]}, "messages[0].content[0].tool_use_id"),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image"}]}]},
            "messages[0].content[0].content[0].type",
        ),
        ({"role": "assistant", "content": [{"type": "thinking", "thinking": 3}]}, "messages[0].content[0].thinking"),
    ],
)
def test_turns_that_cannot_be_read_are_named(turn: Any, field: str) -> None:
    with pytest.raises(Refused) as refused:
        turns(turn)
    assert refused.value.field == field


def test_tools_without_a_type() -> None:
    ignored: list[str] = []
    given = [
        {"name": "Bash", "description": "Run", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}},
        {"type": "custom", "name": "Odd", "input_schema": {"type": "object"}},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ]
    assert read_tools(given, (), ignored) == [Tool("Bash", "Run", SCHEMA), Tool("Odd", "", {"type": "object"})]
    assert ignored == ["tools[2].web_search_20250305"]


def test_deferred_tools_are_shown_when_a_search_has_found_them() -> None:
    given = [{"name": name, "input_schema": SCHEMA, "defer_loading": name != "Search"} for name in ("Search", "a", "b")]
    reference = {"type": "tool_reference", "tool_name": "b"}
    searched = turns({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [reference]}]})
    assert searched.messages[0]["content"] == "b"
    assert [tool.name for tool in read_tools(given, (), [])] == ["Search"]
    assert [tool.name for tool in read_tools(given, searched.found, [])] == ["Search", "b"]
    own = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}  # which nobody here runs
    assert [tool.name for tool in read_tools([*given, own], (), [])] == ["Search", "a", "b"]


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"type": "search_result", "title": "A", "source": "u", "content": [{"type": "text", "text": "x"}]}, "A\nx"),
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}, "title": "A"},
            "A\nx",
        ),
        ({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}}, "x"),
    ],
)
def test_documents_that_are_text(block: dict[str, Any], text: str) -> None:
    assert turns({"role": "user", "content": [block]}).messages == [{"role": "user", "content": text}]
    result = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    assert turns({"role": "user", "content": [result]}).messages[0]["content"] == text


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, (ToolChoice(), True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, (ToolChoice(), False)),
        ({"type": "any"}, (ToolChoice("required"), True)),
        ({"type": "tool", "name": "f"}, (ToolChoice("required", "f"), True)),
        ({"type": "none"}, (ToolChoice("none"), True)),
    ],
)
def test_choices(choice: Any, expected: Any) -> None:
    assert read_tool_choice(choice, [Tool("f")]) == expected


@pytest.mark.parametrize("choice", ["auto", {}, {"type": "any"}, {"type": "tool", "name": "g"}, {"type": "odd"}])
def test_choices_that_cannot_be_made_are_named(choice: Any) -> None:
    with pytest.raises(Refused, match="tool_choice"):
        read_tool_choice(choice, [])
