"""Replies that are text, in which markers begin and end thoughts and calls. Knows no tokens, only which markers are.

Invariants: as in `reply`. Line ends beside a marker belong to it, and are given to nobody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..stop_strings import overlap
from .called import Offered, ToolCall
from .calls import NOTATIONS, read
from .formats import ENVELOPES, NAMED, WHOLE, Block, ReplyFormat
from .parts import Machine
from .values import Malformed

_WHITE = 64  # characters of white space that say nothing, at most, where nothing has been said
# up to what decides whether it is one: the first key (group 1), or something else
_FIRST_KEY = re.compile(r'\s*\{(?:\s{64}|\s*(?:"([^"\\]{0,32})"|"(?:[^"\\]{33}|[^"\\]*\\)|[^"\s]))')
_KEYS = frozenset({"name", "type", "function", "parameters", "arguments", "id"})
_LINE_ENDS = 4  # in front of a marker, at most, that belong to it


class _Writing:
    """A call while it is written: its text, and where in it a marker stood that was taken for text."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.taken: list[int] = []
        self._pieces = [(block.begin, False)] if block.bare and block.begin not in (WHOLE, NAMED) else []
        self._seen = 0
        self._quotation: int | None = None

    def add(self, text: str, control: bool = False) -> None:
        self._pieces.append((text, control))

    def take(self, marker: str, control: bool) -> None:
        self.taken.append(len(self._pieces))
        self.add(marker, control)

    def quoted(self) -> bool:
        """Whether the text so far ends inside a quotation, where a marker is text."""
        new = "".join(text for text, _ in self._pieces[self._seen :])
        self._seen = len(self._pieces)
        self._quotation = NOTATIONS[self.block.notation].inside(new, self._quotation)
        return self._quotation is not None

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self._pieces)

    def calls(self, tools: Offered, end: str) -> list[ToolCall]:
        """end: the marker behind it, "" where there is none. What is no call is one call with an error."""
        try:
            return self.read(tools, end)
        except Malformed as error:
            return [ToolCall("", "", "", self.shown(end), str(error))]

    def read(self, tools: Offered, end: str) -> list[ToolCall]:
        if not end and not NOTATIONS[self.block.notation].ends_itself:
            raise Malformed("it was cut")
        return read(self.block.notation, self.text, tools, self.shown(end))

    def shown(self, end: str) -> str:
        return f"{'' if self.block.bare else self.block.begin}{self.text}{end}"

    def cut(self) -> tuple[str, list[tuple[str, bool]]]:
        """End at the first marker that was taken for text: that marker, and the pieces behind it."""
        place = self.taken[0]
        marker, rest = self._pieces[place][0], self._pieces[place + 1 :]
        del self._pieces[place:]
        return marker, rest


