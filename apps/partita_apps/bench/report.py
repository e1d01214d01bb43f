"""What every benchmark ends in: a table for people or one JSON document, with commit, device and versions."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import click

from partita.units import memory_size

from ..terminal import console

LIBRARIES = ("partita", "numpy", "torch", "mlx", "mlx-lm", "transformers", "peft", "llama-cpp-python")


def row(name: str, ours: float, peer: float | None, unit: str, **more: Any) -> dict[str, Any]:
    """One figure. ratio: ours / peer; None without a peer."""
    return {"name": name, "ours": ours, "peer": peer, "ratio": ours / peer if peer else None, "unit": unit, **more}


def finish(rows: list[dict[str, Any]], as_json: bool) -> None:
    document = {"rows": rows, "commit": commit(), "device": device(), "versions": versions()}
    if as_json:
        click.echo(json.dumps(document))
        return
    from rich.table import Table

    table = Table(title=f"{document['device']}, commit {document['commit']}", title_justify="left")
    for column in ("", "ours", "peer", "ratio", "unit"):
        table.add_column(column, justify="left" if column in ("", "unit") else "right")
    for r in rows:
        peer, ratio = ("" if r[key] is None else f"{r[key]:.3g}" for key in ("peer", "ratio"))
        table.add_row(r["name"], f"{r['ours']:.3g}", peer, ratio, r["unit"])
    console().print(table)


def commit() -> str:
    """Of the checkout that runs, "unknown" for an installed wheel."""
    if not (Path(__file__).parents[3] / "constraints.txt").is_file():  # wherever a wheel lies is not our repository
        return "unknown"
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def device() -> str:
    import psutil

    cores = psutil.cpu_count() or 1
    return f"{platform.system()} {platform.machine()}, {cores} cores, {memory_size(psutil.virtual_memory().total)}"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
