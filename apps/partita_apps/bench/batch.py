"""What decoding several rows at once is worth: tokens/s of all rows together, beside those of one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .charts import Line, draw
from .children import measured, prompts, threads_of
from .peers import BATCHES
from .speed import rates


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
    found, timed = [], []
    for count in rows:
        both = measured(model, prompts(model, prompt, count), tokens, against=against, threads=threads, **sides)
        name = f"decode, {count} row{'s' * (count > 1)}, {both.about}, {threads_of(threads)}"
        own = rates(name, "decode", count * (tokens - 1), both, against)
        for figure, first in zip(own, timed[0] if timed else own, strict=True):
            figure |= {"rows": count, "scaling": figure["ours"] / first["ours"]}
            if against is None:
                figure |= {"peer": first["ours"], "ratio": figure["scaling"], "name": f"{figure['name']} / {rows[0]}"}
        timed.append(own)
        found += own
    if plot is not None:
        lines = [Line("partita", rows, [own[-1]["ours"] for own in timed])]
        lines += [Line(against, rows, [own[-1]["peer"] for own in timed])] if against else []
        draw(plot, lines, across="rows decoded at once", up="tokens/s of all rows", title="Throughput by batch")
    return found
