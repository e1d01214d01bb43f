"""One record of training data, checked: a chat, a prompt with its completion, or a text. Knows no tokens and no files.

    {"messages": [{"role": "user", "content": "…"}, …], "tools": […]}     trained: the assistant's turns
    {"prompt": "…", "completion": "…"}                                    trained: the completion
    {"prompt": [messages], "completion": [messages], "tools": […]}        trained: the completion's assistant turns
    {"text": "…"}                                                         trained: everything

A message of the assistant may have a "weight", 1 or 0, as OpenAI's format has it: 0 is read and not trained.

The first of these forms that a record has counts, and its other keys are `unread`. Anything wrong is one DataError
that says what; the caller says where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import DataError
from ..files.bounded import MAX_NESTING, is_list, is_table, nesting
from ..text.template_child import THOUGHTS

ROLES = ("system", "developer", "user", "assistant", "tool")
_FORMS = 'it needs "messages", "prompt" with "completion", or "text"'

Message = Mapping[str, Any]


def _unread() -> Any:
    """Keys of a record that nothing reads, in its order."""
    return field(default=(), compare=False)


@dataclass(frozen=True)
class Chat:
    """Messages in the template's form. Assistant turns at or after the index `first` are trained, but for those whose
    indices are in `left`."""

    messages: tuple[Message, ...]
    first: int = 0
    tools: Sequence[Any] | None = None
    left: frozenset[int] = frozenset()
    unread: tuple[str, ...] = _unread()

    @property
    def replies(self) -> list[int]:
        """The indices of what is trained, ascending."""
        said = range(self.first, len(self.messages))
        return [i for i in said if self.messages[i]["role"] == "assistant" and i not in self.left]


@dataclass(frozen=True)
class Completion:
    """Plain text: loss on `completion` only."""

    prompt: str
    completion: str
    unread: tuple[str, ...] = _unread()


@dataclass(frozen=True)
class Text:
    text: str
    unread: tuple[str, ...] = _unread()


Record = Chat | Completion | Text


def parse_line(line: bytes) -> Record:
    """A line of a .jsonl file. Raises DataError."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    try:
        value = json.loads(text.rstrip("\r\n"))
    except RecursionError as error:
        raise DataError("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except ValueError as error:
        raise DataError(f"not JSON: {error}") from error
    return parse(value)


def parse(value: Any) -> Record:
    """A decoded record. Raises DataError."""
    if not is_table(value):
        raise DataError(f"{_kind(value)} where an object should be: {_FORMS}")
    if nesting(value) > MAX_NESTING:
        raise DataError("nested too deeply")
    if "messages" in value:
        record, read = _chat(value["messages"], [], value), ("messages", "tools")
    elif "prompt" in value and "completion" in value:
        record = _completion(value)
        read = ("prompt", "completion", *(["tools"] if isinstance(record, Chat) else []))
    elif "text" in value:
        record, read = Text(_text(value["text"], "text")), ("text",)
    else:
        raise DataError(f"none of the known forms: {_FORMS}, and has {_keys(value)}")
    return replace(record, unread=tuple(key for key, item in value.items() if key not in read and item is not None))


def _completion(value: Mapping[str, Any]) -> Record:
    prompt, completion = value["prompt"], value["completion"]
    if is_list(prompt) and is_list(completion):
        return _chat(completion, _messages(prompt, "prompt"), value)
    if not isinstance(prompt, str) or not isinstance(completion, str):
        kinds = f"{_kind(prompt)} and {_kind(completion)}"
        raise DataError(f'"prompt" and "completion" are {kinds}: both must be strings, or both lists of messages')
    return Completion(prompt, _text(completion, "completion"))


def _chat(said: Any, before: Sequence[dict[str, Any]], value: Mapping[str, Any]) -> Chat:
    """said: messages to be trained, after those of the prompt, if it has one."""
    where = "completion" if before else "messages"
    messages = [*before, *_messages(said, where)]
    weights = [message.pop("weight", 1) for message in messages]  # no business of templates
    left = frozenset(i for i, message in enumerate(messages) if message["role"] == "assistant" and not weights[i])
    chat = Chat(tuple(messages), len(before), _tools(value.get("tools")), left)
    if not chat.replies:
        which = "no message of the assistant" if not left else 'no message of the assistant but with "weight" 0'
        raise DataError(f'"{where}" has {which}: there is nothing to train on')
    return chat


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
    if not is_list(value):
        raise DataError(f'"{name}" is {_kind(value)}: it must be a list of messages')
    if not value:
        raise DataError(f'"{name}" is empty')
    return [_message(message, f"{name}[{i}]") for i, message in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, Any]:
    if not is_table(value):
        raise DataError(f'{where} is {_kind(value)}: it must be an object with "role" and "content"')
    role = value.get("role")
    if role not in ROLES:
        said = "no role" if "role" not in value else f"the unknown role {json.dumps(role, ensure_ascii=False)[:80]}"
        raise DataError(f"{where} has {said}; expected one of {', '.join(ROLES)}")
    # data sets write every key of every message, null where it is not used; templates ask whether a key is there
    message = {key: item for key, item in value.items() if item is not None or key == "content"}
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = _tool_calls(calls, where)
    else:
        message.pop("tool_calls", None)
    _check_content(message, where)
    _check_weight(message, where)
    return message


def _check_content(message: dict[str, Any], where: str) -> None:
    content = message.get("content")
    if is_list(content):
        if not all(is_table(part) and isinstance(part.get("text"), str) for part in content):
            raise DataError(f"{where} has parts other than text: only text is trained here")
        empty = not any(part["text"] for part in content)
    elif isinstance(content, str):
        empty = not content
    elif content is None:
        empty = True
    else:
        raise DataError(f"{where} has {_kind(content)} as content: it must be a string")
    if message["role"] == "assistant":
        if empty and not any(message.get(name) for name in ("tool_calls", *THOUGHTS)):
            raise DataError(f"{where} is an empty message of the assistant")
    elif content is None:
        raise DataError(f"{where} has no content")
    message.setdefault("content", None)


def _check_weight(message: Mapping[str, Any], where: str) -> None:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        said = json.dumps(weight, ensure_ascii=False)[:40]
        raise DataError(f"{where} has the weight {said}: 1 (trained) or 0 (not trained) are known")
    if weight == 1 and "weight" in message and message["role"] != "assistant":
        raise DataError(f"{where} has weight 1, and only messages of the assistant are trained: leave it out")


def _tool_calls(calls: Any, where: str) -> list[Any]:
    """Calls with their arguments as objects, which templates write as JSON themselves."""
    if not is_list(calls) or not all(is_table(call) for call in calls):
        raise DataError(f'{where} has "tool_calls" that are not a list of objects')
    return [_object_arguments(call) for call in calls]


def _object_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if is_table(function):
        return {**call, "function": _object_arguments(function)}
    given = call.get("arguments")
    if not isinstance(given, str):
        return call
    try:
        decoded = json.loads(given)
    except (ValueError, RecursionError):
        return call
    return {**call, "arguments": decoded} if is_table(decoded) else call


def _tools(value: Any) -> Sequence[Any] | None:
    if isinstance(value, str):  # some data sets keep the list as JSON text
        try:
            value = json.loads(value or "null")
        except (ValueError, RecursionError) as error:
            raise DataError('"tools" is a string that is no JSON') from error
    if value is not None and not is_list(value):
        raise DataError(f'"tools" is {_kind(value)}: it must be a list')
    return value or None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f'"{name}" is {_kind(value)}: it must be a string')
    if not value:
        raise DataError(f'"{name}" is empty')
    return value


def _keys(value: Mapping[str, Any]) -> str:
    if not value:
        return "no keys"
    names = [json.dumps(key, ensure_ascii=False)[:40] for key in list(value)[:8]]
    return ", ".join(names) + (" and more" if len(value) > 8 else "")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return kinds.get(type(value), type(value).__name__)
