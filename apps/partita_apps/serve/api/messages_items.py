"""The Messages API's turns and tools in the form that chat templates take. No HTTP.

Invariants: text and a list with that text give the same messages; results of tools come in the order they stand in, in
front of what the user says beside them. What cannot be read by a model of text is refused by name; what only another
service can read, or runs itself, is left out and listed.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from partita.files.bounded import is_list, is_table

from ..asked import Refused, Tool, ToolChoice
from .contents import arguments, as_text, part_text, text_field
from .thoughts import unsealed

Json = dict[str, Any]
_TEXT = {"text": "text"}
_BILLING = "x-anthropic-billing-header"  # of each request another one: with it no two prompts begin the same
_OTHERS = frozenset({"server_tool_use", "tool_search_tool_result", "web_search_tool_result", "web_fetch_tool_result"})


def system_message(system: Any) -> list[Json]:
    """`system` of the body: text or blocks."""
    if is_list(system):
        system = [block for block in system if not _billing(block)]
    elif _billing({"text": system}):
        system = None
    text = as_text(system, "system", _TEXT)
    return [{"role": "system", "content": text}] if text else []


def _billing(block: Any) -> bool:
    text = block.get("text") if is_table(block) else None
    return isinstance(text, str) and text.startswith(_BILLING)


class Turns:
    """messages: of the turns so far. ignored: what was left out, as paths into the body. found: names of tools that a
    search for tools gave."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.ignored: list[str] = []
        self.found: set[str] = set()
        self._names: dict[str, str] = {}  # of tools, by the ids of calls

    def add(self, where: str, turn: Any) -> None:
        if not is_table(turn):
            raise Refused(f"`{where}` must be an object", field=where)
        role, content = turn.get("role"), turn.get("content")
        where = f"{where}.content"
        if role in ("system", "developer"):
            self.messages.append({"role": "system", "content": as_text(content, where, _TEXT)})
        elif role not in ("user", "assistant"):
            place = where.removesuffix(".content") + ".role"
            raise Refused(f"`{place}` must be user, assistant or system, got {role!r}", field=place)
        elif not is_list(content):
            self.messages.append({"role": role, "content": as_text(content, where, _TEXT)})
        elif role == "user":
            self._user(where, content)
        else:
            self._assistant(where, content)

    def _user(self, where: str, blocks: list[Any]) -> None:
        texts: list[str] = []
        results: list[Json] = []
        for i, block in enumerate(blocks):
            if _kind(block) == "tool_result":
                results.append(self._result(f"{where}[{i}]", block))
            elif not self._left_out(f"{where}[{i}]", block):
                texts.append(_text(block, f"{where}[{i}]"))
        self.messages += results
        if texts or not results:
            self.messages.append({"role": "user", "content": "\n".join(texts)})

    def _result(self, where: str, block: Json) -> Json:
        ident = text_field(block, "tool_use_id", where)
        content = block.get("content")
        if is_list(content):
            self.found.update(
                text_field(each, "tool_name", where) for each in content if _kind(each) == "tool_reference"
            )
            text = "\n".join(_text(each, f"{where}.content[{i}]") for i, each in enumerate(content))
        else:
            text = as_text(content, f"{where}.content", _TEXT)
        if block.get("is_error") is True:
            text = f"Error: {text}"
        message: Json = {"role": "tool", "tool_call_id": ident, "content": text}
        return message | ({"name": self._names[ident]} if ident in self._names else {})

    def _assistant(self, where: str, blocks: list[Any]) -> None:
        message: Json = {"role": "assistant", "content": ""}
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[Json] = []
        for i, block in enumerate(blocks):
            place = f"{where}[{i}]"
            match _kind(block):
                case "thinking":
                    thoughts.append(_thought(block, place))
                case "redacted_thinking":
                    self.ignored.append(f"{place}.redacted_thinking")
                case "tool_use":
                    calls.append(self._call(block, place))
                case _ if not self._left_out(place, block):
                    texts.append(part_text(block, place, _TEXT))
                case _:
                    pass
        message["content"] = "\n".join(texts)
        thought = "\n".join(filter(None, thoughts))
        message |= {"reasoning_content": thought} if thought else {}
        self.messages.append(message | ({"tool_calls": calls} if calls else {}))

    def _call(self, block: Json, where: str) -> Json:
        ident, name = text_field(block, "id", where), text_field(block, "name", where)
        self._names[ident] = name
        return {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments(block.get("input"))}}

    def _left_out(self, where: str, block: Any) -> bool:
        kind = _kind(block)
        if kind in _OTHERS:
            self.ignored.append(f"{where}.{kind}")
            return True
        return False


