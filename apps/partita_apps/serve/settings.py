"""How the server is reached, and by whom. Data, checked once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from partita.errors import DataError

from .listen import PORT, is_loopback
from .streams import SILENCE

MAX_BODY = 32 << 20
"""Bytes; a million tokens of text are four or five millions."""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*]+", re.IGNORECASE)
_HOST = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-f:.]+\](:\d+)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Settings:
    """host, port: where the server listens. api_key: that every request must have, None for none; needed where others
    than this machine reach the host. allow_hosts: names it may be called by beside those of the loopback, `name` or
    `name:port`. allow_origins: of pages that may use it, as browsers write them (`app://obsidian.md`). strict: unknown
    fields are refused. max_body: bytes of a request. silence: seconds after which a stream says that it lives. drain:
    seconds that replies have to end when the server stops. data: the folder of the page's token and the history of
    its chats; None: both end with the server. history: whether chats outlive the server.

    Raises DataError for what makes no sense together.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    api_key: str | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    strict: bool = False
    max_body: int = MAX_BODY
    silence: float = SILENCE
    drain: float = 30.0
    data: Path | None = None
    history: bool = True

    def __post_init__(self) -> None:
        if self.api_key is None and not is_loopback(self.host):
            raise DataError(
                f"`host` {self.host} is open to other machines: give an `api_key`, which they need then",
                field="api_key",
            )
        if self.api_key is not None and not re.fullmatch(r"[!-~]+", self.api_key):
            raise DataError("`api_key` must be printable ASCII characters without spaces", field="api_key")
        for name in self.allow_hosts:
            if not _HOST.fullmatch(name):
                raise DataError(f"`allow_host` must be a name or name:port, got {name!r}", field="allow_host")
        for origin in self.allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise DataError(
                    f"`allow_origin` must be scheme://host or scheme://host:port, got {origin!r}", field="allow_origin"
                )
