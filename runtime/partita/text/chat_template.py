"""Chat templates: messages to text to token ids. Knows no model; a template is a stranger's program.

Not here: the process in which templates run (`template_process`), and what they find there (`template_child`).
Invariants: a rendering ends within a time limit and fails as one TemplateError. A control token's literal inside a
message is text in the ids; only the template places control tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn, TypeGuard

from ..errors import DataError, TemplateError
from ..files.bounded import is_table
from .template_child import BEGIN, END, THOUGHTS
from .template_process import shared
from .tokenizer import Tokenizer

MAX_SOURCE = 1 << 20  # characters; the longest published templates have about 50,000
SECONDS = 5.0

Message = Mapping[str, Any]
Spans = Sequence[tuple[int, int | None]]
"""Some of a conversation's messages: from each first index to before the second."""
ALL: Spans = ((0, None),)
Rendering = tuple[Spans, Mapping[str, Any]]
"""One text: of which messages, with which variables beside those that all texts have."""


class ChatTemplate:
    """A chat template in the dialect of the Hub (Jinja with `raise_exception`, `strftime_now`, `tojson`).

    source: the template's text. tool_source: the text for conversations with tools, where that is another one. tokens:
    literals of special tokens, by the names under which templates know them (`bos_token`). seconds: limit for compiling
    and for each rendering. Raises TemplateError for a source that is too long or does not compile.
    """

    def __init__(
        self,
        source: str,
        tool_source: str | None = None,
        *,
        tokens: Mapping[str, str] | None = None,
        seconds: float = SECONDS,
    ) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"chat template: {len(source)} characters, more than {MAX_SOURCE} are not accepted")
        self.source = source
        self._seconds, self._tokens = seconds, dict(tokens or {})
        self._today: tuple[int, int, int] | None = None
        shared().compile(source, seconds)
        self._with_tools = None if tool_source is None else ChatTemplate(tool_source, tokens=tokens, seconds=seconds)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The tokenizer's own template; TemplateError for a base model, which has none."""
        if tokenizer.chat_template is None:
            raise TemplateError(_NO_TEMPLATE)
        return cls(tokenizer.chat_template, tokenizer.tool_template, tokens=tokenizer.special_tokens)

    def dated(self, year: int, month: int, day: int) -> ChatTemplate:
        """The same template, for which it is always that day."""
        dated = copy.copy(self)
        dated._today = (year, month, day)
        dated._with_tools = None if self._with_tools is None else self._with_tools.dated(year, month, day)
        return dated

    def taking(self, tools: Any) -> ChatTemplate:
        """What renders a conversation with these tools, None for none."""
        return self if tools is None or self._with_tools is None else self._with_tools

    def render(
        self,
        messages: Sequence[Message],
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """Text of a conversation. `variables` reach the template under their names (`enable_thinking=False`)."""
        data = _plain({"messages": messages, "variables": {"tools": tools, **variables}})
        which = [(ALL, {"add_generation_prompt": add_generation_prompt})]
        return self.taking(tools).renderings(data["messages"], which, data["variables"])[0]

    def renderings(
        self, messages: Sequence[Any], which: Sequence[Rendering], variables: Mapping[str, Any]
    ) -> list[str]:
        """Several texts of one conversation, which is handed to the process that renders but once.

        messages, variables: values of JSON's kinds.
        """
        request = {"messages": messages, "variables": {**self._tokens, **variables}, "renderings": which}
        return shared().render(self.source, {**request, "today": self._today}, self._seconds)

    def mentions(self, name: str) -> bool:
        """Whether the source has this name somewhere. What it has not it can read only together with all else."""
        return self._words.issuperset(_WORD.findall(name))

    @cached_property
    def _words(self) -> frozenset[str]:
        more: frozenset[str] = frozenset() if self._with_tools is None else self._with_tools._words
        return more.union(_WORD.findall(self.source))


def is_variable(name: str) -> bool:
    """Whether a template may be given something under this name: not what the conversation itself says."""
    return name.isidentifier() and name not in ("messages", "add_generation_prompt")


def parse_variable(text: str) -> tuple[str, Any]:
    """A variable as a person writes it, NAME=VALUE; the value is JSON (`false`, `["browser"]`) or else text.

    Raises DataError for what cannot be one.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not is_variable(name):
        raise DataError(f"{text!r} is not NAME=VALUE with a name that a template may know, as enable_thinking=false is")
    try:
        return name, json.loads(value, parse_constant=_no_json)
    except ValueError:
        return name, value
    except RecursionError:
        raise DataError(f"{name}: its value is nested too deeply") from None


def _no_json(text: str) -> NoReturn:
    raise ValueError(text)  # Infinity and NaN


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: Sequence[Message],
    /,
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> list[int]:
    """Token ids of a conversation, with exactly one BOS where the model was trained with one.

    Literals of control tokens in messages, tools or variables (a user may type `<|im_end|>`) stay text: each stands as
    one private character while the template runs, and is encoded apart afterwards. Without such literals the ids are
    those of the rendered text as a whole.
    """
    parts = chat_parts(tokenizer, template, messages, add_generation_prompt=add_generation_prompt, **variables)
    return one_bos(tokenizer, tokenizer.encode_parts(parts))


def chat_parts(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: Sequence[Message],
    /,
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> list[tuple[str, bool]]:
    """The rendered text of a conversation as (text, may control tokens be read from it?) parts."""
    chat = MarkedChat(tokenizer, template, messages, **variables)
    return chat.parts(chat.render(add_generation_prompt=add_generation_prompt))


class MarkedChat:
    """A conversation to be rendered several times, with each literal of a control token that its messages, tools or
    variables hold as one private character.

    The characters are the same in every rendering, so that renderings can be compared and cut anywhere before `parts`
    says what may be read as control tokens. begin, end: the characters around what `{% generation %}` marks, ""
    where the template has no such marks.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, messages: Sequence[Message], /, **variables: Any
    ) -> None:
        if template is None:
            raise TemplateError(_NO_TEMPLATE)
        template = template.taking(variables.get("tools"))
        data = _plain({"messages": messages, "variables": variables})
        literals = tokenizer.control_pattern
        found = {name for text in _strings(data) for name in literals.findall(text)}
        around = [BEGIN, END] if "endgeneration" in template.source else []
        marks = _private_characters([*sorted(found), *around], [template.source, *_strings(data)])
        self.begin, self.end = marks.pop(BEGIN, ""), marks.pop(END, "")
        if marks:
            data = _replaced(data, lambda text: literals.sub(lambda match: marks[match[0]], text))
        self._names = {mark: name for name, mark in marks.items()}
        self._template, self._messages, self._variables = template, data["messages"], data["variables"]
        self.roles: list[str | None] = [
            message.get("role") if is_table(message) else None for message in self._messages
        ]

    def render(self, count: int | None = None, *, add_generation_prompt: bool, marks: bool = False) -> str:
        """Text of the first `count` messages (None: all); marks: with `begin` and `end` around what is marked."""
        around = {BEGIN: self.begin, END: self.end} if marks else {}
        return self._rendered([(((0, count),), {**around, "add_generation_prompt": add_generation_prompt})])[0]

    def render_each(self, which: Iterable[tuple[Spans, bool]]) -> list[str]:
        """Texts of each (messages, add_generation_prompt), in less time than one by one."""
        return self._rendered([(spans, {"add_generation_prompt": prompt}) for spans, prompt in which])

    def parts(self, text: str) -> list[tuple[str, bool]]:
        """Any piece of a rendering without marks, as (text, may control tokens be read from it?) parts."""
        return _parts(text, self._names)

    def mentions(self, name: str) -> bool:
        """Whether the template that takes this conversation has this name somewhere."""
        return self._template.mentions(name)

    def unread(self, but: Collection[str] = ()) -> list[str]:
        """Keys of messages, sorted, that come to nothing: the template does not mention them, and writes the same
        without them. A thought is read if it is read under any name that it is given to the template under.

        but: keys that need not be looked at.
        """
        keys = {key for message in self._messages for key, value in message.items() if value is not None}
        keys.difference_update(but)
        unknown = {key for key in keys if not any(map(self._template.mentions, _given_as(key)))}
        if not unknown:
            return []
        rest = [{key: value for key, value in message.items() if key not in unknown} for message in self._messages]
        which = [(ALL, {"add_generation_prompt": False})]
        written = self._template.renderings(rest, which, self._variables) != self._rendered(which)
        names = sorted("".join(text for text, _ in self.parts(key)) for key in unknown)
        return [] if written else names  # written whole (`message | tojson`), it is read

    def _rendered(self, which: Sequence[Rendering]) -> list[str]:
        return self._template.renderings(self._messages, which, self._variables)


