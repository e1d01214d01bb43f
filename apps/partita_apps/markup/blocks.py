"""A text that grows, as the HTML of what is closed and the open rest: what is closed never changes but for late links.

A piece is closed where no text that may follow can change it: at a line that begins a new block behind a blank one,
at code, and behind code's end. Where that needs more than a look at the line, nothing is closed yet. Decisions are
made a complete line at a time, by what came up to it: the same text in other portions gives the same pieces.
Invariants: the HTML of all pieces is that of `Renderer.html` for the whole text; each piece is read once (again only
for links that are defined behind it), and none is longer than LONGEST: a longer block goes on as a new one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from .markdown import Pieces

LONG = 8_000  # characters of a piece; from here on a list ends before its next item
LONGEST = 24_000
LOOKS = 16  # times that a piece is read to see whether it is closed; after them it goes on to its limit
_FENCE = re.compile(r" {0,3}(?:(`{3,})[^`\n]*|(~{3,})[^\n]*)$")
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])(?:[ \t]|$)")
_FORMULA = re.compile(r"\$\$|\\\[|\\begin\{")
_LABEL = re.compile(r"\[([^\[\]\\]{1,200})\]")


class Renderer(Pieces):
    """One for many texts, from several threads: it keeps nothing of them."""

    def html(self, text: str) -> str:
        """A whole text."""
        blocks = Blocks(self)
        first, last = blocks.push(text), blocks.finish()
        return last.html if last.again else first.html + last.html


@dataclass(frozen=True)
class Change:
    """html: of the pieces that were closed, behind the earlier ones; with `again`, of all of them, in their place.
    rest: the open text as it was written."""

    html: str
    rest: str
    again: bool = False


@dataclass
class _Piece:
    """The open one. Its lines, and what is known of them."""

    lines: list[str] = field(default_factory=list)
    size: int = 0
    fence: str = ""  # it is a block of code that this line opens
    blank: bool = False  # its last line is
    list: bool = False  # a line of it may be an item
    formula: bool = False  # since the last blank line one may have begun
    murky: bool = False  # code may be open within a list or a quote
    looks: int = 0
    carried: int = 0  # lines that are repeated from the piece before


class Blocks:
    """One text. push what comes, then finish."""

    def __init__(self, renderer: Pieces) -> None:
        self._renderer = renderer
        self._piece = _Piece()
        self._held = ""  # of the last line
        self._definitions: dict[str, Any] = {}
        self._closed: list[tuple[str, str, int]] = []  # source, HTML, number of definitions it knew
        self._new: list[str] = []

    @property
    def rest(self) -> str:
        return "".join(self._piece.lines) + self._held

    def push(self, text: str) -> Change:
        *lines, last = text.split("\n")
        for line in lines:
            self._held += f"{line}\n"
            self._make_room()
            line, self._held = self._held, ""
            self._line(line)
        self._held += last
        self._make_room()
        return Change(self._taken(), self.rest)

    def finish(self) -> Change:
        """Nothing comes any more. With `again` where pieces were closed before a link in them was defined."""
        held, self._held = self._held, ""
        if held:
            self._line(held)
        self._close()
        late = self._late()
        if not late:
            return Change(self._taken(), "")
        for i in late:
            source, _, _ = self._closed[i]
            self._closed[i] = (source, self._renderer.piece(source, dict(self._definitions)), len(self._definitions))
        return Change("".join(html for _, html, _ in self._closed), "", again=True)

    def _late(self) -> list[int]:
        found = list(self._definitions)
        position = {label: i for i, label in enumerate(found)}
        return [
            i
            for i, (source, _, known) in enumerate(self._closed)
            if known < len(found)
            and any(position.get(self._renderer.label(name), -1) >= known for name in _LABEL.findall(source))
        ]

    def _taken(self) -> str:
        html, self._new = "".join(self._new), []
        return html

    def _line(self, line: str) -> None:
        """A complete line."""
        if self._begins(line):
            self._close()
        piece, text = self._piece, _text(line)
        blank = not text.strip(" \t")
        if blank and not piece.lines:
            return
        if not piece.lines and _FENCE.match(text):
            piece.fence = text
        elif piece.fence:
            if _closes(piece.fence, text):
                self._append(line)
                self._close()
                return
        else:
            piece.list = piece.list or _ITEM.match(text) is not None
            piece.murky = piece.murky or "```" in text or "~~~" in text
            piece.formula = not blank and (piece.formula or _FORMULA.search(text) is not None)
            piece.blank = blank
        self._append(line)

    def _append(self, line: str) -> None:
        self._piece.lines.append(line)
        self._piece.size += len(line)

    def _begins(self, line: str) -> bool:
        """Whether a piece ends before this line."""
        piece, text = self._piece, _text(line)
        if not piece.lines or piece.fence or not text.strip(" \t"):
            return False
        if piece.size > LONG and piece.list and not piece.murky and text[0] not in " \t" and _ITEM.match(text):
            return True
        if text[0] in " \t" or (piece.list and _ITEM.match(text)):
            return False
        if not piece.blank:
            return _FENCE.match(text) is not None and not piece.murky and not piece.formula
        if not piece.murky:
            return True
        piece.looks += 1
        return piece.looks <= LOOKS and self._renderer.begins_at("".join([*piece.lines, line]), len(piece.lines))

    def _make_room(self) -> None:
        """End pieces at their limit: before the last line, or within one that is too long for a piece."""
        while (piece := self._piece).size + len(self._held) > LONGEST:
            if len(piece.lines) == piece.carried:
                room = LONGEST - piece.size
                at = self._held.rfind(" ", 0, room) + 1 or room
                self._append(self._held[:at])
                self._held = self._held[at:]
            fence = piece.fence
            self._close()
            if fence:  # code goes on under its opening line
                self._piece = _Piece(fence=fence, carried=1)
                self._append(f"{fence}\n")

    def _close(self) -> None:
        piece, self._piece = self._piece, _Piece()
        own = piece.lines[piece.carried :]
        if not own or (piece.carried and len(own) == 1 and _closes(piece.fence, _text(own[0]))):
            return
        source = "".join(piece.lines)
        html = self._renderer.piece(source, self._definitions)
        self._closed.append((source, html, len(self._definitions)))
        self._new.append(html)


def _text(line: str) -> str:
    """Without its end, as the renderer reads it: a carriage return alone is none."""
    return line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")


def _closes(fence: str, text: str) -> bool:
    mark = fence.lstrip(" ")
    width = len(mark) - len(mark.lstrip(mark[0]))
    return re.fullmatch(rf" {{0,3}}{re.escape(mark[0])}{{{width},}}[ \t]*", text) is not None
