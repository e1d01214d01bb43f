"""Where the server listens: the usual port, the next one, a server that is there already, and what cannot be."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from partita.errors import DataError
from partita_apps.serve import listen


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> int:
    """A usual port for this test, with some free ones behind it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = min(probe.getsockname()[1], 60_000)
    monkeypatch.setattr(listen, "PORT", port)
    monkeypatch.setattr(listen, "TRIES", 50)
    return port


def answering(documents: dict[str, object]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(documents.get(self.path, {})).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ours() -> Iterator[int]:
    yield from answering({"/health": {"partita": "0"}, "/v1/models": {"data": [{"id": "smollm2"}]}})


@pytest.fixture
def strange() -> Iterator[int]:
    yield from answering({"/health": {"status": "ok"}})


def test_the_usual_port_and_then_the_next(base: int) -> None:
    with listen.listening("127.0.0.1", None) as first, listen.listening("127.0.0.1", None) as second:
        ports = first.getsockname()[1], second.getsockname()[1]
    assert base <= ports[0] < ports[1] <= base + 50


def test_a_port_that_was_asked_for_is_that_one() -> None:
    with listen.listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"`port` {port} is taken on 127.0.0.1") as error:
            listen.listening("127.0.0.1", port)
    assert error.value.field == "port"


def test_a_host_of_another_machine() -> None:
    with pytest.raises(DataError, match="no address of this machine"):
        listen.listening("192.0.2.1", 0)
    with pytest.raises(DataError, match="no address of this machine"):
        listen.listening("no.such.host.invalid", 0)


def test_our_server_is_known_by_its_answer(ours: int, strange: int) -> None:
    found = listen.running("127.0.0.1", ours)
    assert found == listen.Running(f"http://127.0.0.1:{ours}", frozenset({"smollm2"}))
    assert listen.running("127.0.0.1", strange) is None


def test_nobody_listens_or_nobody_answers(base: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "SECONDS", 0.1)
    assert listen.running("127.0.0.1", base) is None
    with listen.listening("127.0.0.1", 0) as silent:
        assert listen.running("127.0.0.1", silent.getsockname()[1]) is None


HERE = ("127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]")
ELSEWHERE = ("0.0.0.0", "::", "192.168.1.2", "localhost.example", "")


@pytest.mark.parametrize("host", [*HERE, *ELSEWHERE])
def test_loopback(host: str) -> None:
    assert listen.is_loopback(host) is (host in HERE)


def test_addresses_as_a_browser_takes_them() -> None:
    assert listen.url_of("127.0.0.1", 1234) == "http://127.0.0.1:1234"
    assert listen.url_of("::1", 1234) == "http://[::1]:1234"
