"""The server as a process: signals, many clients at once, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn

from partita.engine.request import Request
from partita_apps.serve.listen import listening
from partita_apps.serve.server import build_app, serve, uvicorn_server
from partita_apps.serve.settings import Settings

from .scripted import Script, scripted
from .served import Served, until

Serve = Callable[..., Served]
PATH = "/v1/chat/completions"
ROUNDS = 12
"""More than a pool has threads, which it gets as they are needed: who leaves something behind does so every round."""
JSON = {"Content-Type": "application/json"}


def body(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def main(folder: str) -> None:
    """A server in a process of its own, whose replies take two seconds, or for ever; it says its port."""
    bound = listening("127.0.0.1", 0)
    port = bound.getsockname()[1]
    print(port, flush=True)

    def play(request: Request) -> Script:
        return Script("the quick brown fox jumps", pause=0.2, holds=request.max_tokens == 500)

    app = build_app(scripted(Path(folder), play, context=600), Settings(port=port))
    serve(app, "127.0.0.1", port, sockets=[bound], drain=60)


@pytest.fixture
def process(tiny_model: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    program = f"from tests.apps.serve.test_serving import main; main({str(tiny_model)!r})"
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as started:
        assert started.stdout is not None
        yield started, int(started.stdout.readline())
        started.kill()


def connected(port: int, **more: Any) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", PATH, json.dumps(body(stream=True, **more)), JSON)
    return connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_replies_end(process: tuple[subprocess.Popen[str], int], number: int) -> None:
    started, port = process
    connection = connected(port)
    answer = connection.getresponse()
    answer.read(20)
    started.send_signal(number)
    assert answer.read().endswith(b"data: [DONE]\n\n")
    connection.close()
    assert started.wait(20) == 0
    with pytest.raises(OSError, match="refused"):
        connected(port)


def test_ctrl_c_does_not_wait_for_what_is_left(process: tuple[subprocess.Popen[str], int]) -> None:
    started, port = process
    connection = connected(port, max_tokens=500)
    answer = connection.getresponse()
    answer.read(20)
    started.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(1)
    started.send_signal(signal.SIGINT)
    assert started.wait(10) == 0
    connection.close()


@asynccontextmanager
async def in_this_loop() -> AsyncGenerator[tuple[uvicorn.Server, socket.socket], None]:
    """A server that sends more than a connection holds, and its listener."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1 << 26)})

    config = uvicorn.Config(app, http="h11", ws="none", log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server, bound = uvicorn_server(config, lambda: None), listening("127.0.0.1", 0)
    running = asyncio.create_task(server.serve([bound]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield server, bound
    server.should_exit = True
    await running


@pytest.mark.parametrize("turns", range(6))
def test_a_connection_of_the_last_moment_is_closed(turns: int) -> None:
    """One that is accepted while the server begins to end: whoever made it would wait for an answer. turns: of the
    event loop between the two."""

    async def test() -> None:
        async with in_this_loop() as (server, bound):
            with socket.create_connection(bound.getsockname(), timeout=20) as late:
                for _ in range(turns):
                    await asyncio.sleep(0)
                await server.shutdown([bound])
                assert not server.server_state.connections
                with suppress(ConnectionResetError):  # it was not accepted yet
                    assert late.recv(1) == b""

    asyncio.run(test())


def test_a_connection_that_nobody_reads_is_closed() -> None:
    async def test() -> None:
        async with in_this_loop() as (server, bound):
            with socket.create_connection(bound.getsockname(), timeout=20) as idle:
                idle.sendall(b"GET / HTTP/1.1\r\nHost: it\r\n\r\n")
                while not server.server_state.total_requests:
                    await asyncio.sleep(0.01)
                await server.shutdown([bound])
                await asyncio.sleep(0)
                assert not server.server_state.connections

    asyncio.run(test())


def test_many_clients_get_their_own_replies(served: Serve) -> None:
    server = served(lambda request: Script(f"{len(request.prompt)} is the fox", pause=0.001))

    def one(i: int) -> bool:
        text = "the fox " * (i % 16 + 1)
        expected = f"{server.post('/tokenize', body(text)).json['count']} is the fox"
        data = server.post(PATH, body(text, stream=i % 2 == 0)).data
        if not data:
            return server.post(PATH, body(text)).json["choices"][0]["message"]["content"] == expected
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in data[:-1]) == expected

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(64)))
    assert not server.worker.running
    assert not server.worker.cancelled


def test_nothing_is_left_behind(served: Serve) -> None:
    """Of replies that end, that are refused, and whose clients go away: no descriptor, no thread, no task."""
    server = served(lambda request: Script("the fox", holds=request.max_tokens == 3))

    def round_of_requests() -> None:
        for i in range(30):
            server.post(PATH, body(str(i), stream=i % 2 == 0))
            server.post(PATH, body(n=9))
            gone = server.connect()
            gone.request("POST", PATH, json.dumps(body(max_tokens=3, stream=i % 2 == 0)), JSON)
            until(lambda: server.worker.running)
            gone.close()
            until(lambda: not server.worker.running)

    def held() -> tuple[int, int]:
        gc.collect()
        return psutil.Process().num_fds(), threading.active_count()

    def settles(most: tuple[int, int]) -> bool:
        end = time.monotonic() + 2
        while any(now > allowed for now, allowed in zip(held(), most, strict=True)):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    seen = [held()]
    for _ in range(ROUNDS):
        round_of_requests()
        if settles(seen[-1]):
            return
        seen.append(held())
    pytest.fail(f"descriptors and threads after each round: {seen}")
