"""JSON schemas of clients made ready for a grammar, and what of them a grammar in another notation than JSON needs.

Invariant: whatever a prepared schema admits, the client's own admits. Nothing is fetched; only references into the
schema itself are followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from partita.errors import DataError
from partita.files.bounded import is_list, is_table

Json = dict[str, Any]
MAX_DEPTH = 64
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
"""Formats that are enforced. Any other one says something of a text that no grammar knows, as JSON schema allows."""
_ABOUT = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"})
_DEFINITIONS = ("$defs", "definitions")
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SINGLE = frozenset({"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"})
_OPEN = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref"}
)


def prepared(schema: object) -> Json:
    """A schema without what does not change which values it admits, whose objects have no properties but those that are
    named, where they name some and do not say otherwise.

    Raises DataError for what is no schema, or nested too deeply.
    """
    found = _prepared(schema, 0, closed=True)
    if found is True:
        return {}
    if not is_table(found):
        raise DataError("a JSON schema must be an object")
    found.pop("x-guidance", None)
    return found


def _prepared(schema: object, depth: int, *, closed: bool) -> Any:
    if depth > MAX_DEPTH:
        raise DataError(f"the schema is nested more than {MAX_DEPTH} deep")
    if not is_table(schema):
        return schema
    found: Json = {}
    for key, value in schema.items():
        if key in _ABOUT or (key == "format" and value not in FORMATS):
            continue
        inner = closed and key not in ("allOf", "not", "if", "then", "else")  # their objects are parts of others
        if key in _MAPS and is_table(value):
            value = {name: _prepared(each, depth + 1, closed=inner) for name, each in value.items()}
        elif (key in _LISTS or key == "items") and is_list(value):
            value = [_prepared(each, depth + 1, closed=inner and _alone(schema, key)) for each in value]
        elif key in _SINGLE:
            value = _prepared(value, depth + 1, closed=inner)
        found[key] = value
    if closed and found.get("properties") and not _OPEN & found.keys():
        found["additionalProperties"] = False
    return found


def _alone(schema: Mapping[str, Any], key: str) -> bool:
    """Whether what a list of alternatives admits is all that the schema says of properties."""
    return key not in ("anyOf", "oneOf") or not schema.keys() & {"properties", "required", "$ref", "allOf"}


def resolved(schema: Any, root: Mapping[str, Any]) -> Json:
    """What a schema says, references followed. Raises DataError for one that leads nowhere, or in a circle."""
    for _ in range(MAX_DEPTH):
        if schema is True:
            return {}
        if not is_table(schema):
            raise DataError("a schema that admits nothing")
        only = schema.get("allOf")
        if is_list(only) and len(only) == 1 and len(schema) == 1:
            schema = only[0]
        elif "$ref" in schema:
            schema = _referred(schema["$ref"], root)
        else:
            return schema
    raise DataError("references in the schema lead in a circle")


def _referred(reference: object, root: Mapping[str, Any]) -> Any:
    found: Any = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise DataError("a reference that leads out of the schema")
    for part in reference[1:].strip("/").split("/") if len(reference) > 1 else ():
        name = part.replace("~1", "/").replace("~0", "~")
        if not is_table(found) or name not in found:
            raise DataError(f"the reference {reference!r} leads nowhere")
        found = found[name]
    return found


def with_definitions(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Json:
    """A part of a schema that stands alone: with the definitions that its references lead to.

    Raises DataError where they lead to other parts.
    """
    references = set(_references([schema, *(root.get(key) for key in _DEFINITIONS)]))
    if not all(reference.startswith(tuple(f"#/{key}/" for key in _DEFINITIONS)) for reference in references):
        raise DataError("a reference in the schema that does not lead to a definition")
    return {**{key: root[key] for key in _DEFINITIONS if key in root and references}, **schema}


def _references(value: Any) -> Iterator[str]:
    if is_table(value):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        value = list(value.values())
    if is_list(value):
        for each in value:
            yield from _references(each)
