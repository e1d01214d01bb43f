"""Who may ask the server, and how much; and that it says nothing by accident."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partita.errors import DataError
from partita_apps.serve import replies
from partita_apps.serve.fields import MAX_DEPTH, too_deep
from partita_apps.serve.security import plain_path
from partita_apps.serve.server import build_app
from partita_apps.serve.settings import Settings

from .scripted import Script, ScriptedRegistry
from .served import Served

Serve = Callable[..., Served]
Make = Callable[..., ScriptedRegistry]
PATH = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
JSON = (b"content-type", b"application/json")
OURS = b"127.0.0.1:1234"


class Call:
    """One request to the application itself, with headers as raw as they come; its answer."""

    def __init__(
        self,
        app: Any,
        method: str = "POST",
        path: str = PATH,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: Any = BODY,
        *,
        host: bytes | None = OURS,
        server: tuple[str, int] = ("127.0.0.1", 1234),
        chunks: int = 1,
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = () if any(name == b"content-type" for name, _ in headers) else (JSON,)
        own = () if host is None else ((b"host", host),)
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
        scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": server}
        scope |= {"client": ("127.0.0.1", 5), "headers": [*own, *(kind if method == "POST" else ()), *headers]}
        size = -(-len(data) // chunks)
        pieces = [data[i * size : (i + 1) * size] for i in range(chunks)]
        self.sent: list[Any] = []
        asyncio.run(self._run(app, scope, pieces))
        start = next(message for message in self.sent if message["type"] == "http.response.start")
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in self.sent)

    async def _run(self, app: Any, scope: Any, pieces: list[bytes]) -> None:
        parts = [
            {"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces)} for i, piece in enumerate(pieces)
        ]

        async def receive() -> Any:
            if parts:
                return parts.pop(0)
            await asyncio.Event().wait()
            return None

        async def send(message: Any) -> None:
            self.sent.append(message)

        await app(scope, receive, send)

    @property
    def error(self) -> Mapping[str, Any]:
        return json.loads(self.body)["error"]


@pytest.fixture
def app(registry: Make) -> Any:
    return build_app(registry(), Settings())


# ---------------------------------------------------------------- hosts and origins


@pytest.mark.parametrize("host", [b"127.0.0.1:1234", b"localhost:1234", b"LOCALHOST:1234", b"[::1]:1234"])
def test_our_names_are_taken(app: Any, host: bytes) -> None:
    assert Call(app, host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        None,
        b"",
        b"evil.example",
        b"evil.example:1234",
        b"127.0.0.1",
        b"127.0.0.1:80",
        b"localhost:12345",
        b"localhost.:1234",
        b"localhost:1234.evil.example",
        b"127.0.0.1:1234@evil.example",
        b"evil.example/?x=127.0.0.1:1234",
        b"evil.example#localhost:1234",
        b"127.1:1234",
        b"2130706433:1234",
        b"0.0.0.0:1234",
        b"[::ffff:127.0.0.1]:1234",
        b"localhost:1234, localhost:1234",
        "löcalhost:1234".encode(),
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("path", [PATH, "/v1/models", "/health", "/nowhere", "/v1/messages"])
def test_other_names_reach_no_route(app: Any, host: bytes | None, path: str) -> None:
    call = Call(app, "POST", path, host=host)
    assert call.status == 403
    assert "Host" in call.error["message"]


@given(host=st.one_of(st.binary(max_size=40), st.sampled_from([OURS, b"localhost"]).map(lambda own: own + b"x")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_other_name_is_ours(app: Any, host: bytes) -> None:
    ours = (OURS, b"localhost:1234", b"[::1]:1234")
    assert (Call(app, "GET", "/health", host=host).status == 200) == (host.strip().lower() in ours)


def test_one_host_only(app: Any) -> None:
    assert Call(app, headers=[(b"host", b"localhost:1234")]).status == 403
    assert Call(app, headers=[(b"host", OURS)]).status == 403


def test_names_that_were_allowed(registry: Make) -> None:
    app = build_app(registry(), Settings(allow_hosts=("box.lan", "other.lan:8080")))
    hosts = (b"box.lan", b"box.lan:1234", b"other.lan:8080", b"other.lan", b"other.lan:1234", b"box.lan:80")
    assert [Call(app, host=host).status for host in hosts] == [200, 200, 200, 403, 403, 403]


def test_the_address_that_was_connected_to_is_ours(registry: Make) -> None:
    app = build_app(registry(), Settings(host="0.0.0.0", api_key="k"))
    key = [(b"x-api-key", b"k")]
    address = ("192.168.1.5", 1234)
    assert Call(app, headers=key, host=b"192.168.1.5:1234", server=address).status == 200
    assert Call(app, headers=key, host=b"192.168.1.6:1234", server=address).status == 403
    assert Call(app, headers=key, host=b"evil.example:1234", server=("evil.example", 1234)).status == 403
    assert Call(app, headers=key, host=b"[fd00::5]:1234", server=("fd00::5", 1234)).status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"http://127.0.0.1:1234", 200),
        (b"http://localhost:1234", 403),
        (b"http://127.0.0.1:8080", 403),
        (b"https://evil.example", 403),
        (b"null", 403),
        (b"", 403),
        (b"app://obsidian.md", 403),
        (b"http://127.0.0.1:1234.evil.example", 403),
    ],
)
def test_pages_of_others_are_refused(app: Any, origin: bytes, status: int) -> None:
    call = Call(app, headers=[(b"origin", origin)])
    assert call.status == status
    assert "access-control-allow-origin" not in call.headers


@pytest.mark.parametrize(
    ("site", "status"),
    [(b"cross-site", 403), (b"same-site", 403), (b"odd", 403), (b"same-origin", 200), (b"none", 200)],
)
def test_requests_of_other_sites_are_refused(app: Any, site: bytes, status: int) -> None:
    assert Call(app, headers=[(b"sec-fetch-site", site)]).status == status


def test_the_mode_of_a_fetch_says_nothing(app: Any) -> None:
    for mode in (b"cors", b"navigate", b"no-cors", b"odd"):
        assert Call(app, headers=[(b"sec-fetch-mode", mode)]).status == 200


def test_an_allowed_origin_and_no_other(registry: Make) -> None:
    app = build_app(registry(), Settings(allow_origins=("app://obsidian.md",)))
    fetch = [(b"origin", b"app://obsidian.md"), (b"sec-fetch-site", b"cross-site")]
    call = Call(app, headers=fetch)
    assert (call.status, call.headers["access-control-allow-origin"]) == (200, "app://obsidian.md")
    assert call.headers["vary"] == "Origin"
    asks = [(b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"content-type, x-y")]
    flight = Call(app, "OPTIONS", headers=[*fetch, *asks])
    assert flight.status == 204
    assert flight.headers["access-control-allow-headers"] == "content-type, x-y"
    assert Call(app, "OPTIONS", headers=[(b"origin", b"https://evil.example"), *asks]).status == 403
    assert Call(app, headers=[(b"origin", b"app://obsidian.md.evil")]).status == 403
    assert "access-control-allow-origin" not in Call(app).headers


# ---------------------------------------------------------------- the key


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([(b"authorization", b"Bearer secret")], 200),
        ([(b"authorization", b"bearer secret")], 200),
        ([(b"x-api-key", b"secret")], 200),
        ([(b"x-api-key", b"secret"), (b"authorization", b"Bearer other")], 200),
        ([(b"authorization", b"Basic secret")], 401),
        ([(b"authorization", b"secret")], 401),
        ([(b"authorization", b"Bearer secre")], 401),
        ([(b"authorization", b"Bearer secrets")], 401),
        ([(b"authorization", b"Bearer ")], 401),
        ([(b"x-api-key", b"")], 401),
        ([(b"x-api-key", b"\xff\xfe")], 401),
        ([(b"x-api-key", b"secret"), (b"x-api-key", b"secret")], 403),
        ([(b"cookie", b"key=secret")], 401),
    ],
)
def test_the_key(registry: Make, headers: list[tuple[bytes, bytes]], status: int) -> None:
    app = build_app(registry(), Settings(api_key="secret"))
    call = Call(app, headers=headers)
    assert call.status == status
    if status == 401:
        assert call.headers["www-authenticate"] == "Bearer"
        assert "secret" not in call.body.decode()


def test_a_key_guards_every_route_but_a_few(registry: Make) -> None:
    app = build_app(registry(), Settings(api_key="secret"))
    for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nowhere"), ("GET", "/openapi.json")):
        assert Call(app, method, path).status == 401
    assert Call(app, "GET", "/health").status in (200, 404)


def test_other_machines_need_a_key() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "box.lan"):
        with pytest.raises(DataError, match="`api_key`"):
            Settings(host=host)
        assert Settings(host=host, api_key="k").api_key == "k"
    for host in ("127.0.0.1", "::1", "localhost", "127.5.5.5"):
        Settings(host=host)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": ""},
        {"api_key": "a b"},
        {"api_key": "é"},
        {"allow_hosts": ("a/b",)},
        {"allow_origins": ("*",)},
        {"allow_origins": ("x",)},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Settings(**settings)


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (b"application/json", 200),
        (b"Application/JSON; charset=UTF-8", 200),
        (b"text/plain", 415),
        (b"application/x-www-form-urlencoded", 415),
        (b"multipart/form-data; boundary=x", 415),
        (b"application/json; charset=latin-1", 415),
        (b"text/plain; application/json", 415),
        (b"", 415),
    ],
)
def test_bodies_are_json(app: Any, kind: bytes, status: int) -> None:
    assert Call(app, headers=[(b"content-type", kind)]).status == status


@pytest.mark.parametrize("chunks", [1, 7])
def test_bodies_have_a_bound(registry: Make, chunks: int) -> None:
    app = build_app(registry(), Settings(max_body=1000))
    assert Call(app, body=b" " * 900 + json.dumps(BODY).encode(), chunks=chunks).status == 200
    assert Call(app, body=b" " * 1000 + json.dumps(BODY).encode(), chunks=chunks).status == 413
    length = [(b"content-length", b"1001")]
    assert Call(app, headers=length, chunks=chunks).status == 413
    for odd in (b"-1", b"1e3", b"9" * 40, b"x"):
        assert Call(app, headers=[(b"content-length", odd)]).status in (400, 413)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"NaN",
        b'{"messages": NaN}',
        b'{"temperature": 1e999, "messages": []}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "tools": ' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_bodies_that_are_none(app: Any, body: bytes) -> None:
    call = Call(app, body=body)
    assert call.status == 400
    assert call.error["message"]


def test_depth_is_measured_without_parsing() -> None:
    assert not too_deep(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert too_deep(b"[" * (2 * MAX_DEPTH + 1) + b"]" * (2 * MAX_DEPTH + 1))
    assert not too_deep(b'{"a": "' + b"[{" * 10_000 + b'\\"]}"}')
    assert not too_deep(b"[" + b'{"a": [1, 2]}, ' * 10_000 + b"{}]")
    assert too_deep(b"[[]," * 5000)


def test_an_answer_has_no_ranges(app: Any) -> None:
    call = Call(app, headers=[(b"range", b"bytes=0-0," * 1000)])
    assert call.status == 200
    assert "content-range" not in call.headers


# ---------------------------------------------------------------- paths and errors


@pytest.mark.parametrize("path", ["/chat/completions", "//v1//chat/completions", "/v1/v1/chat/completions/", PATH])
def test_paths_as_clients_write_them(app: Any, path: str) -> None:
    assert Call(app, path=path).status == 200


def test_plain_paths() -> None:
    assert [plain_path(path) for path in ("/", "//", "/v1", "/a//b/", "/v1/v1/v1/x")] == [
        "/",
        "/",
        "/v1",
        "/a/b",
        "/v1/x",
    ]


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/chat/completions/more", "/../etc/passwd", "/v1/%00", "/\n"])
def test_nothing_there_is_json(app: Any, path: str) -> None:
    call = Call(app, path=path)
    assert (call.status, call.headers["content-type"]) == (404, "application/json")
    assert call.error["message"]


def test_other_methods(app: Any) -> None:
    call = Call(app, "DELETE")
    assert call.status == 405
    assert "POST" in call.error["message"]
    assert Call(app, "OPTIONS").status == 405


ROUTES = {
    PATH: BODY,
    "/v1/completions": {"prompt": "the"},
    "/v1/responses": {"model": "tiny", "input": "hi"},
    "/v1/messages": {"model": "tiny", "max_tokens": 5, **BODY},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ROUTES)
def test_exceptions_stay_in_the_log(
    registry: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str, stream: bool
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("at 0x7ffd1234 in /home/somebody")

    monkeypatch.setattr(replies, "prepare", broken)
    app = build_app(registry(), Settings())
    with caplog.at_level(logging.ERROR):
        call = Call(app, path=path, body={**ROUTES[path], "stream": stream})
    assert call.status == 500
    assert call.headers["x-request-id"] in call.error["message"]
    assert "0x7ffd1234" not in str(call.sent)
    assert "0x7ffd1234" in caplog.text


@pytest.mark.parametrize("path", ROUTES)
def test_exceptions_in_the_middle_of_a_stream(
    registry: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("at 0x7ffd1234")

    monkeypatch.setattr(replies.Reading, "ended", broken)
    app = build_app(registry(Script("the fox")), Settings())
    call = Call(app, path=path, body={**ROUTES[path], "stream": True})
    assert call.status == 200
    assert b"0x7ffd1234" not in call.body
    assert b"internal error" in call.body.split(b"data: ")[-1]
    assert "0x7ffd1234" in caplog.text


def test_every_answer_can_be_named_and_is_not_guessed_at(app: Any) -> None:
    for call in (Call(app), Call(app, path="/nowhere"), Call(app, body=b"{")):
        assert call.headers["x-request-id"].startswith("req_")
        assert call.headers["x-content-type-options"] == "nosniff"
        assert "server" not in call.headers


def test_raw_connections(served: Serve) -> None:
    """What no client library would send gets an answer, or the connection is closed; the server goes on."""
    server = served()
    port = str(server.port).encode()
    for raw in (
        b"GET / HTTP/1.1\r\nHost: localhost:" + port + b"\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:" + port + b"\r\nContent-Length: -5\r\n\r\n",
        b"\x16\x03\x01\x00\xff" + b"\x00" * 50,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.sendall(raw)
            answer = connection.recv(100)
        assert not answer or answer.split(b" ")[1] in (b"400", b"403", b"404"), answer
    assert server.post(PATH, BODY).status == 200
