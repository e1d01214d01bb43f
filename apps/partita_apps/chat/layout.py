"""Text laid out on a terminal: words between which lines end, what hangs below a list's first line, wide characters.

Invariants: a word as wide as the terminal or wider is written whole and the terminal
breaks it, so that a long address can be copied; every piece with a style ends it, so that no style is left on.
"""

from __future__ import annotations

import re
import shutil

from partita.printable import visible

from .trace import cells

Spans = list[tuple[str, str]]
"""Pieces of text, each with its style: parameters of SGR (ECMA-48), joined by semicolons; "" for none."""

LONGEST = 160
"""Characters of a word that are waited for before what there is of it is shown."""

# Chinese and Japanese have no spaces: a line may end behind any of these, not before what closes. Hangul has spaces.
_IDEOGRAPHS = "\u2e80-\ua4cf\uf900-\ufaff\uff01-\uff60\U00020000-\U0003fffd"
_OPENING = "\u3008\u300a\u300c\u300e\u3010\u3014\uff08\uff3b"
_CLOSING = (
    "\u3001\u3002\u3005\u3009\u300b\u300d\u300f\u3011\u3015\u30fc"
    "\uff01\uff09\uff0c\uff0e\uff1a\uff1b\uff1f\uff3d"
    r"\u0300-\u036f\u200d\ufe00-\ufe0f)\].,!?:;*_`~"
)
_BREAK = rf"(?<=[{_IDEOGRAPHS}])(?<![{_OPENING}])(?=[^ \t\n{_CLOSING}])"

UNIT = re.compile(rf"[ \t\n]|[^ \t\n]{{1,{LONGEST - 1}}}?(?:[ \t\n]|{_BREAK})|[^ \t\n]{{{LONGEST}}}")
"""The least of a stream that can be judged: a word with the white space behind it, or as much as may be waited for."""
_WORD = re.compile(rf"([^ \t]+?)(?:([ \t]+)|{_BREAK}|$)|[ \t]+")


def painted(text: str, style: str) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if style and text else text


class Writer:
    """Gives what is to be written, and knows the column where it ends. width: cells, by default the terminal's.

    cut: break words that are wider than that.
    """

    def __init__(self, width: int | None = None, *, styled: bool = True, cut: bool = False):
        self._fixed, self._styled, self._cut = width, styled, cut
        self._column = 0
        self._gap = ""  # white space that is written if another word follows on the line
        self._hang: Spans = []

    @property
    def width(self) -> int:
        return max(shutil.get_terminal_size().columns if self._fixed is None else self._fixed, 1)

    def begin(self, prefix: Spans, hang: Spans) -> str:
        """The front of a line. hang: the front of the lines that it is broken into; at most half of the width."""
        self._hang = hang if _size(hang) <= self.width // 2 else [("  ", "")]
        self._column, self._gap = _size(prefix), ""
        return self._paint(prefix)

    def newline(self) -> str:
        self._column, self._gap, self._hang = 0, "", []
        return "\n"

    def verbatim(self, spans: Spans) -> str:
        """A piece of a line that is never broken here."""
        return self._paint(spans)

    def write(self, spans: Spans, glued: bool = False) -> str:
        """Words. glued: the first one continues the last one written."""
        text, shown = "".join(piece for piece, _ in spans), ""
        for match in _WORD.finditer(text):
            if match[1] is None:
                self._gap += match[0]
                continue
            word = spans if len(match[1]) == len(text) else _part(spans, match.start(1), match.end(1))
            shown += self._cut_word(word) if self._cut else self._word(word, glued)
            self._gap, glued = match[2] or "", False
        return shown

    def _word(self, word: Spans, glued: bool = False) -> str:
        width, size, hang = self.width, _size(word), _size(self._hang)
        gap = _expanded(self._gap, self._column)
        begin = self._column + len(gap)
        breaks = begin + size > width and (size <= width - hang or begin >= width)
        if breaks and self._column > hang and not glued:
            shown = "\n" + self._paint(self._hang)
            self._column = hang + size
        else:
            shown = gap
            self._column = begin + size
        if self._column > width:
            self._column = (self._column - 1) % width + 1
        self._gap = ""
        return shown + self._paint(word)

    def _cut_word(self, word: Spans) -> str:
        if _size(word) <= self.width:
            return self._word(word)
        from rich.cells import chop_cells

        return "".join(self._word([(part, style)]) for text, style in word for part in chop_cells(text, self.width))

    def _paint(self, spans: Spans) -> str:
        return "".join(painted(text, style) if self._styled else text for text, style in spans)


def wrapped(text: str, width: int | None = None) -> str:
    """A note for a person, broken between words at the width of the terminal.

    What is broken hangs below its beginning, the second column of a row below itself. Facts between " · " stay whole
    where they fit, and so do numbers with their units. What would act on a terminal is shown.
    """
    writer = Writer(width)
    return "\n".join(_wrapped_line(line, writer) for line in visible(text).split("\n"))


_ROW = re.compile(r"(  \S.*?  +)(?=\S)(.*)")
_UNIT = re.compile(r"(?<=\d) (?=(?:bytes|[kKMGT]i?B|m?s|min|tokens?)\b)")
_BOUND = "\ue000"  # of the private use area, and never written: stands for a space that does not end a line


def _wrapped_line(line: str, writer: Writer) -> str:
    row = _ROW.fullmatch(line)
    rest = line.lstrip(" ") if row is None else row[2]
    hang = shown = front = line[: len(line) - len(rest)]
    if row is not None and cells(front) > writer.width // 2 and cells(line) > writer.width:
        hang = " " * 6
        shown = f"{front.rstrip()}\n{hang}"
    room = writer.width - cells(hang)
    facts = rest.split(" · ")
    if len(facts) > 1:
        rest = f"{_BOUND}· ".join(fact.replace(" ", _BOUND) if cells(fact) + 2 <= room else fact for fact in facts)
    margin = [(" " * cells(hang), "")]
    writer.begin(margin, margin)
    return shown + writer.write([(_UNIT.sub(_BOUND, rest), "")]).replace(_BOUND, " ")


def _part(spans: Spans, begin: int, end: int) -> Spans:
    """The characters from begin to end."""
    found, at = [], 0
    for text, style in spans:
        piece = text[max(begin - at, 0) : max(end - at, 0)]
        if piece:
            found.append((piece, style))
        at += len(text)
    return found


def _size(spans: Spans) -> int:
    return sum(cells(text) for text, _ in spans)


def _expanded(gap: str, column: int) -> str:
    """White space without tabs, which end at every eighth cell."""
    return gap if "\t" not in gap else (" " * column + gap).expandtabs(8)[column:]
