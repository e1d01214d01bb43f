"""Our own server as its page speaks with it: documents of `/app`, and the events of runs.

Not here: what they mean. Invariants: the page's token, which lies in the data folder, is sent to this machine alone;
the rest is as in `client.py`.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Generator, Mapping
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec

from partita.errors import DataError, SourceError

from .client import Address, Client, Exchange, Lines

_DOCUMENT = 64 << 20  # bytes


class AppClient(Client):
    """token: the page's."""

    def __init__(self, address: Address, token: str) -> None:
        super().__init__(address)
        self._token = token

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "x-partita-page": self._token}

    def get(self, path: str) -> dict[str, Any]:
        """Raises SourceError."""
        return self._asked(Exchange(self, "GET", path))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Raises SourceError."""
        return self._asked(Exchange(self, "POST", path, msgspec.json.encode(body)))

    def events(self, run: str, after: int = 0) -> Generator[tuple[int, str, dict[str, Any]] | None, None, None]:
        """Number, kind and data of the events of a run, to its end; None each time that none came for a while.

        Raises SourceError, also where the stream ends before the run does.
        """
        number, kind = after, ""
        with closing(Lines(Exchange(self, "GET", f"/app/runs/{run}/events?after={after}"))) as lines:
            for line in lines:
                if line is None:
                    yield None
                    continue
                name, _, value = line.strip().partition(b":")
                if name == b"id":
                    number = int(value) if value.strip().isdigit() else number
                elif name == b"event":
                    kind = value.strip().decode("ascii", "replace")
                elif name == b"data":
                    yield number, kind, self.typed(value.strip(), dict[str, Any])
                    if kind == "end":
                        return
        raise self.lost(None)

    def _asked(self, exchange: Exchange) -> dict[str, Any]:
        try:
            return self.typed(exchange.connect().read(_DOCUMENT), dict[str, Any])
        except (OSError, http.client.HTTPException) as error:
            raise self.lost(error) from None
        finally:
            exchange.release()


def of_this_machine(address: Address, history: Path | None) -> AppClient | None:
    """How to speak with a server that has this very history and this user's token; None for every other one."""
    from ..serve.app import token

    if history is None or not _is_loopback(address.host):
        return None
    try:
        found = token.read(history.parent)
        if found is None:
            return None
        client = AppClient(address, found)
        theirs = client.get("/app/state").get("history")
        path = theirs.get("path") if isinstance(theirs, dict) else None
        same = isinstance(path, str) and os.path.samefile(path, history)
    except (DataError, SourceError, OSError):
        return None
    return client if same else None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
