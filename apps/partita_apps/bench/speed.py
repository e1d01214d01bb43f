"""Prefill and decode speed, ours and a peer's on the same weights and the same token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .charts import Line, draw
from .children import Measured, measured, prompts, threads_of
from .report import row


def run(
    what: str,
    *,
    model: Path,
    lengths: tuple[int, ...],
    tokens: int,
    against: str | None,
    threads: int | None,
    plot: str | None = None,
    **sides: Any,
) -> list[dict[str, Any]]:
    """Rows of each length of the prompt. what: "prefill" or "decode"."""
    rows, timed = [], []
    for length in lengths:
        found = measured(model, prompts(model, length), tokens, against=against, threads=threads, **sides)
        count = length if what == "prefill" else tokens - 1
        after = f"{what} of {length}" if what == "prefill" else f"{what} after {length}"
        name = f"{after}, {found.about}, {threads_of(threads)}"
        rows += (own := rates(name, what, count, found, against))
        timed.append(own[-1])
    if plot is not None:
        lines = [Line("partita", lengths, [r["ours"] for r in timed])]
        lines += [Line(against, lengths, [r["peer"] for r in timed])] if against else []
        draw(plot, lines, across="tokens of the prompt", up="tokens/s", title=f"Speed of {what}")
    return rows


def rates(name: str, what: str, count: int, found: Measured, against: str | None) -> list[dict[str, Any]]:
    """Rows of tokens/s, `count` of them in the span `what`: by the wall, and by the processor where that is known."""
    name += f" / {against}" if against else ""
    clocks = {what: name} | ({f"{what}_cpu": f"{name}, by processor time"} if found.by_processor else {})
    rows = []
    for clock, called in clocks.items():
        ours, theirs = found.medians(clock)
        rows.append(row(called, count / ours, count / theirs if theirs else None, "tokens/s", **found.beside))
    return rows
