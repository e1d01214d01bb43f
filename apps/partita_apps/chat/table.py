"""A table whose rows are shown one by one: header and first row decide the widths, and longer cells are broken.

Invariant: a row that was shown is never changed, so the widths cannot wait
for rows to come; columns get room to spare instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .inline import BOLD, DIM
from .layout import Spans, Writer, painted
from .trace import cells

_SEPARATOR = re.compile(r"\s*\|?(\s*:?-+:?\s*\|)*\s*:?-+:?\s*\|?\s*")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_BETWEEN, _NARROWEST = "  ", 4


def split(line: str) -> list[str]:
    """The cells of a row."""
    line = line.strip().removeprefix("|")
    if line.endswith("|") and not line.endswith("\\|"):
        line = line[:-1]
    return [re.sub(r"<br\s*/?>", "\n", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)]


def is_separator(line: str, header: str) -> bool:
    """Whether a line makes the one above it the header of a table."""
    return _SEPARATOR.fullmatch(line) is not None and len(split(line)) == len(split(header))


class Table:
    """room: cells for a line. inline: what a cell's text becomes, given the style of all of it."""

    def __init__(
        self, header: str, separator: str, room: int, inline: Callable[[str, str], Spans], *, styled: bool = True
    ):
        self._header, self._room, self._inline, self._styled = split(header), room, inline, styled
        self._right = [cell.endswith(":") and not cell.startswith(":") for cell in split(separator)]
        self._widths: list[int] = []

    @property
    def begun(self) -> bool:
        """Whether any of it was shown."""
        return bool(self._widths)

    @classmethod
    def fits(cls, header: str, room: int) -> bool:
        """Whether there is room for a table with so many columns."""
        count = len(split(header))
        return count * _NARROWEST + (count - 1) * len(_BETWEEN) <= room

    def row(self, line: str | None) -> list[str]:
        """The lines of a row. The first time, those of the header before; None: there was no row."""
        row = [] if line is None else self._filled(split(line))
        shown = []
        if not self._widths:
            self._widths = self._fitted(row)
            rule = _BETWEEN.join("─" * width for width in self._widths)
            shown = [*self._lines(self._header, BOLD), painted(rule, DIM) if self._styled else rule]
        return shown + (self._lines(row, "") if row else [])

    def _filled(self, row: list[str]) -> list[str]:
        """As many cells as the header has; what is too much goes into the last."""
        count = len(self._header)
        row += [""] * (count - len(row))
        return [*row[: count - 1], " ".join(row[count - 1 :])]

    def _fitted(self, row: Sequence[str]) -> list[int]:
        wanted = [max(map(self._size, column)) for column in zip(self._header, row or self._header, strict=True)]
        wanted = [max(size, _NARROWEST) for size in wanted]
        room = self._room - len(_BETWEEN) * (len(wanted) - 1)
        spare = room - sum(wanted)
        if spare >= 0:
            return [size + min(_spare(size), spare * size // sum(wanted)) for size in wanted]
        widths, left, count = [0] * len(wanted), room, len(wanted)
        for size, i in sorted((size, i) for i, size in enumerate(wanted)):
            widths[i] = min(size + 2, left // count)
            left, count = left - widths[i], count - 1
        return widths

    def _size(self, cell: str) -> int:
        spans = self._inline(cell, "")
        return max(map(cells, "".join(text for text, _ in spans).split("\n")))

    def _lines(self, row: Sequence[str], style: str) -> list[str]:
        columns = [self._column(*cell, style) for cell in zip(row, self._widths, self._right, strict=True)]
        height = max(map(len, columns))
        blank = [" " * width for width in self._widths]
        filled = [column + [empty] * (height - len(column)) for column, empty in zip(columns, blank, strict=True)]
        return [_BETWEEN.join(line).rstrip() for line in zip(*filled, strict=True)]

    def _column(self, cell: str, width: int, right: bool, style: str) -> list[str]:
        writer = Writer(width, styled=self._styled, cut=True)
        text = "\n".join(writer.write(self._inline(part, style)) + writer.newline()[1:] for part in cell.split("\n"))
        padded = []
        for line in text.split("\n"):
            pad = " " * (width - cells(_ESCAPES.sub("", line)))
            padded.append(pad + line if right else line + pad)
        return padded


def _spare(size: int) -> int:
    """Cells more for a column, since rows to come may hold more than the first: where words stand, far more."""
    return 2 * size if size > 10 else size // 2 + 1