def _given_as(key: str) -> tuple[str, ...]:
    """The names that a template finds a message's key under."""
    return (key, *(name for name in ("thinking", "reasoning_content") if key in THOUGHTS and name != key))


_NO_TEMPLATE = "this model has no chat template (a base model): use `raw` to complete plain text"
_WORD = re.compile(r"\w+")


def one_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A conversation's ids with exactly one BOS in front, where the model was trained with one."""
    bos = tokenizer.bos_id
    if bos is None:
        return ids
    begin = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    if not begin and not tokenizer.adds_bos:
        return ids
    # a model whose BOS also opens every message (`<|im_start|>`) writes it once here as well
    return [bos, *ids[begin:]]


def _plain(value: Any) -> Any:
    """The same in values of JSON's kinds, which are all that a template sees; what is nothing of the kind is a
    placeholder. Raises TemplateError for what is nested too deeply."""
    try:
        return _rebuilt(value)
    except RecursionError:
        raise TemplateError("chat messages: they are nested too deeply") from None


def _rebuilt(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if _is_mapping(value):
        return {key: _rebuilt(item) for key, item in value.items()}
    if _is_sequence(value):
        return [_rebuilt(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _rebuilt(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return f"<{type(value).__name__}>"


def _is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _strings(value: Any) -> Iterator[str]:
    """Every string inside a value of JSON's kinds, keys included."""
    if isinstance(value, str):
        yield value
    elif _is_mapping(value):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif _is_sequence(value):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with `change` applied to every string in it, keys included."""
    if isinstance(value, str):
        return change(value)
    if _is_mapping(value):
        return {_replaced(key, change): _replaced(item, change) for key, item in value.items()}
    if _is_sequence(value):
        return [_replaced(item, change) for item in value]
    return value


def _private_characters(names: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """One character of Unicode's private planes for each name, none of which occurs in `texts`."""
    if not names:
        return {}
    used = set[str]().union(*texts)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    marks = dict(zip(names, free, strict=False))
    if len(marks) < len(names):
        raise TemplateError("chat messages: they use every private character of Unicode; leave some out")
    return marks


def _parts(text: str, names: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Rendered text as (text, may control tokens be read from it?) parts."""
    parts: list[tuple[str, bool]] = []
    begin = 0
    for i, character in enumerate(text) if names else ():
        if character in names:
            parts += [(text[begin:i], True), (names[character], False)]
            begin = i + 1
    return [*parts, (text[begin:], True)]