class Blocks(Machine):
    """Text in which markers begin and end thoughts and calls. Line ends beside a marker belong to it.

    A call inside a thought is a draft, unless the reply ends with it: then the model has forgotten to end the thought.
    """

    def __init__(self, form: ReplyFormat, tools: Sequence[Any] | None, calls: int) -> None:
        super().__init__(tools, calls)
        blocks = {block.begin: block for block in form.blocks if tools or not block.bare}
        self._whole = blocks.pop(WHOLE, None)  # a reply that is a call from its first character on
        self._named = blocks.get(NAMED)  # a message that is a call if it begins with the name of a tool
        self._blocks = blocks
        self._noise, self._controls = form.noise, frozenset(form.controls.values())
        thoughts = {begin for begin, block in blocks.items() if block.kind == "thought"}
        # as text they count until something is said; then they are talked of
        self._early = (thoughts | (self._noise & ENVELOPES.keys())) - self._controls
        self._closing = (self._noise & set(ENVELOPES.values())) - self._controls  # likewise, where nothing was opened
        self._opened: set[str] = set()  # what ends markers around speech that have come
        self._thought: Block | None = None  # None: speech
        self._label = ""  # what may stand in front of a thought
        self._writing: _Writing | None = None
        self._drafts: list[ToolCall] = []
        self._held = ""  # what may be the beginning of a marker, and line ends in front of one
        self._fresh = False  # nothing has been said since the last marker
        self._begun = False  # something but white space has come
        self._spoke = False  # something has been said
        self._prompt = True  # what comes is the end of the prompt
        self._sure = False  # what may be a call, and has no marker that says so, is one
        self._lenient = False  # a quotation did not end: from now on every marker counts
        self._look()

    def begin(self) -> None:
        """The reply itself begins here: what went before was the prompt's."""
        self._forget()
        self._writing, self._drafts, self._held = None, [], ""
        self._begun = self._spoke = self._prompt = False
        self._look()
        self._may_name()

    @property
    def thinking(self) -> bool:
        return self._thought is not None

    def takes(self, literal: str) -> bool:
        return literal in self._found or (self._writing is not None and not self._doubted(self._writing))

    def control(self, literal: str) -> None:
        counts = literal in self._found
        self._flush(counts)
        if counts:
            self._cross(literal, True)
        elif self._writing is not None:
            self._writing.add(literal, True)

    def text(self, more: str) -> None:
        text, place, self._held = self._held + more, 0, ""
        if not self._begun and text.strip():
            self._begun = True
            if self._whole is not None and self._thought is None and not self._spoke and _begins_whole(text):
                self._write(self._whole)
        while (found := self._markers.search(text, place)) is not None:
            front = text[place : found.start()]
            if found[0] in self._early and not (self._prompt or _is_white(front)):  # now something is said
                front = front.rstrip("\n")
                self._put(front, False)
                place += len(front)
                continue
            self._put(front, True)
            self._flush(True)
            place = found.end()
            self._cross(found[0], False)
        sure = len(text) - self._doubtful(text[place:])
        self._held = text[sure:]
        self._put(text[place:sure], False)

    def end(self) -> None:
        self._flush(False)
        writing = self._writing
        if writing is not None:
            self._writing = None
            self._cut(writing)
        self._call(self._drafts)
        self._drafts = []

    # ---------------------------------------------------------------- markers

    def _look(self) -> None:
        """Which markers count from here on."""
        calls = {begin for begin, block in self._blocks.items() if block.kind == "tool_call"}
        if self._writing is not None:
            block = self._writing.block
            self._found = set(block.ends) if block.ends or block is self._whole else {block.begin}
            self._found |= set(self._thought.ends) if self._thought is not None else set()
        elif self._thought is not None:
            self._found = calls | set(self._thought.ends)
        else:
            opened = {begin for begin, end in ENVELOPES.items() if end in self._opened}
            talked_of = self._early if self._spoke else self._early & opened
            self._found = (self._blocks.keys() | self._noise) - self._closing - talked_of | self._opened
        self._literals = sorted(self._found - self._controls)
        self._markers = re.compile("|".join(map(re.escape, self._literals)) or r"(?!)")

    def _cross(self, literal: str, control: bool) -> None:
        writing, block = self._writing, self._blocks.get(literal)
        if writing is not None:
            if not self._lenient and writing.quoted():
                writing.take(literal, control)
                return
            self._settle(writing, literal)
        elif block is not None and block.kind == "tool_call":
            self._write(block)
        elif block is not None and self._thought is None:
            self._thought, self._label = block, block.label
        elif self._thought is not None:
            self._end_thought()
        elif literal in ENVELOPES:
            self._opened.add(ENVELOPES[literal])
        else:
            self._opened.discard(literal)
        self._fresh = True
        self._look()

    def _put(self, text: str, marker: bool) -> None:
        """Text that is certain; marker: one follows at once."""
        if self._writing is not None:
            if text:
                self._writing.add(text)
                self._doubt(self._writing)
            return
        if self._label and (text or marker):
            text = "" if f"{text}\n" == self._label else text.removeprefix(self._label)
            self._label = ""
        if marker and self._thought is None and not self._spoke and _is_white(text):
            return
        text = text.lstrip("\n") if self._fresh else text
        text = text[: len(text) - _line_ends(text)] if marker else text
        if text:
            self._fresh = False
            self._discard_drafts()
            self._say("speech" if self._thought is None else "thought", text)
            if self._thought is None and not self._spoke and not self._prompt:
                self._spoke = True
                self._look()

    def _flush(self, marker: bool) -> None:
        held, self._held = self._held, ""
        self._put(held, marker)

    def _doubtful(self, text: str) -> int:
        """How many characters at the end of a text must wait for what follows."""
        if not self._blocks:
            return 0
        keep = max((overlap(text, literal) for literal in self._literals), default=0)
        if self._writing is not None:
            return keep
        if self._label and self._label.startswith(text):
            return len(text)
        front = text[: len(text) - keep]
        if self._thought is None and not self._spoke and _is_white(front):
            return len(text)
        return keep + _line_ends(front)

    # ---------------------------------------------------------------- calls

    def _write(self, block: Block) -> None:
        self._writing, self._sure = _Writing(block), False
        self._look()

    def _may_name(self) -> None:
        """A message begins here, which may be a call."""
        if self._named is not None and self._thought is None:
            self._write(self._named)

    def _settle(self, writing: _Writing, marker: str) -> None:
        """What a marker makes of the call in front of it."""
        block, self._writing = writing.block, None
        doubted = self._doubted(writing)
        calls = [] if doubted else writing.calls(self._tools, marker if marker in block.ends else "")
        if doubted:
            self._retract(writing)
            self._flush(True)
        if self._thought is None:
            self._call(calls)
        else:
            self._drafts += calls
            if marker in self._thought.ends:
                self._end_thought()
        if marker == block.begin:  # the next call begins where this one ends
            self._write(block)

    def _end_thought(self) -> None:
        self._discard_drafts()
        self._part_from("thought")
        self._thought = None
        self._may_name()

    def _discard_drafts(self) -> None:
        drafts, self._drafts = self._drafts, []
        for draft in drafts:
            self._say("thought", f"\n{draft.written}\n" if draft.written else "")

    def _doubted(self, writing: _Writing) -> bool:
        """Whether this may yet turn out to be none: it has no marker that says so."""
        return not self._sure and writing.block in (self._whole, self._named)

    def _doubt(self, writing: _Writing) -> None:
        """A reply that begins with a brace is a call only as long as its first key is one of a call's; a message, only
        if its first line is the name of a tool, and a brace stands in the next."""
        if not self._doubted(writing):
            return
        sure = _has_key(writing.text) if writing.block is self._whole else _has_name(writing.text, self._tools)
        self._sure = sure is True
        if sure is False:
            self._retract(writing)

    def _retract(self, writing: _Writing) -> None:
        """It is no call, but text like what follows it."""
        held, self._held, self._writing = self._held, "", None
        if writing.block is self._named:  # a message of its own
            self._part_from("speech" if self._thought is None else "thought")
        self._look()
        self.text(writing.text)
        self.text(held)

    def _cut(self, writing: _Writing) -> None:
        """The reply has ended inside a call."""
        try:
            self._drafts += writing.read(self._tools, "")
        except Malformed:
            if writing.block is self._named and not self._sure:
                self._retract(writing)
                self._flush(False)
            elif writing.block is self._whole or self._thought is not None:
                self._say("speech" if self._thought is None else "thought", writing.shown(""))
            elif not writing.taken:
                self._call(writing.calls(self._tools, ""))
            else:
                self._again(writing)

    def _again(self, writing: _Writing) -> None:
        """Read a call whose quotation never ended up to the first marker inside it, and what follows by itself."""
        self._lenient = True
        marker, rest = writing.cut()
        self._settle(writing, marker)
        self._fresh = True
        self._look()
        for text, control in rest:
            if control and self.takes(text):
                self.control(text)
            else:
                self.text(text)
        self._flush(False)
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._cut(writing)


def _is_white(text: str) -> bool:
    """Whether this may stand in front of a reply's first marker, and says nothing."""
    return len(text) <= _WHITE and not text.strip()


def _begins_whole(text: str) -> bool:
    white = len(text) - len(text.lstrip())
    return white <= _WHITE and text.startswith(WHOLE, white)


def _has_key(text: str) -> bool | None:
    """Whether a text is an object whose first key is one of a call's; None while it may be."""
    found = _FIRST_KEY.match(text)
    return None if found is None else found[1] in _KEYS


def _has_name(text: str, tools: Offered) -> bool | None:
    """Whether a text is a line with the name of a tool, and a brace behind it; None while it may be."""
    body = text.lstrip()
    if len(text) - len(body) > _WHITE:
        return False
    name, line, rest = body.partition("\n")
    if not line:
        return None if any(tool.startswith(name) for tool in tools) else False
    found = rest.lstrip()
    if name not in tools or len(rest) - len(found) > _WHITE:
        return False
    return found.startswith("{") if found else None


def _line_ends(text: str) -> int:
    """How many there are at the end of a text, _LINE_ENDS at most."""
    end = text[-_LINE_ENDS:]
    return len(end) - len(end.rstrip("\n"))
