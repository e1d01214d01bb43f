"""Regular expressions that a stranger's tokenizer brings: what they can cost, judged before any of them is run.

Not here: matching, which is Oniguruma's. An expression is read, never tried: its constructs are those that published
tokenizers are written in, and its backtracking is counted. Two bounds are composed from the parts: the work of a part
when nothing that follows it can fail, so that its first way is taken, and the work when every way is tried.
Invariant: at one place of a text an expression that passes tries at most a fixed number of ways, times the text's
length. `(x+x+)+y` has exponentially many and is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

MAX_LENGTH = 4096  # characters; the longest published expressions have some 600
MAX_SIZE = 10_000  # places, with counted repetitions written out
MAX_WAYS = 1_000  # at one place of a text, apart from those that grow with the text
MAX_NESTING = 30
_MANY = 16  # so many repetitions that may be fewer count as without end

_ESCAPES = frozenset("dDwWsShHnrtfvae")
_ASSERTIONS = frozenset("bBAzZ")
_COUNT = re.compile(r"\{(?:(\d{1,6})|(\d{0,6}),(\d{0,6}))\}")
_CODE = re.compile(r"x\{[0-9A-Fa-f]{1,8}\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|[pP]\{\^?[A-Za-z0-9_ =-]{1,40}\}|0")
_GROUP = re.compile(r"\?(:|>|=|!|<=|<!|[im]*(?:-[im]+)?[:)])")

Work = tuple[int, int]  # (power of the text's length, factor)
_ONE: Work = (0, 1)
_HOPELESS: Work = (99, MAX_WAYS)


def judge(expression: str) -> Work:
    """What it may try at one place of a text: (power of the text's length, 0 or 1; factor of at most MAX_WAYS).

    Raises ValueError, which says why, for an expression that is not accepted.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"it has {len(expression)} characters, {MAX_LENGTH} are the most")
    reader = _Reader(expression)
    cost = reader.alternatives()
    if reader.at < len(expression):
        raise ValueError("unmatched )")
    power, ways = cost.first
    if power > 1 or ways > MAX_WAYS:
        raise ValueError("its repetitions can take a text apart in too many ways")
    return power, ways


@dataclass(frozen=True)
class _Cost:
    """every: work of trying all ways of matching. first: of the first way, where nothing after it can fail.
    fails: may not match. empty: may match nothing. endless: may take any length. size: places in it."""

    every: Work = _ONE
    first: Work = _ONE
    fails: bool = True
    empty: bool = False
    endless: bool = False
    size: int = 1


_CHARACTER = _Cost()
_ASSERTION = _Cost(empty=True)
_NOTHING = _Cost(fails=False, empty=True, size=0)


