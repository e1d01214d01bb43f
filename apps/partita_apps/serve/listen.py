"""Where the server listens: its port, and whether a server of ours is there already.

A port is bound before it is said, so that nobody can take it in between. 1234 is the one where tools look that know LM
Studio's port; where it is taken and no port was asked for, the next free one is.
"""

from __future__ import annotations

import errno
import http.client
import ipaddress
import json
import socket
from dataclasses import dataclass
from typing import Any

from partita.errors import DataError

PORT = 1234
TRIES = 100
"""Ports from the usual one on that are tried."""
SECONDS = 1.0
"""How long another program on the port has to say what it is."""


@dataclass(frozen=True)
class Running:
    """A server of ours that answers. models: the names it knows."""

    url: str
    models: frozenset[str]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address of that host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def url_of(host: str, port: int) -> str:
    """The server's address as a browser takes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def listening(host: str, port: int | None) -> socket.socket:
    """A bound socket. port: None for the usual one or the next that is free, 0 for any.

    Raises DataError where the host is none of this machine's, the port is taken, or it may not be used.
    """
    wanted = range(PORT, PORT + TRIES) if port is None else range(port, port + 1)
    for number in wanted:
        try:
            return _bound(host, number)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise _cannot(host, number, error) from None
    if port is None:
        raise DataError(f"`port` {PORT} and the {TRIES - 1} after it are taken: name a free one", field="port")
    raise DataError(f"`port` {port} is taken on {host}: name another one, or end what listens there", field="port")


def running(host: str, port: int) -> Running | None:
    """Our server on that port, None where another program listens, or nothing."""
    document = _get(host, port, "/health")
    if document is None or "partita" not in document:
        return None
    models = _get(host, port, "/v1/models") or {}
    listed = models.get("data")
    names = frozenset(str(model.get("id")) for model in listed) if isinstance(listed, list) else frozenset[str]()
    return Running(url_of(host, port), names)


def _bound(host: str, port: int) -> socket.socket:
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port of a server that has just ended is free
        bound.bind(address)
        bound.listen(128)
    except BaseException:
        bound.close()
        raise
    return bound


def _cannot(host: str, port: int, error: OSError) -> DataError:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return DataError(f"`host` {host} is no address of this machine: try 127.0.0.1", field="host")
    if error.errno == errno.EACCES:
        return DataError(f"`port` {port} may not be used by this user: name one above 1023", field="port")
    return DataError(f"cannot listen on {host}, `port` {port}: {error.strerror}", field="port")


def _get(host: str, port: int, path: str) -> dict[str, Any] | None:
    """What a server answers there, if it is an object."""
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        document = json.loads(connection.getresponse().read(1 << 20))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return document if isinstance(document, dict) else None
