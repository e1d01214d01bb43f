"""What every benchmark ends in: a table for people or one JSON document, with commit, device and versions."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from contextlib import suppress
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
    same = ["same tokens"] if any("same_tokens" in r for r in rows) else []
    for column in ("", "ours", "peer", "ratio", "unit", *same):
        table.add_column(column, justify="left" if column in ("", "unit") else "right")
    for r in rows:
        ours, peer, ratio = (_figure(r[key]) for key in ("ours", "peer", "ratio"))
        agreed = [f"{r['same_tokens']} of {r['tokens']}" if "same_tokens" in r else ""] if same else []
        table.add_row(r["name"], ours, peer, ratio, r["unit"], *agreed)
    console().print(table)


def _figure(x: float | None) -> str:
    """Counts in full."""
    return "" if x is None else f"{x:,}" if isinstance(x, int) else f"{x:.3g}"


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

    cores, memory = psutil.cpu_count() or 1, memory_size(psutil.virtual_memory().total)
    return ", ".join([f"{platform.system()} {platform.machine()}", *_cpu(), f"{cores} cores", memory])


def _cpu() -> list[str]:
    """The processor's name and its widest vectors, and what torch is told to use in their place; [] where unknown."""
    found = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    flags, told = found.get("flags", "").split(), os.environ.get("ATEN_CPU_CAPABILITY")
    vectors = next((flag.removesuffix("f").upper() for flag in ("avx512f", "avx2") if flag in flags), None)
    parts = [found.get("model name") or platform.processor(), vectors, f"used as {told.upper()}" if told else None]
    return [part for part in parts if part]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
