"""The notations in which models call tools. Reads the text of one call; knows no tokens, and no markers around it.

Invariants: whatever the text, a notation gives calls or raises Malformed with a reason in a few words; time and memory
grow with the text alone. Nothing is completed or repaired that could make another call of it: what was cut is no call.
Those whose values stand between tags are `tagged`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...files.bounded import is_list, is_table
from .called import Called, Offered, ToolCall
from .tagged import arg_keys, invoked, xml
from .values import NAME, QUOTE, Malformed, Values, blank, json_value


@dataclass(frozen=True)
class Notation:
    """parse: calls out of a call's text. quotes: what begins a quotation, inside which a marker is text, and what it is
    up to its end, as regular expressions. ends_itself: whether the text alone shows that nothing was cut.
    """

    parse: Callable[[str, Offered], list[Called]]
    quotes: tuple[tuple[str, str], ...]
    ends_itself: bool = True

    def inside(self, text: str, quotation: int | None) -> int | None:
        """The quotation that is open behind a text, None for none. quotation: the one that was open before it."""
        begins = re.compile("|".join(f"({begin})" for begin, _ in self.quotes))
        ends = [re.compile(end, re.DOTALL) for _, end in self.quotes]
        place = 0
        while True:
            found = begins.search(text, place) if quotation is None else ends[quotation].match(text, place)
            if found is None:
                return quotation
            place = found.end()
            quotation = None if quotation is not None or found.lastindex is None else found.lastindex - 1


def read(notation: str, text: str, tools: Offered, written: str) -> list[ToolCall]:
    """The calls of a text, ids only where it has some; the first of them has been `written` so, markers included.

    Raises Malformed.
    """
    calls = NOTATIONS[notation].parse(text, tools)
    return [call.as_call("" if i else written) for i, call in enumerate(calls)]


def read_arguments(name: str, text: str, written: str) -> ToolCall:
    """The call of a tool whose name stands elsewhere. Raises Malformed."""
    return Called(name, arguments(text) if text.strip() else {}).as_call(written)


# ---------------------------------------------------------------- JSON


def arguments(text: str) -> dict[str, Any]:
    """An object that is all of a text."""
    value, end = json_value(text, blank(text, 0))
    if not is_table(value):
        raise Malformed("the arguments are not a JSON object")
    if blank(text, end) < len(text):
        raise Malformed("text after the arguments")
    return value


def _objects(text: str, tools: Offered, key: str = "name") -> list[Called]:
    """`{"name": …, "arguments": {…}}`, a list of these, or several with `;` or `,` between them. key: of the name."""
    found: list[Any] = []
    place = blank(text, 0)
    while place < len(text):
        value, place = json_value(text, place)
        found += value if is_list(value) else [value]
        place = blank(text, place, ";,")
    if not found:
        raise Malformed("there is no call")
    return [_object(value, key) for value in found]


def _cohere(text: str, tools: Offered) -> list[Called]:
    """A list of `{"tool_call_id": "0", "tool_name": …, "parameters": {…}}`; ids begin anew in every turn and tell no
    two calls of a conversation apart."""
    return _objects(text, tools, "tool_name")


def _object(value: Any, key: str) -> Called:
    if is_table(value) and is_table(value.get("function")):
        value = value["function"]
    if not is_table(value) or not isinstance(value.get(key), str) or not value[key]:
        raise Malformed("a JSON object without the name of a tool")
    none: dict[str, Any] = {}
    given = next((value[each] for each in ("arguments", "parameters") if value.get(each) is not None), none)
    if isinstance(given, str):
        given = arguments(given)
    if not is_table(given):
        raise Malformed("the arguments are not a JSON object")
    return Called(value[key], given)


_ARGS = re.compile(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\]\s*([^\s\[{]+)\s*)?(?:\[ARGS\])?(?=\s*\{)")


def _mistral(text: str, tools: Offered) -> list[Called]:
    """A list of objects, or `name[ARGS]{…}`, perhaps with `[CALL_ID]…` between them."""
    found = _ARGS.match(text)
    return [Called(found[1], arguments(text[found.end() :]), found[2])] if found else _objects(text, tools)


_FENCED = re.compile(r"\s*([^\s`]+)\s*```(?:json)?(.*)```\s*", re.DOTALL)


def _deepseek(text: str, tools: Offered) -> list[Called]:
    """`name<sep>{…}`, or `function<sep>name` and the arguments in a fenced block."""
    name, separator, rest = text.partition("<｜tool▁sep｜>")
    fenced = _FENCED.fullmatch(rest)
    if not separator or not (name := fenced[1] if fenced else name.strip()):
        raise Malformed("there is no name of a tool")
    return [Called(name, arguments(fenced[2] if fenced else rest))]


def _fenced(text: str, tools: Offered) -> list[Called]:
    """`name` and the arguments in a fenced block."""
    found = _FENCED.fullmatch(text)
    if found is None:
        raise Malformed("there is no name of a tool with its arguments in a fenced block")
    return [Called(found[1], arguments(found[2]))]


_NAMED = re.compile(r"\s*([^\s{}]+)[^\S\n]*\n(.*)", re.DOTALL)


def _named(text: str, tools: Offered) -> list[Called]:
    """A line with the name, and the arguments behind it."""
    found = _NAMED.fullmatch(text)
    if found is None:
        raise Malformed("there is no line with the name of a tool")
    return [Called(found[1], arguments(found[2]))]


# ---------------------------------------------------------------- Python's and Gemma's calls


def _gemma(text: str, tools: Offered) -> list[Called]:
    """`call:name{key:value}`, strings between marks of their own."""
    values = Values(text)
    calls: list[Called] = []
    while values.take("call:"):
        name = values.match(re.compile(r"[^\s{}]+"))
        values.need("{")
        calls.append(Called(name or "", values.object()))
    return _all_read(values, calls)


def _python(text: str, tools: Offered) -> list[Called]:
    """`[name(key=value), …]`, or one call a line without the brackets."""
    values = Values(text)
    calls: list[Called] = []
    listed = values.take("[")
    while name := values.match(NAME):
        found: dict[str, Any] = {}

        def keyword(found: dict[str, Any] = found) -> None:
            key = values.match(NAME) or ""
            values.need("=")
            found[key] = values.value()

        values.need("(")
        values.items(")", keyword)
        calls.append(Called(name, found))
        values.take(",")
    if listed:
        values.need("]")
    return _all_read(values, calls)


def _all_read(values: Values, calls: list[Called]) -> list[Called]:
    values.skip()
    if values.place < len(values.text) or not all(call.name for call in calls):
        raise Malformed("text that is no call")
    if not calls:
        raise Malformed("there is no call")
    return calls


_STRING = ('"', r'(?:[^"\\]|\\.)*+"')
NOTATIONS = {
    "json": Notation(_objects, (_STRING,)),
    "cohere": Notation(_cohere, (_STRING,)),
    "mistral": Notation(_mistral, (_STRING,)),
    "deepseek": Notation(_deepseek, (_STRING,)),
    "fenced": Notation(_fenced, (_STRING,)),
    "named": Notation(_named, (_STRING,)),
    "xml": Notation(
        xml, ((r"<parameter=[^>\n]*>(?=\n)", r".*?\n</parameter>"), (r"<parameter=[^>\n]*>", r".*?</parameter>"))
    ),
    "arg_keys": Notation(arg_keys, ((r"<arg_value>", r".*?</arg_value>"),), ends_itself=False),
    "invoked": Notation(invoked, ((r"<atem:parameter[^>\n]*>", r".*?</atem:parameter>"),)),
    "gemma": Notation(_gemma, ((re.escape(QUOTE), rf".*?{re.escape(QUOTE)}"),)),
    "python": Notation(_python, (_STRING, ("'", r"(?:[^'\\]|\\.)*+'"))),
}
"""By the names under which `formats` chooses them."""
