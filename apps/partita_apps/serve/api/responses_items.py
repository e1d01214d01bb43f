"""The Responses API's input as messages: items of a conversation, whose assistant's turns come in pieces. No HTTP.

Invariants: text and a list with that text give the same messages; an assistant's items up to somebody else's are one
message, as the model wrote it. What a model of text cannot read is refused by name; what is another service's own, and
no part of what was said, is left out and listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from partita.files.bounded import is_table

from ..asked import Refused
from .contents import arguments, as_text, text_field
from .thoughts import unsealed

Json = dict[str, Any]
_ROLES = ("user", "assistant", "system", "developer")
TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_THOUGHTS = {"reasoning_text": "text", "summary_text": "text", "text": "text"}
_ELSEWHERE = {  # what only the service that made it can read
    "item_reference": "send the item itself: this server stores nothing",
    "compaction": "only the service that made it can read it: send the messages",
}


class Conversation:
    """tools: that came among the items. ignored: what was left out, as paths into the body."""

    def __init__(self) -> None:
        self.tools: list[tuple[str, Any]] = []
        self.ignored: list[str] = []
        self._messages: list[Json] = []
        self._turn = _Turn()  # the assistant's that is being put together
        self._names: dict[str, str] = {}  # of tools, by the ids of calls

    def messages(self) -> list[Json]:
        """Of the items so far."""
        turn = self._turn.message()
        return [*self._messages, *([] if turn is None else [turn])]

    def add(self, where: str, item: Any) -> None:
        if not is_table(item):
            raise Refused(f"`{where}` must be an object", field=where)
        kind = item.get("type")
        kind = "message" if kind is None and "role" in item else kind
        match kind:
            case "message":
                self._message(where, item)
            case "reasoning":
                self._reasoning(where, item)
            case "function_call" | "custom_tool_call":
                self._call(where, item, kind == "custom_tool_call")
            case "function_call_output" | "custom_tool_call_output":
                self._output(where, item)
            case "additional_tools":
                tools = item.get("tools")
                self.tools.append((f"{where}.tools", tools))
            case str() if kind not in _ELSEWHERE:
                self.ignored.append(f"{where}.{kind}")
            case _:
                why = _ELSEWHERE.get(str(kind), "expected message, function_call, function_call_output or reasoning")
                raise Refused(f"`{where}.type` {kind!r} is not supported: {why}", field=f"{where}.type")

    def _message(self, where: str, item: Mapping[str, Any]) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise Refused(f"`{where}.role` must be one of {', '.join(_ROLES)}, got {role!r}", field=f"{where}.role")
        text = as_text(item.get("content"), f"{where}.content", TEXTS)
        if role == "assistant":
            self._turn.said.append(text)
        else:
            self._say({"role": role, "content": text})

    def _reasoning(self, where: str, item: Mapping[str, Any]) -> None:
        thought = as_text(item.get("content"), f"{where}.content", _THOUGHTS)
        sealed = item.get("encrypted_content")
        if not thought and isinstance(sealed, str):
            thought = unsealed(sealed) or ""
        thought = thought or as_text(item.get("summary"), f"{where}.summary", _THOUGHTS)
        if thought:
            self._turn.thoughts.append(thought)

    def _call(self, where: str, item: Mapping[str, Any], custom: bool) -> None:
        ident = text_field(item, "call_id", where)
        namespace = item.get("namespace")
        name = qualified(text_field(item, "name", where), namespace if isinstance(namespace, str) else None)
        self._names[ident] = name
        given = {"input": text_field(item, "input", where)} if custom else arguments(item.get("arguments"))
        call = {"id": ident, "type": "function", "function": {"name": name, "arguments": given}}
        self._turn.calls.append(call)

    def _output(self, where: str, item: Mapping[str, Any]) -> None:
        ident = text_field(item, "call_id", where)
        text = as_text(item.get("output"), f"{where}.output", TEXTS)
        message: Json = {"role": "tool", "tool_call_id": ident, "content": text}
        self._say(message | ({"name": self._names[ident]} if ident in self._names else {}))

    def _say(self, message: Json) -> None:
        """Somebody else than the assistant, whose turn ends."""
        turn, self._turn = self._turn.message(), _Turn()
        self._messages += [message] if turn is None else [turn, message]


@dataclass
class _Turn:
    """What the assistant says in a row."""

    said: list[str] = field(default_factory=list[str])
    thoughts: list[str] = field(default_factory=list[str])
    calls: list[Json] = field(default_factory=list[Json])

    def message(self) -> Json | None:
        """None where nothing was said."""
        if not (self.said or self.thoughts or self.calls):
            return None
        message: Json = {"role": "assistant", "content": _joined(self.said)}
        message |= {"reasoning_content": _joined(self.thoughts)} if self.thoughts else {}
        return message | ({"tool_calls": self.calls} if self.calls else {})


def qualified(name: str, namespace: str | None) -> str:
    """What a model knows a tool of a namespace as: two namespaces may have tools of one name."""
    if not namespace:
        return name
    return f"{namespace}{'' if namespace.endswith(('_', '.')) else '__'}{name}"


def _joined(texts: Sequence[str]) -> str:
    """Texts of one speaker: those behind the first that do not begin with a line end of their own get one."""
    some = [text for text in texts if text]
    return "".join(text if not i or text.startswith("\n") else f"\n{text}" for i, text in enumerate(some))
