"""How long a person waits: for the help text, and from the command to the first token, beside mlx-lm's command."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .peers import write_for
from .report import row


def run(
    *, model: str | None, runs: int, peer_python: str | None, threads: int | None, **backend: Any
) -> list[dict[str, Any]]:
    from partita.sources.resolve import resolve

    ours = [sys.executable, "-m", "partita_apps.cli"]
    options = [f"--{name}={value}" for name, value in backend.items() if value not in (None, "auto")]
    options += [f"--threads={threads}"] if threads else []
    rows = [row("--help", statistics.median(seconds([*ours, "--help"]) for _ in range(runs + 1)), None, "s")]
    with tempfile.TemporaryDirectory() as work:
        folder = str(Path(work) / "model")
        write_for("mlx-lm", resolve(model), Path(folder))
        chat = [*ours, "chat", folder, "-p", "Hi", "-n", "1", *options]
        commands = [chat]
        if peer_python:
            commands.append([peer_python, "-m", "mlx_lm", "generate", "--model", folder, "-p", "Hi", "-m", "1"])
        times: list[list[float]] = [[] for _ in commands]
        for _ in range(runs + 1):  # in turns; the first round warms the file cache
            for command, found in zip(commands, times, strict=True):
                found.append(seconds(command))
    medians = [statistics.median(found[1:]) for found in times]
    name = "command to first token" + (" / mlx_lm generate" if peer_python else "")
    return [*rows, row(name, medians[0], medians[1] if peer_python else None, "s")]


def seconds(command: list[str]) -> float:
    """Wall time of a command that must succeed."""
    from partita.errors import BackendUnavailable

    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise BackendUnavailable(f"{' '.join(command[:4])} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return time.perf_counter() - begun
