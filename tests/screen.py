"""What a terminal shows of what it was sent: characters in cells, styles left out. After ECMA-48 and xterm's ctlseqs.

Only what programs here send. A line that is full ends when the next character comes, as with every terminal today.
"""

from __future__ import annotations

import re

from rich.cells import cell_len

_SENT = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(.)", re.DOTALL)


class Terminal:
    """push() what is sent; `lines` is what is seen, the lines that were scrolled out included."""

    def __init__(self, columns: int):
        self.columns = columns
        self.hides_cursor = False
        self.styles: set[str] = set()
        """Of the characters that come next."""
        self._rows: list[list[str]] = [[]]
        self._y = self._x = 0

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self._rows]

    def push(self, text: str) -> None:
        for match in _SENT.finditer(text):
            if match[3] is None:
                self._control(match[1], match[2])
            elif match[3] == "\r":
                self._x = 0
            elif match[3] == "\n":
                self._down()
            elif match[3] == "\t":
                self._x = min(self._x // 8 * 8 + 8, self.columns - 1)
            else:
                assert match[3].isprintable() or match[3] == "\u200d", repr(match[3])
                self._put(match[3])

    def _put(self, character: str) -> None:
        size = cell_len(character)
        if self._x + size > self.columns:
            self._x = 0
            self._down()
        row = self._rows[self._y]
        row += [" "] * (self._x + size - len(row))
        if size == 0:
            return  # belongs to the character before, whose cell it does not change
        row[self._x : self._x + size] = [character] + [""] * (size - 1)
        self._x += size

    def _down(self) -> None:
        self._y += 1
        self._rows += [[]] * 0 if self._y < len(self._rows) else [[]]

    def _control(self, parameters: str, final: str) -> None:
        count = int(parameters or 1) if parameters.isdigit() or not parameters else 0
        if final == "m":
            self.styles = set() if parameters in ("", "0") else self.styles | set(parameters.split(";"))
        elif final == "A":
            self._y = max(self._y - count, 0)
        elif final == "K":
            row = self._rows[self._y]
            row[:] = [] if parameters == "2" else row[: self._x]
        elif final in "hl" and parameters == "?25":
            self.hides_cursor = final == "l"
        else:
            raise AssertionError(f"a sequence that is unknown here: {parameters}{final}")


def seen(text: str, columns: int) -> list[str]:
    """The lines of a screen that was sent a text with bare line feeds."""
    terminal = Terminal(columns)
    terminal.push(text.replace("\r\n", "\n").replace("\n", "\r\n"))
    return terminal.lines
