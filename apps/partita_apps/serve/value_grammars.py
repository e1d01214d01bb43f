"""Values of a schema in the notations of tool calls that are not JSON: Python's, Gemma's, and plain text in tags.

Invariant: what a grammar admits here is read back (`partita.text.reply.calls`) as a value that the schema admits. A
schema that a notation cannot be held to raises DataError in a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from partita.errors import DataError
from partita.files.bounded import is_list, is_table
from partita.text.reply.values import QUOTE

from .lark import ANYTHING, Writer, any_of, quoted
from .schemas import resolved, with_definitions

Json = dict[str, Any]
_KINDS = ("string", "integer", "number", "boolean", "null", "array", "object")
_ABOUT = frozenset({"type", "$defs", "definitions", "$schema", "$id", "format"})
_KEYWORDS: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_MAX_ITEMS = 1000


def branches(schema: Json, root: Mapping[str, Any]) -> list[Json]:
    """A schema's alternatives, each of one kind of value or a constant. Raises DataError for what is not that plain."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            _only(schema, frozenset({key}))
            return [found for each in schema[key] for found in branches(resolved(each, root), root)]
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        _only(schema, frozenset({"const", "enum"}))
        return [{"const": value} for value in values if _is_a(value, schema.get("type"))]
    stated = schema.get("type", list(_KINDS) if not schema.keys() - _ABOUT else None)
    kinds = stated if is_list(stated) else [stated]
    if not kinds or not all(kind in _KINDS for kind in kinds):
        raise DataError("a schema without a type")
    every = frozenset[str]().union(*(_KEYWORDS.get(kind, frozenset()) for kind in kinds))
    _only(schema, every)
    kept = {kind: _ABOUT | _KEYWORDS.get(kind, frozenset()) for kind in kinds}
    return [{**{key: value for key, value in schema.items() if key in kept[kind]}, "type": kind} for kind in kinds]


def _only(schema: Json, keywords: frozenset[str]) -> None:
    more = schema.keys() - keywords - _ABOUT
    if more:
        raise DataError(f"its keyword {', '.join(map(quoted, sorted(more)))} is not supported in this model's calls")


def _is_a(value: Any, stated: Any) -> bool:
    kinds = stated if is_list(stated) else [stated]
    tests = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    if stated is None or any(kind in tests and isinstance(value, tests[kind]) for kind in kinds):
        return True
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and ("number" in kinds or ("integer" in kinds and value == int(value)))


@dataclass(frozen=True)
class Notation:
    """words: of true, false and null. between: items. key: a key of an object with what stands behind it."""

    words: Mapping[Any, str]
    between: str
    key: Callable[[str], str]
    free_key: str
    """A regular expression of any key, likewise."""


PYTHON = Notation(
    {True: "True", False: "False", None: "None"}, ", ", lambda key: f"{json.dumps(key)}: ", r"/\"\w{1,40}\": /"
)
GEMMA = Notation(
    {True: "true", False: "false", None: "null"},
    ",",
    lambda key: f"{key}:" if _WORD.fullmatch(key) else f"{QUOTE}{key}{QUOTE}:",
    r"/[A-Za-z_]\w{0,40}:/",
)