class _Reader:
    """A recursive descent through Oniguruma's syntax. at: how far it came."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self._depth = text, 0, 0

    def alternatives(self) -> _Cost:
        """Up to a closing parenthesis or the end."""
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise ValueError("its groups are nested too deep")
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        self._depth -= 1
        return branches[0] if len(branches) == 1 else _any_of(branches)

    def _sequence(self) -> _Cost:
        items: list[_Cost] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            items.append(self._repeated(self._item()))
        return _one_after_another(items)

    def _take(self, literal: str) -> bool:
        found = self.text.startswith(literal, self.at)
        self.at += len(literal) * found
        return found

    def _item(self) -> _Cost:
        character = self.text[self.at]
        self.at += 1
        match character:
            case "(":
                return self._group()
            case "[":
                self._set()
                return _CHARACTER
            case "\\":
                return self._escape()
            case "^" | "$":
                return _ASSERTION
            case "*" | "+" | "?":
                raise ValueError(f"{character} repeats nothing")
            case _:
                return _CHARACTER

    def _group(self) -> _Cost:
        kind = ""
        if self.text.startswith("?", self.at):
            found = _GROUP.match(self.text, self.at)
            if found is None:
                raise ValueError(f"the group ({self.text[self.at : self.at + 4]} is not supported")
            kind, self.at = found[1], found.end()
        if kind.endswith(")"):  # (?i): from here to the end of the group
            return _NOTHING
        inner = self.alternatives()
        if not self._take(")"):
            raise ValueError("unmatched (")
        if kind in ("", ":") or kind[0] in "im-":
            return inner
        # one way is kept; yet whatever it went over is gone over again from the next place
        work = max(inner.first[0], int(inner.endless)), inner.first[1]
        if kind == ">":
            return replace(inner, every=work)
        return _Cost(work, work, empty=True, size=inner.size)

    def _set(self) -> None:
        """Past a [...], with sets in it."""
        depth, begin = 1, self.at
        while depth:
            if self.at >= len(self.text):
                raise ValueError("unmatched [")
            character = self.text[self.at]
            if character == "]" and self.text[begin : self.at] in ("", "^"):
                raise ValueError("an empty [], or one that begins with ]")
            depth += (character == "[") - (character == "]")
            self.at += 2 if character == "\\" else 1
            begin = self.at if character == "[" else begin

    def _escape(self) -> _Cost:
        if found := _CODE.match(self.text, self.at):
            self.at = found.end()
            return _CHARACTER
        character = self.text[self.at : self.at + 1]
        self.at += 1
        if character in _ASSERTIONS and character:
            return _ASSERTION
        if character in _ESCAPES or (character and not character.isalnum()):
            return _CHARACTER
        raise ValueError(f"\\{character} is not supported")

    def _repeated(self, item: _Cost) -> _Cost:
        """The item with the repetitions that follow it."""
        while self.at < len(self.text):
            counted = _COUNT.match(self.text, self.at)
            if counted:
                exact, least, most = counted.groups()
                if exact is None and not least and not most:
                    return item  # {,} is text
                low = int(exact or least or 0)
                high = low if exact else int(most) if most else None
                self.at = counted.end()
            elif (sign := self.text[self.at]) in "*+?":
                low, high = int(sign == "+"), 1 if sign == "?" else None
                self.at += 1
            else:
                return item
            item = _repeat(item, low, high)
            # lazy: as many ways; possessive: fewer, yet after a counted repetition + repeats that once more
            if not self._take("?") and not counted:
                self._take("+")
        return item


def _times(a: Work, b: Work) -> Work:
    return min(a[0] + b[0], _HOPELESS[0]), min(a[1] * b[1], MAX_WAYS + 1)


def _power(work: Work, count: int) -> Work:
    return min(work[0] * count, _HOPELESS[0]), min(work[1] ** min(count, 20), MAX_WAYS + 1)


def _any_of(branches: list[_Cost]) -> _Cost:
    def together(works: list[Work]) -> Work:
        return max(power for power, _ in works), sum(ways for _, ways in works)

    return _Cost(
        together([branch.every for branch in branches]),
        together([branch.first for branch in branches]),
        fails=all(branch.fails for branch in branches),
        empty=any(branch.empty for branch in branches),
        endless=any(branch.endless for branch in branches),
        size=_bounded(sum(branch.size for branch in branches)),
    )


def _one_after_another(items: list[_Cost]) -> _Cost:
    every, first, later_fails = _ONE, _ONE, False
    for item in reversed(items):
        every = _times(every, item.every)
        first = _times(first, item.every if later_fails else item.first)
        later_fails |= item.fails
    return _Cost(
        every,
        first,
        fails=later_fails,
        empty=all(item.empty for item in items),
        endless=any(item.endless for item in items),
        size=_bounded(sum(item.size for item in items)),
    )


def _repeat(item: _Cost, low: int, high: int | None) -> _Cost:
    if high is not None and high < low:
        raise ValueError(f"the repetition {{{low},{high}}}")
    size = _bounded(item.size * max(low, high or 0, 1))
    endless = high is None or (high > _MANY and high != low)
    if item.empty and (endless or (high or 0) > 1):
        raise ValueError("it repeats what may be empty")
    # all but the last of those that must be there are followed by one that may fail
    first = _times(_power(item.every, low - 1), item.first) if low > 1 else item.first
    if endless:
        every = (1, 1) if item.every == _ONE else _HOPELESS
    else:
        power, ways = _power(item.every, high or 0)
        every = power, min(ways + (high or 0) - low, MAX_WAYS + 1)
    return _Cost(
        every,
        first,
        fails=item.fails and low > 0,
        empty=item.empty or low == 0,
        endless=endless or item.endless,
        size=size,
    )


def _bounded(size: int) -> int:
    if size > MAX_SIZE:
        raise ValueError(f"written out it has more than {MAX_SIZE} places")
    return size
