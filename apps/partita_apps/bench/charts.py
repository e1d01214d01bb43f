"""Charts of what was measured: a line a series, axes from zero, a file of some kilobytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#4c72b0", "#c44e52", "#55a868", "#8172b3", "#937860")


@dataclass(frozen=True)
class Line:
    label: str
    across: Sequence[float]
    up: Sequence[float]


def check(path: str | None) -> None:
    """Before anything is measured. DataError: nothing can draw here."""
    from partita.errors import DataError

    if path is not None and importlib.util.find_spec("matplotlib") is None:
        raise DataError("--plot needs matplotlib: pip install 'partita[plot]'")


def draw(path: str, lines: Sequence[Line], *, across: str, up: str, title: str, marks: bool = True) -> None:
    """Write the picture. marks: a dot at each number. DataError: the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from partita.errors import DataError

    figure = Figure(figsize=(6, 3.4))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for line, colour in zip(lines, COLOURS * len(lines), strict=False):
        axes.plot(line.across, line.up, "o-" if marks else "-", label=line.label, color=colour, markersize=4)
    axes.set(xlabel=across, ylabel=up, ylim=(0, None), title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=90)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no picture's
        raise DataError(f"cannot write the picture {path}: {error}") from error
