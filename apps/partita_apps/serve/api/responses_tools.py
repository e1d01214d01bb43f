"""Tools of the Responses API: functions, namespaces of them and custom tools of text, as functions for a model.

Tools that a service runs itself (web_search and the like) are left out and listed: agents send them with every request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from partita.files.bounded import is_list, is_table

from ..asked import Refused, Tool, ToolChoice
from .contents import text_field
from .responses_items import qualified

Json = dict[str, Any]
_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


@dataclass
class Offered:
    """tools: for the model. calls: how the client calls each one, by the name that the model knows. shown: what the
    response's object says of them. ignored: what was left out, as paths into the body."""

    tools: list[Tool] = field(default_factory=list[Tool])
    calls: dict[str, Json] = field(default_factory=dict[str, Json])
    shown: list[Json] = field(default_factory=list[Json])
    ignored: list[str] = field(default_factory=list[str])
    _known: dict[tuple[str, str | None], str] = field(default_factory=dict[tuple[str, str | None], str])
    """The name that the model knows, by a client's name and namespace; by a name alone the first that has it."""

    def add_all(self, where: str, tools: Any) -> None:
        if tools is None:
            return
        if not is_list(tools):
            raise Refused(f"`{where}` must be a list", field=where)
        for i, tool in enumerate(tools):
            self._add(f"{where}[{i}]", tool)

    def _add(self, where: str, tool: Any) -> None:
        if not is_table(tool):
            raise Refused(f"`{where}` must be an object", field=where)
        if tool.get("type") != "namespace":
            shown = self._one(where, tool, None)
            self.shown += [] if shown is None else [shown]
            return
        name, inner = text_field(tool, "name", where), tool.get("tools")
        if not is_list(inner):
            raise Refused(f"`{where}.tools` must be a list", field=f"{where}.tools")
        shown = [self._one(f"{where}.tools[{i}]", one, name) for i, one in enumerate(inner)]
        about = {"type": "namespace", "name": name, "description": _description(tool, where)}
        self.shown.append({**about, "tools": [one for one in shown if one is not None]})

    def _one(self, where: str, tool: Any, namespace: str | None) -> Json | None:
        """The tool as the response shows it; None where it was left out."""
        if not is_table(tool):
            raise Refused(f"`{where}` must be an object", field=where)
        kind = tool.get("type", "function")
        if kind == "function":
            return self._function(where, tool.get("function", tool), namespace)
        if kind == "custom" and _format(tool) == "text":
            return self._custom(where, tool, namespace)
        self.ignored.append(f"{where}.{kind}")
        return None

    def _function(self, where: str, tool: Any, namespace: str | None) -> Json | None:
        if not is_table(tool):
            raise Refused(f"`{where}.function` must be an object", field=f"{where}.function")
        parameters = tool.get("parameters")
        if not (parameters is None or is_table(parameters)):
            raise Refused(f"`{where}.parameters` must be a JSON schema, an object", field=f"{where}.parameters")
        strict = tool.get("strict") is True
        about = {"type": "function", "name": text_field(tool, "name", where), "description": _description(tool, where)}
        self._offer(where, about, dict(parameters or {}), namespace, strict=strict)
        return {**about, "parameters": parameters, "strict": strict}

    def _custom(self, where: str, tool: Mapping[str, Any], namespace: str | None) -> Json:
        about = {"type": "custom", "name": text_field(tool, "name", where), "description": _description(tool, where)}
        self._offer(where, about, _INPUT, namespace, custom=True)
        return {**about, "format": {"type": "text"}}

    def _offer(
        self,
        where: str,
        about: Json,
        parameters: Mapping[str, Any],
        namespace: str | None,
        *,
        strict: bool = False,
        custom: bool = False,
    ) -> None:
        name = qualified(about["name"], namespace)
        if not about["name"]:
            raise Refused(f"`{where}.name` must not be empty", field=f"{where}.name")
        if name in self.calls:
            raise Refused(f"`{where}.name`: two tools are called {name!r}", field=f"{where}.name")
        self.tools.append(Tool(name, about["description"], parameters, strict, namespace))
        self._known[about["name"], namespace] = name
        self._known.setdefault((about["name"], None), name)
        self._known.setdefault((name, None), name)
        call = {"name": about["name"]} | ({} if namespace is None else {"namespace": namespace})
        self.calls[name] = call | ({"custom": True} if custom else {})

    def choose(self, choice: Any) -> tuple[Sequence[Tool], ToolChoice]:
        """The tools that may be called, and how: `tool_choice` of the body."""
        where = "tool_choice"
        if choice is None or choice == "auto":
            return self.tools, ToolChoice()
        if choice == "none":
            return self.tools, ToolChoice("none")
        if choice == "required":
            return self._some(where), ToolChoice("required")
        if is_table(choice) and choice.get("type") in ("function", "custom"):
            return self._some(where), ToolChoice("required", self._named(choice, where))
        if is_table(choice) and choice.get("type") == "allowed_tools":
            return self._allowed(choice)
        supported = "auto, none, required, a function, a custom tool, allowed_tools"
        raise Refused(f"`{where}` is not supported as it is; supported: {supported}", field=where)

    def _allowed(self, choice: Mapping[str, Any]) -> tuple[Sequence[Tool], ToolChoice]:
        where, mode, listed = "tool_choice", choice.get("mode", "auto"), choice.get("tools")
        if mode not in ("auto", "required"):
            raise Refused(f"`{where}.mode` must be auto or required, got {mode!r}", field=f"{where}.mode")
        if not is_list(listed):
            raise Refused(f"`{where}.tools` must be a list", field=f"{where}.tools")
        functions = [each for each in listed if is_table(each) and each.get("type") in ("function", "custom")]
        names = {self._named(each, f"{where}.tools") for each in functions}
        tools = [tool for tool in self.tools if tool.name in names]
        if mode == "required" and not tools:
            raise Refused(f"`{where}.tools`: none of them is a function", field=f"{where}.tools")
        return tools, ToolChoice("required" if mode == "required" else "auto")

    def _some(self, where: str) -> Sequence[Tool]:
        if not self.tools:
            raise Refused(f"`{where}`: there is no tool to call", field=where)
        return self.tools

    def _named(self, choice: Mapping[str, Any], where: str) -> str:
        """The name under which the model knows what a choice names. Raises Refused where there is no such tool."""
        name, namespace = text_field(choice, "name", where), choice.get("namespace")
        known = self._known.get((name, namespace if isinstance(namespace, str) else None))
        if known is None:
            raise Refused(f"`{where}`: there is no tool {name!r}", field=where)
        return known


def _description(tool: Mapping[str, Any], where: str) -> str:
    return "" if tool.get("description") is None else text_field(tool, "description", where)


def _format(tool: Mapping[str, Any]) -> Any:
    """Of a custom tool's input."""
    given = tool.get("format")
    return given.get("type", "text") if is_table(given) else "text"
