"""What tests of `partita finetune` share: a small data set, and the command in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

QUICK = ("--backend", "torch", "--max-length", "96", "--rank", "4", "--learning-rate", "5e-3")
"""Options that make a run of the tiny model short."""
MARK = "partita_apps.cli"
LIMIT = 120.0  # seconds


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
    if sys.platform == "linux":
        done = _forked(*arguments)
    else:
        done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), timeout=LIMIT)
    assert done.returncode == status, done.stderr
    return done


def _forked(*arguments: object) -> subprocess.CompletedProcess[str]:
    process, asked = _warm(), list(map(str, arguments))
    with tempfile.TemporaryDirectory() as work:
        out, err = Path(work) / "out", Path(work) / "err"
        process.stdin.write(json.dumps({"arguments": asked, "out": str(out), "err": str(err)}) + "\n")
        process.stdin.flush()
        assert select.select([process.stdout], [], [], LIMIT)[0], "it does not end"
        return subprocess.CompletedProcess(asked, int(process.stdout.readline()), out.read_text(), err.read_text())


def end_warm() -> None:
    """End the process that `partita` has started, if it has."""
    if _warm.cache_info().currsize:
        process = _warm()
        _warm.cache_clear()
        process.communicate(timeout=LIMIT)


@cache
def _warm() -> Any:
    """A process that runs commands (`warm_child`)."""
    child = Path(__file__).with_name("warm_child.py")
    return subprocess.Popen(
        [sys.executable, child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
    )


def train(*arguments: object) -> dict[str, Any]:
    """The document of a run."""
    return json.loads(partita("finetune", *arguments, "--json").stdout)


def rows(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl; lines that are no JSON fail."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def column(found: list[dict[str, Any]], name: str) -> list[list[Any]]:
    return [[row["step"], row[name]] for row in found if name in row]
