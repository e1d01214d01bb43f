"""What stands in front of every route: who may ask, how much, and that nothing of ours is said by accident.

Pure ASGI on the raw scope; a URL that was put together from headers is never looked at. Invariants: a request of a
foreign page or host reaches no route; without the key, where there is one, only OPEN is answered, and nothing under
/app without the page's token, which suffices there; no body grows beyond its bound; an exception is written to the log,
and to the client as nothing but an id.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from types import MappingProxyType

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api import errors
from .asked import Refused
from .settings import Settings
from .streams import Gone

OPEN = frozenset({"/", "/health", "/manifest.webmanifest"})
OPEN_FOLDER = "/page/"
"""What is answered (GET and HEAD) without the key or the page's token: that a server is here, and the files of its
page, which are the same on every machine; nothing about what it has."""
TOKEN_HEADER = b"x-partita-page"
_EXPOSED = "x-partita-ignored, x-partita-warnings, x-request-id, retry-after"
_PORT = re.compile(r":\d+$")
_log = logging.getLogger(__name__)


def allowed_names(settings: Settings) -> frozenset[str]:
    """Values of Host that are taken: the loopback's and the allowed names with the port. Of a name that was allowed
    without a port also the name alone, as clients write it of a proxy at the usual port."""
    bare = [*(host for host in settings.allow_hosts if not _PORT.search(host)), "127.0.0.1", "localhost", "[::1]"]
    usual = bare if settings.port == 80 else settings.allow_hosts
    return frozenset(name.lower() for name in (*usual, *(f"{host}:{settings.port}" for host in bare)))


class Guard:
    """The outermost application. token: the page's. bounds: bytes of a body, by paths that take larger ones. leave: to
    be called when the server is about to end."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        token: str,
        bounds: Mapping[str, int] = MappingProxyType({}),
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self._app, self._settings, self._names = app, settings, allowed_names(settings)
        self.token, self._bounds, self.leave = token, bounds, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._guarded(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        ident = f"req_{secrets.token_hex(12)}"
        scope = {**scope, "path": plain_path(scope["path"]), "root_path": ""}
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        scope["state"] = {**scope.get("state", {}), "request_id": ident}
        out = _Answer(send, ident)
        try:
            origin = self._origin(scope)
            if origin is not None:
                out.headers |= {"access-control-allow-origin": origin, "vary": "Origin"}
                out.headers["access-control-expose-headers"] = _EXPOSED
                if scope["method"] == "OPTIONS":
                    await self._preflight(scope)(scope, receive, out)
                    return
            self._check(scope)
            await self._app(scope, self._bounded(scope, receive), out)
        except Refused as why:
            await self._refuse(why, ident, scope, receive, out)
        except Gone:
            _log.debug("%s: the client went away", ident)
        except Exception:
            _log.exception("%s: %s %r failed", ident, scope["method"], scope["path"])
            why = Refused(f"internal error; the server's log has more about {ident}", "internal")
            await self._refuse(why, ident, scope, receive, out)

    async def _refuse(self, why: Refused, ident: str, scope: Scope, receive: Receive, out: _Answer) -> None:
        if out.begun:  # what has been sent cannot be taken back: the connection ends in the middle
            _log.error("%s: an answer that had begun was ended: %s", ident, why)
            return
        dialect = errors.dialect_of(scope["path"])
        body = errors.document(why, dialect)
        if dialect == "anthropic":
            body["request_id"] = ident
        await JSONResponse(body, errors.status(why), errors.headers(why))(scope, receive, out)

    def _origin(self, scope: Scope) -> str | None:
        """The foreign origin that is allowed, None where the request has none of a foreign page. Raises Refused."""
        host = _only(scope, b"host")
        if host is None or not self._is_ours(host.lower(), scope):
            raise Refused(f"the Host {_shown(host)} is not allowed; start the server with --allow-host", "forbidden")
        origin, foreign = _only(scope, b"origin"), None
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            foreign = origin
        if foreign is not None and foreign not in self._settings.allow_origins:
            message = f"the Origin {_shown(origin)} is not allowed; start the server with --allow-origin"
            raise Refused(message, "forbidden")
        site = _only(scope, b"sec-fetch-site")
        if site is not None and foreign is None and site.lower() not in ("same-origin", "none"):
            raise Refused("requests of other sites are not allowed", "forbidden")
        return foreign

    def _is_ours(self, host: str, scope: Scope) -> bool:
        """Whether a Host names this server: by a name that is allowed, or by the address that was connected to."""
        return host in self._names or host == _address(scope)

    def _check(self, scope: Scope) -> None:
        """The key, and what is said of the body. Raises Refused."""
        if errors.is_page(scope["path"]):
            if not _same(_only(scope, TOKEN_HEADER), self.token):
                how = "open the page with `partita serve --open`, or the link that `partita serve status` prints"
                raise Refused(f"the page's token is missing or wrong: {how}", "unauthorized")
        elif self._settings.api_key is not None and not is_open(scope["method"], scope["path"]):
            given = [_only(scope, b"x-api-key"), _bearer(_only(scope, b"authorization"))]
            matches = [_same(key, self._settings.api_key) for key in given]  # both are looked at in any case
            if not any(matches):
                raise Refused("the API key is missing or wrong", "unauthorized")
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return
        kind, _, parameters = (_only(scope, b"content-type") or "").lower().partition(";")
        charset = parameters.strip().removeprefix("charset=").strip('"')
        if kind.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
            raise Refused("the body must be JSON, with the header Content-Type: application/json", "media_type")
        length = _only(scope, b"content-length")
        if length is not None and (not length.isdecimal() or len(length) > 18):
            raise Refused("Content-Length is not a number")
        if length is not None and int(length) > self._bound(scope):
            raise self._too_large(scope)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """What reads the request, up to a bound."""
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._bound(scope):
                raise self._too_large(scope)
            return message

        return bounded

    def _bound(self, scope: Scope) -> int:
        return self._bounds.get(scope["path"], self._settings.max_body)

    def _too_large(self, scope: Scope) -> Refused:
        return Refused(f"the body is larger than {self._bound(scope)} bytes", "too_large")

    def _preflight(self, scope: Scope) -> Response:
        """The answer to a browser that asks whether a page of an allowed origin may send what it wants to send."""
        asked = _only(scope, b"access-control-request-headers") or ""
        names = [name for name in map(str.strip, asked.lower().split(",")) if name.replace("-", "").isalnum()]
        headers = {
            "access-control-allow-methods": "GET, HEAD, POST",
            "access-control-allow-headers": ", ".join(names[:64]),
            "access-control-max-age": "600",
        }
        if _only(scope, b"access-control-request-private-network") == "true":
            headers["access-control-allow-private-network"] = "true"
        return Response(None, 204, headers)


class _Answer:
    """Sends an answer with the headers that all have. begun: whether its status has been sent."""

    def __init__(self, send: Send, ident: str) -> None:
        self._send, self.begun = send, False
        self.headers = {
            "x-request-id": ident,
            "request-id": ident,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
        }

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            message = {**message, "headers": list(message.get("headers", ()))}
            headers = MutableHeaders(scope=message)
            for name, value in self.headers.items():
                headers[name] = value
            if "access-control-allow-origin" in self.headers:
                headers["cross-origin-resource-policy"] = "cross-origin"
        await self._send(message)


def is_open(method: str, path: str) -> bool:
    """Whether a route needs neither key nor token."""
    return method in ("GET", "HEAD") and (path in OPEN or path.startswith(OPEN_FOLDER))


def plain_path(path: str) -> str:
    """A route's path as clients' base addresses come to it: with slashes doubled or behind, or `/v1` twice."""
    parts = [part for part in path.split("/") if part]
    while parts[:2] == ["v1", "v1"]:
        del parts[0]
    return "/" + "/".join(parts)


def _only(scope: Scope, name: bytes) -> str | None:
    """The value of a header that may be there once. Raises Refused where there are several."""
    found = [value for each, value in scope["headers"] if each == name]
    if len(found) > 1:
        raise Refused(f"the header {name.decode()} was given {len(found)} times", "forbidden")
    return found[0].decode("latin-1").strip() if found else None


def _bearer(header: str | None) -> str | None:
    kind, _, value = (header or "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else None


def _same(given: str | None, key: str) -> bool:
    """In a time that says nothing of where they differ."""
    return hmac.compare_digest((given or "").encode("utf-8", "replace"), key.encode("utf-8", "replace")) and bool(given)


def _address(scope: Scope) -> str | None:
    """Host as it is written for the address that the client connected to; None where it is not an address."""
    server = scope.get("server")
    try:
        address = ipaddress.ip_address(server[0]) if server else None
    except ValueError:
        return None
    if address is None or not server or server[1] is None:
        return None
    return f"[{address}]:{server[1]}" if address.version == 6 else f"{address}:{server[1]}"


def _shown(value: str | None) -> str:
    return "(none)" if value is None else repr(value[:100])
