"""Values out of JSON and YAML in declared types. What does not fit is one line: the key, what was expected, what it is.

Not here: reading and bounding a file (bounded.py), and which values make sense. Invariant: msgspec converts here and
nowhere else, so its messages are put into words in one place.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from ..brief import brief

T = TypeVar("T")

_FAULT = re.compile(r"(?P<said>.*?)(?: - at (?P<of>`\w+` in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_EXPECTED = re.compile(r"Expected `(?P<kinds>[^`]*)`(?P<bound>[^,]*)(?:, got `(?P<got>.*)`)?")
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "array": "a list",
    "object": "an object",
}
_OTHERS = {"Invalid enum value": "unknown value", "Number out of range": "expected a number within range"}


class Misfit(ValueError):
    """A value that is not of its declared type, in one line without a file's name."""


def typed(value: Any, kind: type[T], key: str = "", *, strict: bool = True) -> T:
    """A value, as a JSON or YAML reader gives it, in the type `kind`: a plain type, a dataclass, a TypedDict, a Struct.

    Keys that `kind` does not name are left out. key: what the value is called, in front of the keys within it. strict:
    a text is no number; else it is one where it reads as one, and 100.0 is the integer 100. Raises Misfit.
    """
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise Misfit(_line(str(error), value, key)) from None
    except RecursionError:
        raise Misfit(f"{_begun(key)}nested too deep") from None


def _line(message: str, value: Any, key: str) -> str:
    fault = _FAULT.fullmatch(message)
    said, path, of_key = (fault["said"], fault["path"] or "", fault["of"]) if fault else (message, "", None)
    where = f"{key}{path}".removeprefix(".")
    if missing := _MISSING.fullmatch(said):
        return f"{f'{where}.{missing[1]}'.removeprefix('.')} is missing"
    if unknown := _UNKNOWN.fullmatch(said):
        return f"{_begun(where)}unknown key {unknown[1]!r}"
    expected = _EXPECTED.fullmatch(said)
    got = None if of_key else _found(value, path)
    if expected is None:  # what a type's own checks say, or a value outside those that are listed
        what = next((words for begin, words in _OTHERS.items() if said.startswith(begin)), said)
        return f"{_begun(where)}{what}{f', got {got}' * bool(got)}"
    got = got or _words(expected["got"] or "")
    return f"{_begun(where)}expected {_words(expected['kinds'])}{expected['bound']}{f', got {got}' * bool(got)}"


def _begun(where: str) -> str:
    return f"{where}: " if where else ""


def _words(kinds: str) -> str:
    """`int | null` as "an integer": what may be absent is left out."""
    names = kinds.split(" | ")
    return " or ".join(_WORDS.get(name, name) for name in names if name != "null" or len(names) == 1)


def _found(value: Any, path: str) -> str | None:
    """What stands at a path like `.messages[0].role`, short. None where that is not clear: `[...]` is some value of a
    table, and a name may hold a dot."""
    try:
        for step in _STEP.finditer(path):
            value = value[int(step["index"])] if step["index"] else value[step["name"]]
    except (LookupError, ValueError):
        return None
    if isinstance(value, dict | list):
        return _WORDS["object" if isinstance(value, dict) else "array"]
    return json.dumps(value) if value is None or isinstance(value, bool) else brief(value)
