"""The application over a real uvicorn on a port of the loopback, in a thread; and a client that shows raw answers."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from partita_apps.serve.listen import listening
from partita_apps.serve.replies import Models
from partita_apps.serve.server import build_app, uvicorn_server
from partita_apps.serve.settings import Settings

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> list[Any]:
        """Of a stream of events, in order; "[DONE]" as text."""
        lines = [line for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [text if (text := line[6:]) == "[DONE]" else json.loads(text) for line in lines]


@dataclass(frozen=True)
class Served:
    registry: Any
    port: int
    token: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def worker(self) -> Any:
        """Of a scripted registry."""
        return self.registry.models["tiny"].worker

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """body: bytes as they are, else JSON, None for none."""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {**({} if body is None else JSON), **(headers or {})})
            found = connection.getresponse()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("GET", path, None, headers)


@contextmanager
def serving(registry: Models, **settings: Any) -> Iterator[Served]:
    """settings: of `Settings`, but for the port, which is any that is free."""
    bound = listening("127.0.0.1", 0)
    port = bound.getsockname()[1]
    app = build_app(registry, Settings(port=port, **settings))
    config = uvicorn.Config(app, http="h11", ws="none", log_config=None, lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn_server(config, app.leave)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield Served(registry, port, app.token)
    finally:
        server.should_exit = True
        thread.join()


def until(holds: Any, seconds: float = 10) -> None:
    """Wait for something to hold."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)
