"""How long a person waits: for the help text, for the first word of a chat, for a short reply; each in a new process.

A reply is timed from the start of a process to its end, ours and a peer's by the programs of `children`: both import
their libraries, load the model, read the same 16 ids and decode 8 tokens. Nothing is warmed up in the process; one pair
that does not count comes first, so that files are in the system's cache and kernels are compiled, as on any later day.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from .children import measured, prompts, threads_of
from .processes import timed
from .report import row

MIB = 2**20
PROMPT, TOKENS = 16, 8


def run(
    *, model: Path, runs: int, against: str | None, peer_python: str | None, threads: int | None, **backend: Any
) -> list[dict[str, Any]]:
    ours = [sys.executable, "-m", "partita_apps.cli"]
    options = [f"--{name}={value}" for name, value in backend.items() if value not in (None, "auto")]
    chat = [*ours, "chat", str(model), "-p", "Hi", "-n", "1", *options, f"--threads={threads or 1}"]
    rows = [
        row(name, statistics.median(timed(command).seconds for _ in range(runs + 1)), None, "s")
        for name, command in (("--help", [*ours, "--help"]), ("command to first token", chat))
    ]
    sides = {"against": against, "peer_python": peer_python, "threads": threads, **backend}
    found = measured(model, prompts(model, PROMPT), TOKENS, runs=runs, warm=0, cold=1, **sides)
    name = f"{PROMPT} tokens read, {TOKENS} decoded, {found.about}, {threads_of(threads)}"
    name += f" / {against}" if against else ""
    peak = found.medians("peak")
    return [
        *rows,
        row(f"a process for {name}", *found.medians("wall"), "s", **found.beside),
        row(f"its processor time, {name}", *found.medians("cpu"), "s"),
        row(f"its peak resident, {name}", peak[0] / MIB, peak[1] / MIB if peak[1] else None, "MiB"),
    ]
