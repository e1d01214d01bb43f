"""The files of the page, as they lie in this folder: the same for everybody, and nothing of this machine in them.

Invariants: a name in a request is compared with a pattern that has no way out of the folder, and with the kinds of
files that a page is made of; every answer carries the policy under which nothing but the page's own scripts run.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

from starlette.responses import Response

from ..api.exchange import Endpoint, Exchange
from ..asked import Refused

TYPES: Mapping[str, str] = MappingProxyType(
    {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
        "png": "image/png",
        "webmanifest": "application/manifest+json",
    }
)
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types partita",
    )
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": POLICY,
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }
)
_PACKAGE = __name__.rpartition(".")[0]
_NAME = re.compile(rf"(?:[a-z0-9_-]+/)*[a-z0-9_-]+\.({'|'.join(TYPES)})", re.ASCII)


async def file(exchange: Exchange) -> Response:
    return await asyncio.to_thread(_answer, exchange.request.path_params["name"], exchange)


async def index(exchange: Exchange) -> Response:
    return await asyncio.to_thread(_answer, "index.html", exchange)


async def manifest(exchange: Exchange) -> Response:
    return await asyncio.to_thread(_answer, "manifest.webmanifest", exchange)


def _answer(name: str, exchange: Exchange) -> Response:
    """A file, or that the browser has it already. Raises Refused where there is none."""
    match = _NAME.fullmatch(name)
    place = None if match is None else files(_PACKAGE).joinpath(*name.split("/"))
    if match is None or place is None or not place.is_file():
        raise Refused(f"the page has no file {name[:200]}", "not_found")
    data = place.read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {**HEADERS, "etag": tag}
    known = exchange.request.headers.get("if-none-match", "")
    if tag in (each.strip().removeprefix("W/") for each in known.split(",")):
        return Response(None, 304, headers)
    return Response(data, headers=headers, media_type=TYPES[match[1]])


ENDPOINTS = (
    Endpoint("GET", "/", index, "The server's page, for a browser."),
    Endpoint("GET", "/page/{name:path}", file, "A file of the page."),
    Endpoint("GET", "/manifest.webmanifest", manifest, "What the page is called where it is installed."),
)
