"""Bodies of requests: bytes to typed fields. Knows no HTTP and no dialect, only how a dialect declares its fields.

A field is one of four kinds: one that is done; one that is refused by name, since it would change the answer; a hint,
accepted and listed; an unknown one, accepted and listed, or refused where the server is strict. Bounds are checked
before anything is done: of size and depth before parsing, of numbers and lengths with the types.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import Meta

from partita.engine.request import MAX_ALTERNATIVES
from partita.files.bounded import is_table
from partita.printable import printable
from partita.text.stop_strings import MAX_STOPS

from .asked import Refused

MAX_DEPTH = 100
"""Lists and objects inside each other: so many are always taken, and twice as many never."""
MAX_TEXTS = 64
"""Prompts of one request."""
MAX_REPLIES = 8
MAX_LISTED = 50
"""Fields in a header."""

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Replies = Annotated[int, Meta(ge=1, le=MAX_REPLIES)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Temperature = Annotated[float, Meta(ge=0, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-100, le=100)]
Repetition = Annotated[float, Meta(gt=0, le=100)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Alternatives = Annotated[int, Meta(ge=0, le=MAX_ALTERNATIVES)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Stop = str | Annotated[list[str], Meta(max_length=MAX_STOPS)]
Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Body(msgspec.Struct, kw_only=True):
    """Base of a dialect's bodies. HINTS: fields that change no answer. REFUSED: fields that would, with what is
    supported
    in their place; they may be there with a value that asks for nothing."""

    HINTS: ClassVar[frozenset[str]] = frozenset()
    REFUSED: ClassVar[Mapping[str, str]] = {}


T = TypeVar("T", bound=Body)


def decoded(data: bytes) -> Any:
    """JSON. Raises Refused for what is none, or nested too deeply."""
    if too_deep(data):
        raise Refused(f"the body is nested more than {MAX_DEPTH} levels deep")
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        raise Refused(f"the body is nested more than {MAX_DEPTH} levels deep") from None
    except msgspec.ValidationError as error:
        raise misfit(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"the body is not JSON: {printable(str(error))}") from None


_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def too_deep(data: bytes) -> bool:
    """Whether JSON is nested beyond MAX_DEPTH, without parsing it. Of what is no JSON any answer may be given."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    rest = _TEXTS.sub(b"", data).translate(None, _BUT_BRACKETS)
    for _ in range(MAX_DEPTH):  # each time without the innermost pairs
        shorter = rest.replace(b"[]", b"").replace(b"{}", b"")
        if len(shorter) == len(rest):
            return len(rest) > MAX_DEPTH
        rest = shorter
    return bool(rest)


def read(value: Any, kind: type[T], *, strict: bool = False) -> tuple[T, list[str]]:
    """A body's fields, and the names of those that nothing is done with. Raises Refused, which names a field."""
    if not is_table(value):
        raise Refused("the body must be a JSON object")
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for name, supported in kind.REFUSED.items():
        if value.get(name) not in (None, False, [], {}, ""):
            raise Refused(f"`{name}` is not supported; supported: {supported}", field=name)
    ignored = [name for name, given in value.items() if name not in known and given is not None]
    ignored = [name for name in ignored if name not in kind.REFUSED]
    unknown = [name for name in ignored if name not in kind.HINTS]
    if strict and unknown:
        raise Refused(f"unknown field `{unknown[0]}`", field=printable(unknown[0]))
    return converted(value, kind), ignored


def converted(value: Any, kind: type[Any], where: str = "") -> Any:
    """A value of JSON in a declared type. where: its place in the body. Raises Refused, which names what does not
    fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise misfit(error, where) from None
    except RecursionError:
        raise Refused(f"the body is nested more than {MAX_DEPTH} levels deep") from None


def misfit(error: msgspec.ValidationError, where: str = "") -> Refused:
    """msgspec's message with the field's name in front."""
    text, _, place = str(error).partition(" - at `")
    place = f"{where}{place.removesuffix('`').removeprefix('$')}".removeprefix(".")
    missing = re.fullmatch(r"Object missing required field `(\w+)`", text)
    if missing is not None:
        place = f"{place}.{missing[1]}".removeprefix(".")
        return Refused(f"`{place}` is missing", field=place)
    text = text.replace(" | null", "").replace("Expected ", "must be ", 1)
    return Refused(printable(f"`{place}` {text}" if place else text), field=place or None)


def listed(names: list[str]) -> str:
    """Names of fields for a header: of those that a header can hold, the first."""
    fit = [name for name in dict.fromkeys(names) if re.fullmatch(r"[\w.\[\]-]{1,64}", name, re.ASCII)]
    return ", ".join(fit[:MAX_LISTED])


def texts(stop: Any) -> tuple[str, ...]:
    """`stop` as strings: one, or several, or none. An empty one stops nothing."""
    several = [stop] if isinstance(stop, str) else stop or []
    return tuple(text for text in several if text)
