"""A reply's Markdown on a terminal while it streams: what is certain is written, and what is written stays.

A word is certain once it has ended and no marker around it is open; a line of code, a rule or a row of a table with its
line's end. Where no styles may be sent, markers stay as they are and only the layout is made. Not here: inline markers
(`inline`), columns (`layout`). Invariants: the same text in other pieces gives the same screen; nothing of the model's
reaches the terminal but through `printable.visible`; what does not turn out to be Markdown is shown as it was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from partita.printable import visible

from .code import Code
from .inline import BOLD, DIM, inline, is_open
from .layout import LONGEST, UNIT, Spans, Writer
from .table import Table, is_separator
from .trace import cells

_HEADING = "36"  # besides bold, of the first two levels
_LONGEST_LINE = 2_000  # characters of a row or a fence; a longer line is text
_RULE_CELLS = 40
_FENCE = re.compile(r"(?P<ticks>`{3,})\s*(?P<language>[^`]*)|(?P<tildes>~{3,})\s*(?P<info>.*)")
_RULE = re.compile(r"([-*_])\1{2,}")
_ORDERED = re.compile(r"\d{1,9}[.)]")
_QUOTE = re.compile(r" {0,3}> ?")


@dataclass
class _Line:
    """The line that is being read. whole: judged at its end, None where that is not needed."""

    indent: str = ""
    prefix: Spans = field(default_factory=list)
    hang: Spans = field(default_factory=list)
    quotes: int = 0
    style: str = ""
    text: str | None = None  # words whose markers are open; None: nothing of the line is written yet
    whole: str | None = None
    glued: bool = False  # the next word continues the last


@dataclass(frozen=True)
class _Fence:
    marker: str
    quotes: int
    prefix: Spans
    code: Code


class Markdown:
    """Write what `push` returns for all that comes, and then what `finish` returns. styled: with escape sequences."""

    def __init__(self, width: int | None = None, *, styled: bool = True):
        self._styled = styled
        self._writer = Writer(width, styled=styled)
        self._held = ""
        self._line = _Line()
        self._fence: _Fence | None = None
        self._header: _Line | None = None  # may be that of a table
        self._table: Table | None = None
        self._front: Spans = []  # of its rows
        self._lists = False  # an indented line belongs to an item
        self._blank = True  # the line before is blank, or code by its indentation
        self._ended = True  # what came so far ends in a line feed
        self._over = False  # nothing comes any more

    def push(self, text: str) -> str:
        """What can be shown now."""
        self._ended = text.endswith("\n") if text else self._ended
        *units, self._held = _units(self._held + text)
        return "".join(self._unit(visible(unit)) for unit in units)

    def finish(self) -> str:
        """The rest. The line stays open."""
        held, self._held = self._held, ""
        shown = self._unit(visible(held))
        self._over = True
        if self._fence is not None and self._line.whole:
            shown += self._code(self._fence, False)
        if self._fence is not None:
            return shown
        line = self._line
        if line.whole is not None:
            shown += self._judge(False)
        elif line.text is None and line.prefix:
            shown += self._close_table() + self._begin()
        if self._line.text is not None:
            shown += self._flush()
        waits = self._close_table()
        return shown + (waits if self._ended else waits.removesuffix("\n"))

    def _unit(self, unit: str) -> str:
        line = self._line
        if not unit:
            return ""
        if self._fence is not None:
            line.whole = (line.whole or "") + unit
            return self._code(self._fence, unit.endswith("\n"))
        if line.whole is not None:
            line.whole += unit
            return self._judge(unit.endswith("\n"))
        return self._first(unit) if line.text is None else self._words(unit)

    # The front of a line

    def _first(self, unit: str) -> str:
        """A unit in front of which nothing but markers stands."""
        line, word = self._line, unit.rstrip(" \t\n")
        if not word:
            if unit == "\n":
                return self._empty()
            line.indent += unit.expandtabs(4)
            return ""
        spaced = word != unit
        if word.startswith(">"):
            self._mark("│ " if self._styled else "> ", DIM, "│ " if self._styled else "> ")
            line.quotes += 1
            rest = unit[1:].removeprefix(" ")
            return self._first(rest) if rest else ""
        if spaced and (word in ("-", "*", "+") or _ORDERED.fullmatch(word)):
            shown = "•" if self._styled and word in ("-", "*", "+") else word
            self._mark(f"{shown} ", "", " " * (len(shown) + 1))
            self._lists = True
            return self._empty() if unit.endswith("\n") else ""
        if word.startswith(("```", "~~~", "|")) or _RULE.fullmatch(word) or self._is_indented_code():
            line.whole = unit
            return self._judge(unit.endswith("\n"))
        return self._close_table() + self._text(unit, heading=spaced and word.strip("#") == "" and len(word) <= 6)

    def _mark(self, shown: str, style: str, hang: str) -> None:
        line = self._line
        line.prefix += [(line.indent, ""), (shown, style)]
        line.hang += [(line.indent, ""), (hang, style)]
        line.indent = ""

    def _begin(self) -> str:
        """Write what stands in front of the line's text."""
        line = self._line
        if line.indent:
            self._mark("", "", "")
        elif not line.prefix:
            self._lists = False
        line.text, self._blank = "", False
        return self._writer.begin(line.prefix, line.hang)

    def _empty(self) -> str:
        """The end of a line without text."""
        shown = self._close_table() + (self._begin() if self._line.prefix else "")
        self._blank = True
        return shown + self._newline()

    def _newline(self) -> str:
        self._line = _Line()
        return self._writer.newline()

    def _is_indented_code(self) -> bool:
        line = self._line
        return self._blank and not self._lists and not line.prefix and len(line.indent) >= 4

    # Lines of words

    def _text(self, unit: str, heading: bool = False) -> str:
        line = self._line
        if heading and self._styled:
            line.style = f"{BOLD};{_HEADING}" if len(unit.strip()) <= 2 else BOLD
            return self._begin() + (self._newline() if unit.endswith("\n") else "")
        return self._begin() + self._words(unit)

    def _words(self, unit: str) -> str:
        line = self._line
        assert line.text is not None
        ends = unit.endswith("\n")
        line.text += unit.removesuffix("\n")
        if not ends and self._styled and len(line.text) < LONGEST and is_open(line.text):
            return ""
        shown = self._flush()
        line.glued = len(unit) >= LONGEST and not unit[-1].isspace()
        return shown + (self._newline() if ends else "")

    def _flush(self) -> str:
        line = self._line
        spans = self._inline(line.text or "", line.style)
        line.text = ""
        return self._writer.write(spans, line.glued)

    def _inline(self, text: str, style: str) -> Spans:
        return inline(text, style) if self._styled else [(text, "")]

    # Lines that are judged at their end

    def _judge(self, ends: bool) -> str:
        """A line of code, a rule, a fence, or a row of a table; where it is none of these, text."""
        line, text = self._line, (self._line.whole or "").removesuffix("\n")
        if not ends and len(text) >= _LONGEST_LINE:
            return self._as_text(text)
        if not ends and not self._over:
            return ""
        line.whole = None
        if text.startswith("|") and not self._is_indented_code():
            return self._row(text, ends)
        shown = self._close_table()
        if self._is_indented_code():
            shown += self._begin() + self._writer.verbatim([(text, "")])
            self._blank = True
        elif (fence := _FENCE.fullmatch(text)) is not None:
            shown += self._begin() + self._writer.verbatim([(text, DIM)])
            self._fence = _fence(fence, line)
        elif _RULE.fullmatch(text.replace(" ", "")) is not None:
            rule = "─" * min(_RULE_CELLS, self._writer.width) if self._styled else text
            shown += self._begin() + self._writer.verbatim([(rule, DIM)])
        else:
            return shown + self._as_text(text + "\n" * ends)
        return shown + (self._newline() if ends else "")

    def _as_text(self, text: str) -> str:
        self._line.whole = None
        return self._close_table() + self._text(text)

    def _code(self, fence: _Fence, ends: bool) -> str:
        line = self._line
        whole = line.whole or ""
        if not ends and not self._over and len(whole) < LONGEST:
            return ""
        text, front = whole.removesuffix("\n"), "" if line.glued else self._writer.begin(fence.prefix, [])
        if not line.glued:
            for _ in range(fence.quotes):
                if (quote := _QUOTE.match(text)) is None:  # the quotation is over
                    self._fence, self._line = None, _Line()
                    return "".join(map(self._unit, _units(whole)))
                text = text[quote.end() :]
            mark = text.strip()
            if (ends or self._over) and mark.startswith(fence.marker) and not mark.strip(fence.marker[0]):
                self._fence, line.whole = None, None
                return front + self._writer.verbatim([(text, DIM)]) + (self._newline() if ends else "")
        line.whole, line.glued = "", True
        shown = front + self._writer.verbatim(fence.code.line(text) if self._styled else [(text, "")])
        return shown + (self._newline() if ends else "")

    # Tables

    def _row(self, text: str, ends: bool) -> str:
        line = self._line
        if self._table is not None:
            return self._rows(self._table.row(text), ends)
        front = [*line.prefix, (line.indent, "")]
        header, line.whole = self._header, text
        room = self._writer.width - sum(cells(piece) for piece, _ in front)
        if header is not None and is_separator(text, header.whole or "") and Table.fits(text, room):
            self._table = Table(header.whole or "", text, room, self._inline, styled=self._styled)
            self._header, self._front, self._line = None, front, _Line()
            return ""
        shown = self._close_table()
        self._header, self._line = line, _Line()
        return shown

    def _rows(self, lines: list[str], ends: bool) -> str:
        front = [self._writer.begin(self._front, []) + line for line in lines]
        self._blank = self._lists = False
        return "\n".join(front) + (self._newline() if ends else "")

    def _close_table(self) -> str:
        """Show what waits for more of a table, since none comes."""
        line, table, header = self._line, self._table, self._header
        self._table = self._header = None
        shown = ""
        if table is not None and not table.begun:
            shown = self._rows(table.row(None), True)
        elif header is not None:
            self._line = header
            shown = self._as_text(f"{header.whole}\n")
        self._line = line
        return shown


def _units(text: str) -> list[str]:
    """The units of a text, and last what may become one."""
    units, at = [], 0
    while (unit := UNIT.match(text, at)) is not None:
        units.append(unit[0])
        at = unit.end()
    return [*units, text[at:]]


def _fence(match: re.Match[str], line: _Line) -> _Fence:
    language = re.match(r"[\w+#.-]*", match["language"] or match["info"] or "")
    front = [(text, style) for text, style in line.hang if not text.isspace()]
    return _Fence(match["ticks"] or match["tildes"], line.quotes, front, Code(language[0] if language else ""))
