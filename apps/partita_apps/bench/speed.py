"""Prefill and decode speed, ours and a peer's on the same weights and the same token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .charts import Line, draw
from .children import measured, prompts, threads_of
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
    """A row a length of the prompt. what: "prefill" or "decode"."""
    rows = []
    for length in lengths:
        found = measured(model, prompts(model, length), tokens, against=against, threads=threads, **sides)
        ours, theirs = found.medians(what)
        count = length if what == "prefill" else tokens - 1
        after = f"{what} of {length}" if what == "prefill" else f"{what} after {length}"
        name = f"{after}, {found.about}, {threads_of(threads)}{f' / {against}' if against else ''}"
        rows.append(row(name, count / ours, count / theirs if theirs else None, "tokens/s", **found.beside))
    if plot is not None:
        lines = [Line("partita", lengths, [r["ours"] for r in rows])]
        lines += [Line(against, lengths, [r["peer"] for r in rows])] if against else []
        draw(plot, lines, across="tokens of the prompt", up="tokens/s", title=f"Speed of {what}")
    return rows
