"""What tests of `partita finetune` share: a small data set, and the command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .command import run

QUICK = ("--backend", "torch", "--max-length", "96", "--rank", "4", "--learning-rate", "5e-3")
"""Options that make a run of the tiny model short."""
MARK = "partita_apps.cli"


def write_chats(path: Path, count: int = 24, reply: str = "the lazy dog jumps over the quick fox ") -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"the fox number {i}"},
                {"role": "assistant", "content": reply * (1 + i % 3)},
            ]
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", MARK, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "error", "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", "/tmp/matplotlib")}


def partita(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which must be of this status."""
    done = run(*arguments, environment=environment())
    assert done.returncode == status, done.stderr
    return done


def train(*arguments: object) -> dict[str, Any]:
    """The document of a run."""
    return json.loads(partita("finetune", *arguments, "--json").stdout)


def rows(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl; lines that are no JSON fail."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def column(found: list[dict[str, Any]], name: str) -> list[list[Any]]:
    return [[row["step"], row[name]] for row in found if name in row]
