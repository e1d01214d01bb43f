"""The server as a service of a user: what is written, and what the manager is told."""

from __future__ import annotations

import os
import plistlib
import shlex
import sys
from pathlib import Path

import pytest

from partita.errors import BackendUnavailable, PartitaError
from partita_apps.serve import service

ARGUMENTS = ["smollm2", "--port", "1300", "--adapter", "/a folder/100%"]


class Manager:
    """A program in the place of systemctl and launchctl, which writes down what it is told."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        for name in ("systemctl", "launchctl"):
            program = folder / name
            program.write_text(
                f'#!/bin/sh\necho "$*" >> {shlex.quote(str(self.log))}\n'
                'case "$*" in *is-active*) echo active ;; esac\n'
                '[ -e "${0%/*}/fails" ] || exit 0\n'
                'case "$*" in *enable*|*bootstrap*) echo "Failed: no bus" >&2; exit 1 ;; esac\n'
            )
            program.chmod(0o755)
        self.fails = folder / "fails"

    def told(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return Manager(folder)


def test_systemd(manager: Manager, tmp_path: Path) -> None:
    unit = service.Systemd()
    assert not unit.uninstall()
    assert manager.told() == []
    unit.install(ARGUMENTS)
    assert unit.path == tmp_path / "home/.config/systemd/user/partita.service"
    (command,) = [line for line in unit.path.read_text().splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(command.removeprefix("ExecStart="))
    assert [word.replace("%%", "%") for word in words] == [sys.executable, "-m", "partita", "serve", *ARGUMENTS]
    assert manager.told() == ["--user daemon-reload", "--user enable --now partita.service"]
    assert unit.runs()
    manager.told()
    unit.install([])
    assert manager.told()[0] == "--user disable --now partita.service"
    assert unit.uninstall()
    assert not unit.path.exists()
    assert manager.told() == ["--user disable --now partita.service", "--user daemon-reload"]


def test_launchd(manager: Manager, tmp_path: Path) -> None:
    agent = service.Launchd()
    agent.install(ARGUMENTS)
    assert agent.path == tmp_path / "home/Library/LaunchAgents/org.partita.serve.plist"
    found = plistlib.loads(agent.path.read_bytes())
    assert found["ProgramArguments"] == [sys.executable, "-m", "partita", "serve", *ARGUMENTS]
    assert found["RunAtLoad"] is True
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert manager.told() == [f"bootstrap gui/{os.getuid()} {agent.path}"]
    assert agent.runs()
    manager.told()
    assert agent.uninstall()
    assert manager.told() == [f"bootout gui/{os.getuid()}/org.partita.serve"]


@pytest.mark.parametrize("kind", [service.Systemd, service.Launchd])
def test_a_manager_that_refuses_is_one_line(manager: Manager, kind: type[service.Service]) -> None:
    manager.fails.touch()
    with pytest.raises(PartitaError, match=r"^(systemctl --user|launchctl bootstrap): Failed: no bus$"):
        kind().install([])


def test_no_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="no service manager"):
        service.service()
