"""The steps of a stranger's tokenizer.json, judged: normalizers, pre-tokenizers and decoders that we know.

Not here: the vocabulary (`tokenizer_json`) and running any step, which is the `tokenizers` library's. The library takes
whatever a file says, and panics, ends the process or multiplies a text by 10^9 where the file wants that.
Invariants: a step that is not in the tables below is refused by name; what passes is written out again from checked
values, with every field that the library reads; no text grows by more than `MAX_GROWTH`; every regular expression is
one that a published model was trained with, or one that `expressions` accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from reprlib import repr as brief
from typing import Any

from ..errors import CheckpointError, UnsupportedModel
from ..files.bounded import is_list, is_table
from .expressions import judge
from .pretokenizers import published

MAX_GROWTH = 64  # bytes out for a byte in, through all steps
MAX_STEPS = 32
MAX_LITERAL = 256  # characters of what a step looks for or puts in
_MOMENT = 10**7  # tries of an expression; some tenth of a second
SPACE = "▁"  # sentencepiece's letter for a space

Step = Mapping[str, Any]
_BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_SCHEMES = ("always", "first", "never")
_UNICODE = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt")  # they grow as the text has it
_PLAIN = ("Whitespace", "WhitespaceSplit", "UnicodeScripts")


@dataclass(frozen=True)
class Steps:
    """What a tokenizer.json does before and after its model, as the library takes it.

    easy: characters of a text that its expressions are done with in a moment, whatever the text; longer ones may take
    the square of their length. None where published models have all of its expressions.
    """

    normalizers: list[Step]
    pre_tokenizers: list[Step]
    decoders: list[Step]
    easy: int | None

    @property
    def byte_level(self) -> bool:
        return any(step["type"] == "ByteLevel" for step in (*self.pre_tokenizers, *self.decoders))

    def as_json(self) -> dict[str, Any]:
        """The three parts in the file's form; None for one without steps."""
        return {
            "normalizer": _sequence("normalizers", self.normalizers),
            "pre_tokenizer": _sequence("pretokenizers", self.pre_tokenizers),
            "decoder": _sequence("decoders", self.decoders),
        }


def read_steps(document: Mapping[str, Any], where: str) -> Steps:
    """The steps of a tokenizer.json. UnsupportedModel names one that is not known, CheckpointError a damaged one."""
    judge = _Judge(where)
    normalizers = judge.part(document, "normalizer", "normalizers", _normalizer)
    pre_tokenizers = judge.part(document, "pre_tokenizer", "pretokenizers", _pre_tokenizer)
    easy, judge.growth = judge.easy, 1  # decoders are handed over for the library's own sake: we decode ourselves
    decoders = judge.part(document, "decoder", "decoders", _decoder)
    return Steps(normalizers, pre_tokenizers, decoders or _inferred(normalizers, pre_tokenizers), easy)


class _Judge:
    """Checks of single fields, and what all steps come to. growth: bytes out for a byte in so far. power, ways: what
    expressions may try at one place of a text, as in `expressions.judge`, of all that no published model has."""

    def __init__(self, where: str) -> None:
        self._where, self._at = where, ""
        self.growth, self.power, self.ways = 1, 0, 0

    @property
    def easy(self) -> int | None:
        if not self.ways:
            return None
        tries = _MOMENT // self.ways
        return (isqrt(tries) if self.power else tries) // self.growth

    def part(
        self, document: Step, name: str, inner: str, check: Callable[[_Judge, Step], dict[str, Any] | None]
    ) -> list[Step]:
        found: list[Step] = []
        for step in self._flat(document.get(name), name, inner):
            kind = self.text(step, "type")
            self._at = f"{name} {kind}"
            known = check(self, step)
            if known is None:
                raise UnsupportedModel(f"{self._where}: a {name} of kind {kind!r} is not supported")
            found.append({"type": kind, **known})
        return found

    def _flat(self, value: Any, name: str, inner: str) -> list[Step]:
        """The steps of a part, sequences laid flat."""
        self._at = name
        flat: list[Step] = []
        waiting: list[Any] = [] if value is None else [value]
        while waiting:
            step = waiting.pop()
            if not is_table(step):
                raise self.damaged("an object", step)
            if step.get("type") != "Sequence":
                flat.append(step)
            elif is_list(within := step.get(inner)):
                waiting += reversed(within)
            else:
                raise self.damaged(f"a list of {inner}", within)
            if len(flat) + len(waiting) > MAX_STEPS:
                raise CheckpointError(f"{self._where}: {name} has more than {MAX_STEPS} steps")
        return flat

    def damaged(self, expected: str, found: Any) -> CheckpointError:
        return CheckpointError(f"{self._where}: {self._at}: {expected} is expected, not {brief(found)}")

    def text(self, step: Step, key: str) -> str:
        value = step.get(key)
        if not isinstance(value, str) or len(value) > MAX_LITERAL:
            raise self.damaged(f"{key} of up to {MAX_LITERAL} characters", value)
        return value

    def flag(self, step: Step, key: str, default: bool) -> bool:
        value = default if step.get(key) is None else step[key]
        if not isinstance(value, bool):
            raise self.damaged(f"{key} true or false", value)
        return value

    def number(self, step: Step, key: str) -> int:
        value = step.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_LITERAL:
            raise self.damaged(f"{key} between 0 and {MAX_LITERAL}", value)
        return value

    def choice(self, step: Step, key: str, known: tuple[str, ...], default: str | None = None) -> str:
        value = step.get(key, default)
        if value not in known:
            raise self.damaged(f"{key} one of {', '.join(known)}", value)
        return value

    def replacement(self, step: Step) -> str:
        if step.get("replacement", SPACE) != SPACE:
            raise UnsupportedModel(f"{self._where}: {self._at}: only {SPACE} can stand for a space")
        return SPACE

    def pattern(self, step: Step) -> dict[str, str]:
        """A literal or an expression."""
        value = step.get("pattern")
        if not is_table(value) or len(value) != 1:
            raise self.damaged("a pattern of kind String or Regex", value)
        if "String" in value:
            if not self.text(value, "String"):
                raise self.damaged("a pattern that is not empty", "")
            return {"String": value["String"]}
        expression = value.get("Regex")
        if not isinstance(expression, str):
            raise self.damaged("a pattern of kind String or Regex", value)
        if expression not in published():
            try:
                power, ways = judge(expression)
            except ValueError as error:
                raise UnsupportedModel(
                    f"{self._where}: {self._at}: the expression {expression[:200]!r} is not supported: {error}"
                ) from None
            self.power, self.ways = max(self.power, power), self.ways + ways
        return {"Regex": expression}

    def grows(self, factor: int) -> None:
        self.growth *= factor
        if self.growth > MAX_GROWTH:
            raise UnsupportedModel(
                f"{self._where}: {self._at}: its steps could make a text {self.growth} times as long"
            )


