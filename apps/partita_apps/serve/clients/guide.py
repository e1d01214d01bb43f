"""What a tool is told of a server, as data: files, variables, steps by hand, and what starts it.

Not here: how it is shown (`command`), and what each tool wants (`agents`, `libraries`, `apps`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

KEY_VARIABLE = "PARTITA_API_KEY"
NO_KEY = "none"
"""For tools that insist on a key where the server has none."""


@dataclass(frozen=True)
class Server:
    """What a tool has to know. url: without a path. context: tokens. keyed: whether requests need a key; the key itself
    is never shown. running: whether it answered."""

    url: str
    model: str
    context: int
    keyed: bool = False
    running: bool = False

    @property
    def v1(self) -> str:
        """The base address of OpenAI's clients."""
        return f"{self.url}/v1"

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]

    @property
    def shell_key(self) -> str:
        """The key as a shell's word."""
        return f"${KEY_VARIABLE}" if self.keyed else NO_KEY

    @property
    def key(self) -> str:
        """What stands for the key in files and forms."""
        return "YOUR-KEY" if self.keyed else NO_KEY

    @property
    def reply(self) -> int:
        """Tokens that tools are told a reply may have: a quarter of the context."""
        return self.context // 4


@dataclass(frozen=True)
class File:
    """path: as the tool looks for it, `~` for the home folder. text: the whole file where there was none."""

    path: str
    text: str


@dataclass(frozen=True)
class Settings:
    """files: to write, or to add to. environment: values are words of a shell; `$PARTITA_API_KEY` stands for the key.
    start: the command that runs the tool then. steps: what is done by hand, in order. python: a program."""

    files: tuple[File, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    start: str | None = None
    steps: tuple[str, ...] = ()
    python: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Client:
    """api: the routes that it calls. needs: tokens of its first request, measured with SmolLM2's tokenizer; None where
    that is only what the person writes, or unknown. ran: the version that was run against this server, None where the
    settings are those of its documentation."""

    name: str
    title: str
    api: str
    settings: Callable[[Server], Settings]
    needs: int | None = None
    ran: str | None = None

    def tested(self) -> str:
        """How its settings are known."""
        return "from its documentation, not run" if self.ran is None else f"run with {self.ran}"


def pretty(document: Any) -> str:
    """JSON as people write it."""
    return json.dumps(document, indent=2)


def quoted(text: str) -> str:
    """A text as JSON, TOML, YAML and Python write one."""
    return json.dumps(text)
