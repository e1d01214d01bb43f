"""Chat Completions' messages and tools in the form that chat templates take. No HTTP.

Invariants: text and a list with that text give the same messages; what a model of text cannot read is refused by name;
tools of other kinds than functions are left out and listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from partita.files.bounded import is_list, is_table

from ..asked import Format, Message, Refused, Tool, ToolChoice
from .contents import arguments, as_text, text_field

Json = dict[str, Any]
_TEXT = {"text": "text", "refusal": "refusal"}
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_FORMATS = "text, json_object, json_schema"


def messages_of(messages: Sequence[Any], field: str = "messages") -> list[Message]:
    """Raises Refused for what is no message."""
    if not messages:
        raise Refused(f"`{field}` is empty: give at least one message", field=field)
    names: dict[str, str] = {}  # of the tools that were called, by the calls' ids
    found: list[Message] = []
    for i, message in enumerate(messages):
        where = f"{field}[{i}]"
        if not is_table(message):
            raise Refused(f"`{where}` must be an object", field=where)
        role = message.get("role")
        if role not in _ROLES:
            raise Refused(f"`{where}.role` must be one of {', '.join(_ROLES)}, got {role!r}", field=f"{where}.role")
        text = as_text(message.get("content"), f"{where}.content", _TEXT)
        if role == "assistant":
            found.append(_answer(message, text, where, names))
        elif role in ("tool", "function"):
            found.append(_result(message, text, names))
        else:
            found.append({"role": role, "content": text})
    return found


def _answer(message: Json, text: str, where: str, names: dict[str, str]) -> Message:
    said: Json = {"role": "assistant", "content": text}
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str):
        said["reasoning_content"] = thought
    calls = message.get("tool_calls") or []
    if not is_list(calls):
        raise Refused(f"`{where}.tool_calls` must be a list", field=f"{where}.tool_calls")
    called = message.get("function_call")
    if is_table(called):  # of clients from before there were tools
        calls = [*calls, {"id": called.get("name"), "function": called}]
    made = [_call(call, f"{where}.tool_calls[{i}]", names) for i, call in enumerate(calls)]
    return {**said, "tool_calls": made} if made else said


def _call(call: Any, where: str, names: dict[str, str]) -> Json:
    if not is_table(call) or not is_table(call.get("function")):
        raise Refused(f"`{where}.function` is missing", field=f"{where}.function")
    function, ident = call["function"], call.get("id")
    name = text_field(function, "name", f"{where}.function")
    said: Json = {"type": "function", "function": {"name": name, "arguments": arguments(function.get("arguments"))}}
    if isinstance(ident, str):
        names[ident] = name
        said["id"] = ident
    return said


def _result(message: Json, text: str, names: Mapping[str, str]) -> Message:
    ident = message.get("tool_call_id")
    said: Json = {"role": "tool", "content": text}
    if isinstance(ident, str):
        said["tool_call_id"] = ident
    name = names.get(ident) if isinstance(ident, str) else None
    name = name or message.get("name")
    return {**said, "name": name} if isinstance(name, str) else said


def tools_of(tools: Sequence[Any] | None, ignored: list[str]) -> tuple[Tool, ...]:
    """The functions among the tools; the others' places are added to `ignored`."""
    found: list[Tool] = []
    for i, tool in enumerate(tools or ()):
        where = f"tools[{i}]"
        if not is_table(tool):
            raise Refused(f"`{where}` must be an object", field=where)
        if tool.get("type", "function") != "function":
            ignored.append(where)
            continue
        function, place = (tool["function"], f"{where}.function") if is_table(tool.get("function")) else (tool, where)
        name = text_field(function, "name", place)
        if not 0 < len(name) <= 256:
            raise Refused(f"`{place}.name` must have 1 to 256 characters", field=f"{place}.name")
        parameters = function.get("parameters")
        if parameters is not None and not is_table(parameters):
            raise Refused(f"`{place}.parameters` must be a JSON schema", field=f"{place}.parameters")
        said = function.get("description")
        strict = function.get("strict") is True
        found.append(Tool(name, said if isinstance(said, str) else "", parameters or {}, strict))
    return tuple(found)


def choice_of(choice: Any, tools: Sequence[Tool]) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """What `tool_choice` says, and the tools that it leaves. Raises Refused."""
    field, kept = "tool_choice", tuple(tools)
    if choice is None or choice == "auto":
        return ToolChoice(), kept
    if choice == "none":
        return ToolChoice("none"), kept
    if choice in ("required", "any"):
        found = ToolChoice("required")
    elif is_table(choice) and choice.get("type") == "allowed_tools":
        return _allowed(choice, kept)
    elif is_table(choice) and choice.get("type", "function") == "function":
        function = choice.get("function", choice)
        found = ToolChoice("required", text_field(function if is_table(function) else {}, "name", f"{field}.function"))
    else:
        expected = "auto, none, required, or an object that names a function"
        raise Refused(f"`{field}` must be {expected}", field=field)
    if not kept:
        raise Refused(f"`{field}` wants a call, and there are no tools: give `tools`", field=field)
    if found.name is not None and found.name not in {tool.name for tool in kept}:
        names = ", ".join(tool.name for tool in kept)
        raise Refused(f"`{field}`: there is no tool {found.name!r}; `tools` has {names}", field=field)
    return found, kept


def _allowed(choice: Json, tools: Sequence[Tool]) -> tuple[ToolChoice, tuple[Tool, ...]]:
    inner = choice.get("allowed_tools")
    inner = inner if is_table(inner) else choice
    listed = inner.get("tools")
    names = {_named(tool) for tool in listed} if is_list(listed) else set[Any]()
    chosen, kept = choice_of(inner.get("mode"), [tool for tool in tools if tool.name in names])
    return replace(chosen), kept


def _named(tool: Any) -> Any:
    function = tool.get("function", tool) if is_table(tool) else None
    name = function.get("name") if is_table(function) else None
    return name if isinstance(name, str) else None


def format_of(given: Any) -> Format | None:
    """`response_format`; None where any text will do. Raises Refused."""
    field = "response_format"
    if given is None:
        return None
    kind = given.get("type") if is_table(given) else given
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise Refused(f"`{field}.type` {kind!r} is not supported; supported: {_FORMATS}", field=field)
    inner = given.get("json_schema") if is_table(given) else None
    schema = inner.get("schema") if is_table(inner) else given.get("schema") if is_table(given) else None
    if kind == "json_object" and schema is None:
        return Format("json_object")
    if not is_table(schema):
        raise Refused(f"`{field}.json_schema.schema` must be a JSON schema", field=f"{field}.json_schema.schema")
    return Format("json_schema", schema)
