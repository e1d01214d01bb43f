"""`partita serve install|uninstall|status`: the server as a service of this user, begun at login.

A launchd agent on macOS, a systemd user unit on Linux; each runs `partita serve` with the arguments that were given to
`install`, on the loopback. Models are loaded when they are asked for, so a server that nobody uses costs little.
"""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from partita.errors import BackendUnavailable, PartitaError
from partita.files.atomic import whole_file

LABEL = "org.partita.serve"
UNIT = "partita.service"


class Service(ABC):
    """The manager of this user's services. Everything raises PartitaError where the manager refuses."""

    manager: str
    """Its command, which must be there."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """The file that describes the service."""

    @abstractmethod
    def text(self, arguments: Sequence[str]) -> str:
        """What is in it. arguments: of `partita serve`."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def runs(self) -> bool: ...

    def install(self, arguments: Sequence[str]) -> None:
        """Write the file and start the service, now and at each login. One that is there is replaced."""
        if self.path.exists():
            self.stop()
        with whole_file(self.path) as written:
            written.write_text(self.text(arguments), encoding="utf-8")
        self.start()

    def uninstall(self) -> bool:
        """Stop it and remove its file; False where there was none."""
        if not self.path.exists():
            return False
        self.stop()
        self.path.unlink()
        return True

    def _run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([self.manager, *arguments], capture_output=True, text=True)
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
            raise PartitaError(f"{self.manager} {arguments[0]}: {said[-1]}")
        return done


class Systemd(Service):
    """A user unit (systemd.service(5)). The manager is told to read it again whenever it changed."""

    manager = "systemctl"

    @property
    def path(self) -> Path:
        base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return Path(base) / "systemd/user" / UNIT

    def text(self, arguments: Sequence[str]) -> str:
        command = " ".join(map(_unit_quoted, [*program(), *arguments]))
        return (
            "[Unit]\nDescription=partita: language models on this machine\n\n"
            f"[Service]\nExecStart={command}\nRestart=on-failure\nRestartSec=5\n\n"
            "[Install]\nWantedBy=default.target\n"
        )

    def start(self) -> None:
        self._run("--user", "daemon-reload")
        self._run("--user", "enable", "--now", UNIT)

    def stop(self) -> None:
        self._run("--user", "disable", "--now", UNIT, check=False)

    def runs(self) -> bool:
        return self._run("--user", "is-active", UNIT, check=False).stdout.strip() == "active"

    def uninstall(self) -> bool:
        removed = super().uninstall()
        if removed:
            self._run("--user", "daemon-reload")
        return removed


class Launchd(Service):
    """A launch agent (launchd.plist(5))."""

    manager = "launchctl"

    @property
    def path(self) -> Path:
        return Path.home() / "Library/LaunchAgents" / f"{LABEL}.plist"

    def text(self, arguments: Sequence[str]) -> str:
        logs = str(Path.home() / "Library/Logs/partita.log")
        found = {
            "Label": LABEL,
            "ProgramArguments": [*program(), *arguments],
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ProcessType": "Interactive",
            "StandardErrorPath": logs,
            "StandardOutPath": logs,
        }
        return plistlib.dumps(found, sort_keys=False).decode()

    def start(self) -> None:
        self._run("bootstrap", self._domain, str(self.path))

    def stop(self) -> None:
        self._run("bootout", f"{self._domain}/{LABEL}", check=False)

    def runs(self) -> bool:
        return self._run("print", f"{self._domain}/{LABEL}", check=False).returncode == 0

    @property
    def _domain(self) -> str:
        return f"gui/{os.getuid()}"


def service() -> Service:
    """The one of this machine. Raises BackendUnavailable where it has none that we know."""
    found: Service = Launchd() if sys.platform == "darwin" else Systemd()
    if sys.platform not in ("darwin", "linux") or shutil.which(found.manager) is None:
        raise BackendUnavailable(
            "no service manager here that partita knows (launchd, systemd): have `partita serve` started at login"
        )
    return found


def program() -> list[str]:
    """The command of the server, by absolute paths: services start without a shell's PATH."""
    return [sys.executable, "-m", "partita", "serve"]


def _unit_quoted(word: str) -> str:
    r"""A word of ExecStart: systemd reads quotes, backslashes, `%` and `$`."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or not word or any(c.isspace() or c in "';" for c in word) else word
