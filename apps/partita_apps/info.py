"""`partita info`: what partita would run on here. Tries every backend and device once, and loads no model."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from partita.units import memory_size

from .terminal import console, facts

LIBRARIES = (
    "numpy",
    "ml_dtypes",
    "mlx",
    "torch",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "gguf",
    "huggingface_hub",
    "jinja2",
    "click",
    "rich",
    "prompt_toolkit",
)


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def info(as_json: bool) -> None:
    """Show backends, devices, versions and memory."""
    found = collect()
    if as_json:
        click.echo(json.dumps(found))
    else:
        show(found)


def collect() -> dict[str, Any]:
    """Everything there is to tell. memory: bytes. cpu: cores this process may use. libraries: None where missing.

    passed: what `auto` goes past, and why, in order.
    """
    import psutil

    import partita_backends
    from partita import __version__
    from partita.sources import resolve as sources

    attempts = partita_backends.survey()
    auto = partita_backends.first(attempts)
    memory = psutil.virtual_memory()
    return {
        "partita": __version__,
        "backends": [asdict(status) for status in partita_backends.status(attempts)],
        "auto": auto.backend.name,
        "auto_device": auto.backend.device,
        "auto_reason": auto.reason,
        "passed": [{"name": each.name, "device": each.device, "reason": each.reason} for each in auto.passed],
        "cpu": cores(),
        "memory": {"total": memory.total, "free": memory.available},
        "platform": platform.platform(),
        "python": platform.python_version(),
        "default_model": sources.DEFAULT_MODEL,
        "cache_dir": str(sources.cache_dir()),
        "libraries": {name: installed(name) for name in LIBRARIES},
    }


def cores() -> int:
    """Cores that this process may use, which a container can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def show(found: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console(highlight=False, soft_wrap=False)
    if not out.is_terminal:
        out.width = 2000
    backends = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("backend", "device", "version", "computes in"):
        backends.add_column(column, overflow="fold")
    for row in found["backends"]:
        name = Text(f"{row['name']} (auto)" if row["name"] == found["auto"] else row["name"])
        if row["available"]:
            name.stylize("bold green" if row["name"] == found["auto"] else "green")
            backends.add_row(name, Text(row["device"]), row["version"], Text(row["reason"]))
        else:
            backends.add_row(name, "–", row["version"] or "–", Text(row["reason"], style="yellow"), style="dim")
    out.print(backends)
    memory = found["memory"]
    libraries = ", ".join(f"{name} {number}" for name, number in found["libraries"].items() if number)
    lines = (
        ("auto", f"{found['auto']} on {found['auto_device']}: {found['auto_reason']}"),
        ("memory", f"{memory_size(memory['free'])} free of {memory_size(memory['total'])}"),
        ("cores", str(found["cpu"])),
        ("platform", f"{found['platform']}, Python {found['python']}"),
        ("default model", found["default_model"]),
        ("cache", found["cache_dir"]),
        ("partita", found["partita"]),
        ("libraries", libraries),
    )
    facts(lines)
