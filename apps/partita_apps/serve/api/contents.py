"""What messages hold, as text: contents that are text or lists of parts, and arguments of calls. No HTTP, no dialect.

Invariant: text and a list with that text as its one part are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from partita.files.bounded import is_list, is_table

from ..asked import Refused


def as_text(content: Any, where: str, kinds: Mapping[str, str]) -> str:
    """kinds: under which name each kind of part that is text holds it. Others are refused by name: a model of text
    cannot see a picture. None is no text. where: the content's place in the body."""
    if content is None or isinstance(content, str):
        return content or ""
    if not is_list(content):
        raise Refused(f"`{where}` must be text or a list of parts", field=where)
    return "\n".join(part_text(part, f"{where}[{i}]", kinds) for i, part in enumerate(content))


def part_text(part: Any, where: str, kinds: Mapping[str, str]) -> str:
    if isinstance(part, str):
        return part
    if not is_table(part):
        raise Refused(f"`{where}` must be an object", field=where)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise Refused(f"`{where}.type` {kind!r} is not supported; supported: {', '.join(kinds)}", field=f"{where}.type")
    return text_field(part, kinds[kind], where)


def text_field(value: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be there and text."""
    text = value.get(name)
    if not isinstance(text, str):
        raise Refused(f"`{where}.{name}` must be text", field=f"{where}.{name}")
    return text


def arguments(text: Any) -> Mapping[str, Any]:
    """Arguments of an earlier call as an object; what is none stands in one: a model should see what was called."""
    if isinstance(text, str):
        try:
            text = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            return {"arguments": text}
    return text if is_table(text) else {"arguments": text}
