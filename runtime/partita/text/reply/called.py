"""What a model calls, and what it was offered: tool calls, and the schemas of tools' parameters. Reads no notation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ...files.bounded import is_list
from .values import Malformed

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


def offered(tools: Sequence[Any] | None) -> dict[str, dict[str, Any]]:
    """What a list of tools says of their parameters, in OpenAI's form or as bare functions."""
    found: dict[str, dict[str, Any]] = {}
    for tool in tools or ():
        function = tool.get("function", tool) if is_mapping(tool) else None
        if not is_mapping(function) or not isinstance(function.get("name"), str):
            continue
        parameters = function.get("parameters")
        properties = parameters.get("properties") if is_mapping(parameters) else None
        known: Mapping[str, Any] = properties if is_mapping(properties) else {}
        found[function["name"]] = {name: _plain(schema, parameters) for name, schema in known.items()}
    return found


def _plain(schema: Any, root: Any) -> Any:
    """A schema with what it, or an alternative of it, refers to in place of the reference."""
    found = _referred(schema, root)
    for key in ("anyOf", "oneOf"):
        if is_mapping(found) and is_list(found.get(key)):
            found = {**found, key: [_referred(branch, root) for branch in found[key]]}
    return found


def _referred(schema: Any, root: Any) -> Any:
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref") if is_mapping(schema) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for part in reference[2:].split("/"):
            schema = schema.get(part.replace("~1", "/").replace("~0", "~")) if is_mapping(schema) else None
    return schema


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)
