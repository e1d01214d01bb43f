"""The notations in which models call tools. Reads the text of one call; knows no tokens, and no markers around it.

Invariants: whatever the text, a notation gives calls or raises Malformed with a reason in a few words; time and memory
grow with the text alone. Nothing is completed or repaired that could make another call of it: what was cut is no call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ...files.bounded import is_list, is_table
from .values import MAX_DEPTH, NAME, PYTHON_WORDS, QUOTE, Malformed, Values, blank

Offered = Mapping[str, Mapping[str, Any]]
"""Schemas of the parameters of the tools that a model was offered, by the tools' names."""


_MAX_REFERENCES = 16  # from one schema to the next


@dataclass(frozen=True)
class ToolCall:
    """arguments: an object as JSON text. id: tells the calls of a conversation apart. written: as the model wrote it.

    error: why it could not be understood, in a few words; name and arguments are then "".
    """

    name: str
    arguments: str
    id: str
    written: str
    error: str | None = None


@dataclass(frozen=True)
class Called:
    """What a notation says. id: None where it has none."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None

    def as_call(self, written: str) -> ToolCall:
        try:
            text = json.dumps(self.arguments, ensure_ascii=False, allow_nan=False)
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair: as an escape it can be printed
            text = json.dumps(self.arguments)
        except ValueError:
            raise Malformed("a number that is not finite") from None
        return ToolCall(self.name, text, self.id or "", written)


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


def offered(tools: Sequence[Any] | None) -> dict[str, dict[str, Any]]:
    """What a list of tools says of their parameters, in OpenAI's form or as bare functions."""
    found: dict[str, dict[str, Any]] = {}
    for tool in tools or ():
        function = tool.get("function", tool) if _is_mapping(tool) else None
        if not _is_mapping(function) or not isinstance(function.get("name"), str):
            continue
        parameters = function.get("parameters")
        properties = parameters.get("properties") if _is_mapping(parameters) else None
        known: Mapping[str, Any] = properties if _is_mapping(properties) else {}
        found[function["name"]] = {name: _plain(schema, parameters) for name, schema in known.items()}
    return found


def _plain(schema: Any, root: Any) -> Any:
    """A schema with what it, or an alternative of it, refers to in place of the reference."""
    found = _referred(schema, root)
    for key in ("anyOf", "oneOf"):
        if _is_mapping(found) and is_list(found.get(key)):
            found = {**found, key: [_referred(branch, root) for branch in found[key]]}
    return found


def _referred(schema: Any, root: Any) -> Any:
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref") if _is_mapping(schema) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for part in reference[2:].split("/"):
            schema = schema.get(part.replace("~1", "/").replace("~0", "~")) if _is_mapping(schema) else None
    return schema


def _is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


# ---------------------------------------------------------------- JSON


def arguments(text: str) -> dict[str, Any]:
    """An object that is all of a text."""
    value, end = _json(text, blank(text, 0))
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
        value, place = _json(text, place)
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


def _json(text: str, place: int) -> tuple[Any, int]:
    """The value at a place, and the place behind it. A line end inside a string is taken: models write them."""
    try:
        return json.JSONDecoder(strict=False, parse_constant=_constant).raw_decode(text, place)
    except (ValueError, RecursionError):
        raise Malformed("not valid JSON") from None


def _constant(name: str) -> Any:
    raise Malformed("NaN and Infinity are no JSON")


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


# ---------------------------------------------------------------- tags, whose values are text


_FUNCTION = re.compile(r"<function=([^>\n]+)>")
_INSIDE = re.compile(r"<parameter=([^>\n]+)>|</function>")
_LINES = re.compile(r"\n(?:</parameter>|(?=<parameter=|</function>))")
_INLINE = re.compile(r"</parameter>|(?=<parameter=|</function>)")


def _xml(text: str, tools: Offered) -> list[Called]:
    """`<function=name><parameter=key>value</parameter></function>`; one line end on each side of a value is no part."""
    calls: list[Called] = []
    place = 0
    while (function := _FUNCTION.search(text, place)) is not None:
        name, place = function[1].strip(), function.end()
        found: dict[str, Any] = {}
        while True:
            tag = _INSIDE.search(text, place)
            if tag is None:
                raise Malformed("there is no </function>")
            place = tag.end()
            if tag[1] is None:
                break
            lines = text.startswith("\n", place)
            end = (_LINES if lines else _INLINE).search(text, place)
            if end is None:
                raise Malformed("there is no </function>")
            found[tag[1].strip()] = _typed(text[place + lines : end.start()], tools, name, tag[1].strip())
            place = end.end()
        calls.append(Called(name, found))
    if not calls:
        raise Malformed("there is no <function=…>")
    return calls


_KEY = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)(?:</arg_value>|\Z)", re.DOTALL)


def _arg_keys(text: str, tools: Offered) -> list[Called]:
    """`name<arg_key>key</arg_key><arg_value>value</arg_value>`."""
    name = text.partition("<arg_key>")[0]
    place, name = len(name), name.strip()
    found: dict[str, Any] = {}
    if not re.fullmatch(r"[^\s<>{}]+", name):
        raise Malformed("there is no name of a tool")
    while (pair := _KEY.match(text, place)) is not None:
        found[pair[1].strip()] = _typed(pair[2], tools, name, pair[1].strip())
        place = pair.end()
    if blank(text, place) < len(text):
        raise Malformed("text that is no argument")
    return [Called(name, found)]


_JSON_TYPES: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}


def _typed(text: str, tools: Offered, tool: str, parameter: str) -> Any:
    """A value that was written as text, of the type that its schema asks for; without one, JSON where it is JSON."""
    types = _types(tools.get(tool, {}).get(parameter))
    if types and not types - {"string", "null"}:
        return None if "null" in types and text.strip() in ("null", "None") else text
    word = text.strip()
    try:
        value: object = PYTHON_WORDS[word] if word in PYTHON_WORDS else _whole(word)
    except Malformed:
        return text
    kind = _kind(value)
    fits = kind in types or (kind == "integer" and "number" in types)
    return text if isinstance(value, str) or ("string" in types and not fits) else value


def _kind(value: object) -> str:
    return _JSON_TYPES.get(type(value), "string")


def _whole(text: str) -> Any:
    value, end = _json(text, 0)
    if end < len(text):
        raise Malformed("text after a value")
    return value


def _types(schema: Any, depth: int = 0) -> set[str]:
    """The JSON types that a schema admits, as far as it names them."""
    if not _is_mapping(schema) or depth > MAX_DEPTH:
        return set()
    stated = schema.get("type")
    types = {name for name in (stated if is_list(stated) else [stated]) if isinstance(name, str)}
    constants: Any = [schema["const"]] if "const" in schema else schema.get("enum")
    if not types and is_list(constants):
        types = {_kind(value) for value in constants}
    for key in ("anyOf", "oneOf"):
        branches = schema.get(key)
        for branch in branches if is_list(branches) else ():
            types |= _types(branch, depth + 1)
    return types


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
        _xml, ((r"<parameter=[^>\n]*>(?=\n)", r".*?\n</parameter>"), (r"<parameter=[^>\n]*>", r".*?</parameter>"))
    ),
    "arg_keys": Notation(_arg_keys, ((r"<arg_value>", r".*?</arg_value>"),), ends_itself=False),
    "gemma": Notation(_gemma, ((re.escape(QUOTE), rf".*?{re.escape(QUOTE)}"),)),
    "python": Notation(_python, (_STRING, ("'", r"(?:[^'\\]|\\.)*+'"))),
}
"""By the names under which `reply_formats` chooses them."""