class Values:
    """Rules for the values of one schema, `root`, in a notation."""

    def __init__(self, writer: Writer, notation: Notation, root: Mapping[str, Any]) -> None:
        if notation is GEMMA and not writer.is_control(QUOTE):
            raise DataError("the model's vocabulary has no token for quotation marks")
        self._writer, self._notation, self._root = writer, notation, root
        self._references: dict[str, str] = {}
        self._any: str | None = None

    def value(self, schema: Any) -> str:
        reference = schema.get("$ref") if is_table(schema) else None
        if not isinstance(reference, str):
            return self._value(resolved(schema, self._root))
        if reference not in self._references:
            name = self._references[reference] = self._writer.reserve()
            self._writer.define(name, self._value(resolved(schema, self._root)))
        return self._references[reference]

    def properties(self, schema: Json, key: Callable[[str], str]) -> str:
        """The properties of an object, or arguments. key: a name, with what stands behind it."""
        properties: Json = schema.get("properties") or {}
        needed = set(schema.get("required") or ())
        if needed - properties.keys():
            raise DataError("it requires a property that it does not describe")
        if not properties and schema.get("additionalProperties", True) is not False:
            return self._open(schema.get("additionalProperties", True))
        pairs = [
            (f"{self._writer.literal(key(name))} {self.value(each)}", name in needed)
            for name, each in properties.items()
        ]
        return self._writer.listed(pairs, self._notation.between)

    def _open(self, values: Any) -> str:
        pair = self._writer.rule(f"{self._writer.terminal(self._notation.free_key)} {self.value(values)}")
        return f"({pair} ({quoted(self._notation.between)} {pair})*)?"

    def _value(self, schema: Json) -> str:
        if not schema.keys() - _ABOUT and "type" not in schema:
            return self._anything()
        return self._writer.rule(any_of([self._branch(each) for each in branches(schema, self._root)]))

    def _anything(self) -> str:
        """Any value; references to it make it recursive."""
        if self._any is None:
            self._any = self._writer.reserve()
            self._writer.define(
                self._any, any_of([self._branch({"type": kind}) for kind in _KINDS if kind != "integer"])
            )
        return self._any

    def _branch(self, schema: Json) -> str:
        if "const" in schema:
            return self._writer.literal(self._written(schema["const"]))
        kind = schema["type"]
        if kind == "object":
            return f'"{{" {self.properties(schema, self._notation.key)} "}}"'
        if kind == "array":
            return self._array(schema)
        if kind == "boolean":
            return any_of([quoted(self._notation.words[word]) for word in (True, False)])
        if kind == "null":
            return quoted(self._notation.words[None])
        return self._gemma_string(schema) if kind == "string" and self._notation is GEMMA else self._writer.json(schema)

    def _array(self, schema: Json) -> str:
        item, between = self.value(schema.get("items", True)), quoted(self._notation.between)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if not isinstance(least, int) or not 0 <= least <= _MAX_ITEMS or not (most is None or isinstance(most, int)):
            raise DataError("an array of too many items")
        if most == 0:
            return '"[" "]"'
        more = f"({between} {item}){{{max(least - 1, 0)},{'' if most is None else min(most, _MAX_ITEMS) - 1}}}"
        return f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"'

    def _gemma_string(self, schema: Json) -> str:
        quote = self._writer.literal(QUOTE)
        return f"{quote} {text(self._writer, schema)} {quote}"

    def _written(self, value: Any) -> str:
        """A constant."""
        if isinstance(value, str):
            return f"{QUOTE}{value}{QUOTE}" if self._notation is GEMMA else json.dumps(value, ensure_ascii=False)
        if value is None or isinstance(value, bool):
            return self._notation.words[value]
        if is_table(value):
            pairs = (f"{self._notation.key(key)}{self._written(each)}" for key, each in value.items())
            return f"{{{self._notation.between.join(pairs)}}}"
        if is_list(value):
            return f"[{self._notation.between.join(map(self._written, value))}]"
        return json.dumps(value)


def text(writer: Writer, schema: Json) -> str:
    """Any text as long as a schema wants it."""
    if "pattern" in schema or "format" in schema:
        raise DataError('its keyword "pattern" or "format" is not supported in this model\'s calls')
    return writer.terminal(_lengths(schema))


def _lengths(schema: Json) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if not least and most is None:
        return ANYTHING
    return f"/(?s:.{{{int(least)},{'' if most is None else int(most)}}})/"


class TextValues:
    """Rules for the values of one schema, `root`, as plain text in front of an end tag: strings as they are, else JSON.

    end: the tag, with the line end that belongs to it. forbidden: a regular expression of what no text may be.
    """

    def __init__(self, writer: Writer, root: Mapping[str, Any], end: str, forbidden: str | None = None) -> None:
        self._writer, self._root, self._end, self._forbidden = writer, root, end, forbidden

    def value(self, schema: Any) -> str:
        """A value and the tag behind it."""
        whole = resolved(schema, self._root)
        end = self._writer.literal(self._end)
        if not whole.keys() - _ABOUT and "type" not in whole:
            return self._text({})
        found = branches(whole, self._root)
        kinds = {"string" if isinstance(each.get("const"), str) else each.get("type") for each in found}
        if "string" not in kinds:
            return f"{self._writer.json(with_definitions(whole, self._root))} {end}"
        texts = [self._branch(each, end) for each in found]
        return self._writer.rule(any_of(texts))

    def _branch(self, schema: Json, end: str) -> str:
        if "const" in schema:
            value = schema["const"]
            return f"{self._writer.literal(value if isinstance(value, str) else json.dumps(value))} {end}"
        if schema["type"] == "string":
            return self._text(schema)
        return f"{self._writer.json(with_definitions(schema, self._root))} {end}"

    def _text(self, schema: Json) -> str:
        if "pattern" in schema or "format" in schema:
            raise DataError('its keyword "pattern" or "format" is not supported in this model\'s calls')
        inner = _lengths(schema)
        if self._forbidden is not None:
            inner = f"({inner} & ~/{self._forbidden}/)"
        return self._writer.rule(self._writer.terminal(f"{inner} {quoted(self._end)}"), "[lazy]")
