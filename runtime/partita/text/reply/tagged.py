"""Notations of calls whose values are text between tags: a schema, or what they look like, says of which type they are.

Invariants: those of `calls`.
"""

from __future__ import annotations

import re
from typing import Any

from ...files.bounded import is_list
from .called import Called, Offered, is_mapping
from .values import MAX_DEPTH, PYTHON_WORDS, Malformed, blank, json_value

_FUNCTION = re.compile(r"<function=([^>\n]+)>")
_INSIDE = re.compile(r"<parameter=([^>\n]+)>|</function>")
_LINES = re.compile(r"\n(?:</parameter>|(?=<parameter=|</function>))")
_INLINE = re.compile(r"</parameter>|(?=<parameter=|</function>)")


def xml(text: str, tools: Offered) -> list[Called]:
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


_INVOKED = re.compile(r'<atem:invoke name="([^">\n]+)">')
_PARAMETER = re.compile(r'\s*<atem:parameter name="([^">\n]+)">(.*?)</atem:parameter>', re.DOTALL)
_INVOKED_END = re.compile(r"\s*</atem:invoke>")


def invoked(text: str, tools: Offered) -> list[Called]:
    """`<atem:invoke name="name"><atem:parameter name="key">value</atem:parameter></atem:invoke>`; every character of a
    value is part of it."""
    calls: list[Called] = []
    place = 0
    while (invoke := _INVOKED.search(text, place)) is not None:
        place, found = invoke.end(), dict[str, Any]()
        while (pair := _PARAMETER.match(text, place)) is not None:
            found[pair[1]] = _typed(pair[2], tools, invoke[1], pair[1])
            place = pair.end()
        end = _INVOKED_END.match(text, place)
        if end is None:
            raise Malformed("there is no </atem:invoke>")
        place = end.end()
        calls.append(Called(invoke[1], found))
    if not calls:
        raise Malformed("there is no <atem:invoke …>")
    return calls


_KEY = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)(?:</arg_value>|\Z)", re.DOTALL)


def arg_keys(text: str, tools: Offered) -> list[Called]:
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
    value, end = json_value(text, 0)
    if end < len(text):
        raise Malformed("text after a value")
    return value


def _types(schema: Any, depth: int = 0) -> set[str]:
    """The JSON types that a schema admits, as far as it names them."""
    if not is_mapping(schema) or depth > MAX_DEPTH:
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