def _normalizer(judge: _Judge, step: Step) -> dict[str, Any] | None:
    kind = step["type"]
    if kind in _UNICODE:
        return {}
    if kind == "Strip":
        return {
            "strip_left": judge.flag(step, "strip_left", True),
            "strip_right": judge.flag(step, "strip_right", True),
        }
    if kind == "ByteLevel":
        judge.grows(2)
        return {}
    if kind == "Prepend":
        return {"prepend": judge.text(step, "prepend")}
    return _replace(judge, step) if kind == "Replace" else None


def _replace(judge: _Judge, step: Step) -> dict[str, Any]:
    pattern, content = judge.pattern(step), judge.text(step, "content")
    size = len(content.encode("utf-8", "replace"))
    if "String" in pattern:
        judge.grows(max(1, -(-size // len(pattern["String"].encode("utf-8", "replace")))))
    else:
        judge.grows(1 + size)  # an expression may match nothing, before each byte
    return {"pattern": pattern, "content": content}


def _pre_tokenizer(judge: _Judge, step: Step) -> dict[str, Any] | None:
    kind = step["type"]
    if kind == "ByteLevel":
        judge.grows(2)
        return _byte_level(judge, step)
    if kind == "Split":
        behavior, invert = judge.choice(step, "behavior", _BEHAVIORS), judge.flag(step, "invert", False)
        return {"pattern": judge.pattern(step), "behavior": behavior, "invert": invert}
    if kind == "Digits":
        return {"individual_digits": judge.flag(step, "individual_digits", False)}
    if kind == "Punctuation":
        return {"behavior": judge.choice(step, "behavior", _BEHAVIORS, "Isolated")}
    if kind == "Metaspace":
        judge.grows(len(SPACE.encode()))
        return {**_metaspace(judge, step), "split": judge.flag(step, "split", True)}
    return {} if kind in _PLAIN else None


def _byte_level(judge: _Judge, step: Step) -> dict[str, Any]:
    return {
        "add_prefix_space": judge.flag(step, "add_prefix_space", True),
        "trim_offsets": True,
        "use_regex": judge.flag(step, "use_regex", True),
    }


def _metaspace(judge: _Judge, step: Step) -> dict[str, Any]:
    scheme = judge.choice(step, "prepend_scheme", _SCHEMES, "always")
    if step.get("add_prefix_space") is False:  # as older files say it
        scheme = "never"
    return {"replacement": judge.replacement(step), "prepend_scheme": scheme}


def _decoder(judge: _Judge, step: Step) -> dict[str, Any] | None:
    kind = step["type"]
    if kind == "ByteLevel":
        return {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    if kind == "Metaspace":
        return {**_metaspace(judge, step), "split": judge.flag(step, "split", True)}
    if kind == "Replace":
        return _replace(judge, step)
    if kind == "Strip":
        content, start, stop = judge.text(step, "content"), judge.number(step, "start"), judge.number(step, "stop")
        if len(content) != 1:
            raise judge.damaged("content of one character", content)
        return {"content": content, "start": start, "stop": stop}
    return {} if kind in ("ByteFallback", "Fuse") else None


def _inferred(normalizers: list[Step], pre_tokenizers: list[Step]) -> list[Step]:
    """The decoder of a file that has none: what takes back its own first steps; none where they do not say."""
    steps = [*normalizers, *pre_tokenizers]
    if any(step["type"] == "ByteLevel" for step in steps):
        return [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]
    writes = any(
        step["type"] == "Metaspace" or (step["type"] == "Replace" and step["content"] == SPACE) for step in steps
    )
    if not writes:
        return []
    prefix = any(
        step.get("prepend") == SPACE or step.get("prepend_scheme", "never") in ("always", "first") for step in steps
    )
    back: list[Step] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    back += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    return back + [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix


def _sequence(inner: str, steps: list[Step]) -> dict[str, Any] | None:
    return {"type": "Sequence", inner: steps} if steps else None
