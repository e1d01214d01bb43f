"""The command `partita`, run to its end in a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

LIMIT = 120.0  # seconds


def run(
    *arguments: object, text: str | bytes = "", environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """text: its standard input. environment, folder: this process's where they are left out. Python's own variables are
    those of the first command: a test of them starts a process itself."""
    asked, own = list(map(str, arguments)), dict(os.environ if environment is None else environment)
    given = text.encode() if isinstance(text, str) else text
    place = folder or Path.cwd()
    if sys.platform == "linux":
        return _forked(asked, given, own, place)
    command = [sys.executable, "-m", "partita_apps.cli", *asked]
    done = subprocess.run(command, input=given, capture_output=True, env=own | QUIET, cwd=place, timeout=LIMIT)
    return subprocess.CompletedProcess(asked, done.returncode, done.stdout.decode(), done.stderr.decode())


QUIET = {"PYTHONWARNINGS": "error"}
"""A warning that reaches a person is a mistake of ours."""


def _forked(arguments: list[str], text: bytes, environment: dict[str, str], folder: Path) -> Any:
    process = _warm()
    with tempfile.TemporaryDirectory() as work:
        streams = [Path(work) / name for name in ("in", "out", "err")]
        for stream in streams:
            stream.write_bytes(text if stream.name == "in" else b"")
        task = {"arguments": arguments, "environment": environment, "folder": str(folder)}
        process.stdin.write(json.dumps({**task, "streams": list(map(str, streams))}) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], LIMIT)[0]:
            end_warm(kill=True)
            raise TimeoutError(f"{arguments} does not end")
        status = int(process.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, *(stream.read_text() for stream in streams[1:]))


def end_warm(kill: bool = False) -> None:
    """End the process that commands are forked from, if there is one. kill: and the command that it runs."""
    if _warm.cache_info().currsize:
        process = _warm()
        _warm.cache_clear()
        if kill:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=LIMIT)


@cache
def _warm() -> Any:
    """A process that runs commands (`warm_child`), the leader of a group of its own."""
    command, own = [sys.executable, Path(__file__).with_name("warm_child.py")], os.environ | QUIET
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, env=own, text=True, start_new_session=True)
