"""A command that is expected to refuse, run in a process of its own; the tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pexpect
import pytest

import partita

from ..runtime.sources.loopback import closed_port
from . import command
from .mistakes import Mistake
from .terminals import Terminal


@pytest.fixture(scope="session", autouse=True)
def warm_process() -> Iterator[None]:
    """The one that commands are forked from ends with the tests."""
    yield
    command.end_warm()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """terminal(command, environment, wait, columns=80, folder=None): a program on a terminal of its own, once it has
    written what is waited for. Those that still run behind the test are killed."""
    running: list[pexpect.spawn] = []

    def spawn(
        command: Sequence[str], environment: Mapping[str, str], wait: str, columns: int = 80, folder: Path | None = None
    ) -> pexpect.spawn:
        program, *arguments = command
        given = {"env": dict(environment), "encoding": "utf-8", "timeout": 30, "dimensions": (24, columns)}
        child = pexpect.spawn(program, arguments, cwd=folder, **given)
        running.append(child)
        child.expect(wait)
        return child

    yield spawn
    for child in running:
        if child.isalive():
            child.kill(signal.SIGKILL)
            child.wait()
        child.close()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No setting of this machine reaches the command; no network, no cache but an empty one."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("PIP_", "HF_", "HUGGINGFACE_", "PARTITA_"))
        and not name.lower().endswith("_proxy")
    }
    own = {"PARTITA_CACHE": "cache", "PARTITA_DATA": "data", "HF_HOME": "hub", "HOME": "."}
    nowhere = f"http://127.0.0.1:{closed_port()}"
    index = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{nowhere}/simple", "HF_ENDPOINT": nowhere}
    return kept | {name: str(tmp_path / path) for name, path in own.items()} | index | {"PYTHONWARNINGS": "error"}


@pytest.fixture
def mistake(tmp_path: Path, environment: dict[str, str]) -> Mistake:
    """mistake(*arguments) runs `partita`, insists on how a mistake ends, and returns its line without the prefix."""

    def run(
        *arguments: str | Path,
        words: Sequence[str] = (),
        stdin: bytes = b"",
        settings: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> str:
        own = {**environment, **(settings or {})}
        if before is None and "PYTHONPATH" not in (settings or {}):  # which is read when a Python starts
            done = command.run(*arguments, text=stdin, environment=own, folder=tmp_path)
        else:
            line = [sys.executable, "-m", "partita_apps.cli", *map(str, arguments)]
            streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
            done = subprocess.run(line, **streams, cwd=tmp_path, env=own, timeout=command.LIMIT, preexec_fn=before)
        err = done.stderr
        lines = [line for line in err.splitlines() if not line.startswith("looking for ")]  # progress of a fetch
        assert done.returncode == 2, err
        assert done.stdout == ""
        assert len(lines) == 1, err
        assert lines[0].startswith("partita: ")
        for word in words:
            assert word in lines[0], lines[0]
        return lines[0].removeprefix("partita: ")

    return run


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> partita.LanguageModel:
    """One for each file: a model keeps beginnings that conversations share."""
    return partita.load(tiny_model, backend="numpy")
