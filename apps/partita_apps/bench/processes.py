"""Commands timed from the start of a process to its end, with the memory that they held at most."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Took:
    """seconds: from a process's start to its end. peak: bytes resident."""

    seconds: float
    peak: int


def timed(command: Sequence[str], out: Path | None = None) -> Took:
    """Run a command that must succeed. out: what it writes, removed afterwards."""
    from partita.errors import BackendUnavailable

    begun = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        try:
            child = subprocess.Popen(
                command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
            )
        except OSError as error:
            raise BackendUnavailable(f"{command[0]} does not start: {error.strerror or error}") from error
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:  # Ctrl-C
            child.kill()
            child.wait()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begun
        if child.returncode:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
            raise BackendUnavailable(f"{' '.join(command[:4])} failed: {lines[-1][:300]} (see --peer-python)")
    if out is not None:
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    return Took(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