def _kind(block: Any) -> str | None:
    kind = block.get("type") if is_table(block) else None
    return kind if isinstance(kind, str) else None


def _text(block: Any, where: str) -> str:
    """What a user or a tool says in a block: documents may be text, too."""
    match _kind(block):
        case "tool_reference":
            return text_field(block, "tool_name", where)
        case "search_result":
            return _titled(block, as_text(block.get("content"), f"{where}.content", _TEXT))
        case "document" if _kind(block.get("source")) == "text":
            return _titled(block, text_field(block["source"], "data", f"{where}.source"))
        case "document" if _kind(block.get("source")) == "content":
            return _titled(block, as_text(block["source"].get("content"), f"{where}.source.content", _TEXT))
        case _:
            return part_text(block, where, _TEXT)


def _titled(block: Json, text: str) -> str:
    title = block.get("title")
    return f"{title}\n{text}" if isinstance(title, str) and title else text


def _thought(block: Json, where: str) -> str:
    """A thought that comes back, whatever its signature; one that was not shown is in it."""
    text = block.get("thinking")
    if text is not None and not isinstance(text, str):
        raise Refused(f"`{where}.thinking` must be text", field=f"{where}.thinking")
    signature = block.get("signature")
    return text or (unsealed(signature) if isinstance(signature, str) else None) or ""


# ---------------------------------------------------------------- tools


def read_tools(tools: Any, found: Container[str], ignored: list[str]) -> list[Tool]:
    """Those that the model may call. found: names of tools that a search gave: one whose loading is deferred is not
    shown before, unless the search is a tool that the service runs itself. ignored: places of tools that are left out
    are added to it."""
    if tools is None:
        return []
    if not is_list(tools):
        raise Refused("`tools` must be a list", field="tools")
    searchable = not any((_kind(tool) or "").startswith("tool_search_tool") for tool in tools)
    offered: dict[str, Tool] = {}
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if not is_table(tool):
            raise Refused(f"`{where}` must be an object", field=where)
        kind = tool.get("type")
        if kind is not None and kind != "custom":
            ignored.append(f"{where}.{kind}")
            continue
        made = _tool(tool, where)
        if made.name in offered:
            raise Refused(f"`{where}.name`: two tools are called {made.name!r}", field=f"{where}.name")
        if made.name in found or not (searchable and tool.get("defer_loading") is True):
            offered[made.name] = made
    return list(offered.values())


def _tool(tool: Json, where: str) -> Tool:
    name, schema = text_field(tool, "name", where), tool.get("input_schema")
    if not name:
        raise Refused(f"`{where}.name` must not be empty", field=f"{where}.name")
    if not is_table(schema):
        raise Refused(f"`{where}.input_schema` must be a JSON schema, an object", field=f"{where}.input_schema")
    description = "" if tool.get("description") is None else text_field(tool, "description", where)
    return Tool(name, description, schema, tool.get("strict") is True)


def read_tool_choice(choice: Any, tools: list[Tool]) -> tuple[ToolChoice, bool]:
    """How tools may be called, and whether several at once."""
    where = "tool_choice"
    if choice is None:
        return ToolChoice(), True
    if not is_table(choice):
        raise Refused(f"`{where}` must be an object", field=where)
    parallel = choice.get("disable_parallel_tool_use") is not True
    kind = choice.get("type")
    match kind:
        case "auto":
            return ToolChoice(), parallel
        case "none":
            return ToolChoice("none"), parallel
        case "any" if tools:
            return ToolChoice("required"), parallel
        case "any":
            raise Refused(f"`{where}`: there is no tool to call", field=where)
        case "tool":
            name = text_field(choice, "name", where)
            if all(tool.name != name for tool in tools):
                raise Refused(f"`{where}.name`: there is no tool {name!r}", field=f"{where}.name")
            return ToolChoice("required", name), parallel
        case _:
            raise Refused(f"`{where}.type` must be auto, any, tool or none, got {kind!r}", field=f"{where}.type")
