"""Which server the settings are for: the one that runs here, the one at an address, or the one that would be started.

Loads no model: a server tells its context, and without one the model's own files do.
"""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from partita.errors import DataError, SourceError

from ..listen import PORT, SECONDS, TRIES, running, url_of
from .guide import Server

LOOPBACK = "127.0.0.1"


def find(url: str | None, model: str | None, key: str | None = None) -> Server:
    """url: of a server, None for the first one of this machine at the ports that `partita serve` takes. model: one of
    its names, None for its first. key: the server's, where it has one.

    Raises DataError where no server answers at the URL, or it has no such model; SourceError where no server runs and
    the model is not on this machine.
    """
    found = at(url, model, key) if url is not None else here(model, key)
    return planned(model) if found is None else found


def at(url: str, model: str | None, key: str | None) -> Server:
    """The server at an address. Raises DataError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise DataError(f"`url` must be like http://127.0.0.1:{PORT}, got {url}", field="url")
    base = f"{parts.scheme}://{parts.netloc}"
    found = asked(base, model, key)
    if found is None:
        raise DataError(f"no server of partita answers at {base}: start it, or leave `url` out", field="url")
    return found


def here(model: str | None, key: str | None) -> Server | None:
    """The first server of ours on this machine."""
    for port in range(PORT, PORT + TRIES):
        if running(LOOPBACK, port) is not None:
            return asked(url_of(LOOPBACK, port), model, key)
    return None


def asked(base: str, model: str | None, key: str | None) -> Server | None:
    """What a server says of itself; where it needs a key that was not given, the model's own files say it."""
    status, document = get(base, "/v1/models", None)
    keyed = status == 401
    if keyed and key:
        status, document = get(base, "/v1/models", key)
    if status == 401:
        known = planned(model)
        return Server(base, known.model, known.context, keyed=True, running=True)
    listed = document.get("data") if isinstance(document, dict) else None
    if status != 200 or not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        return None
    names = {str(each.get("id")): each.get("context_length") for each in listed}
    chosen = model or next(iter(names), None)
    if chosen is None or chosen not in names:
        shown = ", ".join(list(names)[:8])
        raise DataError(f"unknown `model` {chosen}; expected one of {shown}", field="model")
    context = names[chosen]
    if not isinstance(context, int):
        context = planned(chosen).context
    return Server(base, chosen, context, keyed=keyed, running=True)


def planned(model: str | None) -> Server:
    """The server that `partita serve MODEL` would be. Raises SourceError where the model is not here."""
    from partita.sources import resolve as sources

    from ..names import entry

    if sources.find(model) is None:
        full = sources.full_name(model)
        raise SourceError(f"no server runs, and {full} is not on this machine: `partita serve` fetches and serves it")
    found = entry(model)
    assert found.trained_context is not None  # of an entry that was made of the model's files
    return Server(url_of(LOOPBACK, PORT), found.name, found.trained_context)


def get(base: str, path: str, key: str | None) -> tuple[int, Any]:
    """Status and JSON of an answer; status 0 where there is none."""
    parts = urlsplit(base)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or LOOPBACK, parts.port, timeout=SECONDS)
    try:
        connection.request("GET", path, headers={} if key is None else {"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read(1 << 24))
    except (OSError, http.client.HTTPException, ValueError):
        return 0, None
    finally:
        connection.close()
