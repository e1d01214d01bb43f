"""What decoding several rows at once is worth: tokens/s of all rows together, beside those of one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .charts import Line, draw
from .children import measured, prompts, threads_of
from .peers import BATCHES
from .report import row


def run(
    *,
    model: Path,
    rows: tuple[int, ...],
    prompt: int,
    tokens: int,
    against: str | None,
    threads: int | None,
    plot: str | None,
    **sides: Any,
) -> list[dict[str, Any]]:
    """rows: how many at once. Without a peer ours is compared with its own first number of rows."""
    from partita.errors import DataError

    if against is not None and against not in BATCHES:
        raise DataError(f"{against} is not measured with several rows; expected one of {', '.join(BATCHES)}")
    found = []
    for count in rows:
        both = measured(model, prompts(model, prompt, count), tokens, against=against, threads=threads, **sides)
        ours, theirs = (None if x is None else count * (tokens - 1) / x for x in both.medians("decode"))
        assert ours is not None
        first = found[0]["ours"] if found else ours
        name = f"decode, {count} row{'s' * (count > 1)}, {both.about}, {threads_of(threads)}"
        name += f" / {against}" if against else f" / {rows[0]} row{'s' * (rows[0] > 1)}"
        found.append(
            row(name, ours, theirs if against else first, "tokens/s", rows=count, scaling=ours / first, **both.beside)
        )
    if plot is not None:
        lines = [Line("partita", rows, [r["ours"] for r in found])]
        lines += [Line(against, rows, [r["peer"] for r in found])] if against else []
        draw(plot, lines, across="rows decoded at once", up="tokens/s of all rows", title="Throughput by batch")
    return found
