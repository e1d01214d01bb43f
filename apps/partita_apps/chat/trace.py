"""`--trace`: one aligned row for every new token, while it comes. Formats only."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import click

from partita.cache.state import Slots
from partita.inference.runner import Generated

ALTERNATIVES = 5
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_BAR = 8  # cells
_TOKEN = 16  # cells
_NARROWEST = 80  # cells of a row


class Trace:
    """Rows as wide as the terminal: as many runners-up as there is room for. text: of a token."""

    def __init__(self, text: Callable[[int], str], width: int | None = None):
        self._text = text
        self._width = max(shutil.get_terminal_size().columns if width is None else width, _NARROWEST)
        self._count = 0

    def header(self) -> str:
        left = f"{'#':>4} {'token':<{_TOKEN}} {'probability':<{_BAR + 7}}"
        right = f"{'ms':>6} {'sinks':>5} {'window':>6} {'free':>6}"
        return click.style(f"{left} {fitted('instead, %', self._room)} {right}", dim=True)

    @property
    def _room(self) -> int:
        """Cells for the runners-up."""
        return self._width - (4 + 1 + _TOKEN + 1 + _BAR + 7 + 1) - (1 + 6 + 1 + 5 + 1 + 6 + 1 + 6) - 1

    def row(self, token: Generated, slots: Slots | None) -> str:
        """token with its alternatives; slots: the cache's, once it was chosen; None: nobody knows them."""
        self._count += 1
        name = fitted(self._text(token.id), _TOKEN)
        p = token.probability or 0.0
        first = not token.alternatives or token.id == token.alternatives[0][0]
        color = "green" if p >= 0.5 else "yellow" if p >= 0.1 else "red"
        share = click.style(bar(p, _BAR), fg=color) + f" {percent(p)}"
        ms = click.style(f"{token.seconds * 1000:6.0f}", dim=True)
        cache = ("", "", "") if slots is None else (slots.sinks, slots.window, slots.free)
        held = click.style("{:>5} {:>6} {:>6}".format(*cache), dim=True)
        others = click.style(self._others(token), dim=True)
        return f"{self._count:>4} {click.style(name, bold=True, italic=not first)} {share} {others} {ms} {held}"

    def _others(self, token: Generated) -> str:
        text = ""
        for i, p in token.alternatives:
            if i == token.id:
                continue
            more = f"{'  ' if text else ''}{self._text(i)} {p * 100:.1f}"
            if cells(text + more) > self._room:
                break
            text += more
        return fitted(text, self._room)


def bar(p: float, width: int) -> str:
    """A bar of `width` cells, filled to the share p in eighths of a cell."""
    eighths = round(min(max(p, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def percent(p: float) -> str:
    """Six cells; small ones are not shown as nothing."""
    return "<0.01%" if 0 < p < 0.0001 else f"{p * 100:5.1f}%" if p >= 0.001 else f"{p * 100:5.2f}%"


def cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def fitted(text: str, width: int) -> str:
    """Exactly `width` cells: padded, or cut with an ellipsis. Wide characters count for two."""
    from rich.cells import set_cell_size

    return set_cell_size(text, width) if cells(text) <= width else set_cell_size(text, width - 1) + "…"
