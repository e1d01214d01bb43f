"""From a connection to a model in its own process and back: answers, clients that go away, processes that die."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import partita
from partita_apps.serve.frames import Load
from partita_apps.serve.names import Names, entry
from partita_apps.serve.registry import Registry

from .served import Served, serving, until

PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Served]:
    registry = Registry(Names([entry(str(tiny_model))], None), Load("", backend="torch", dtype="float32"))
    with serving(registry) as served:
        yield served


def body(text: str = "the fox", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24, **more}


def said(server: Served, request: dict[str, Any]) -> str:
    answer = server.post(PATH, request)
    if not request.get("stream"):
        return answer.json["choices"][0]["message"]["content"]
    assert answer.data[-1] == "[DONE]"
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answer.data[:-1])


def worker(server: Served) -> Any:
    return server.registry.workers()["tiny"]


def rows(server: Served) -> int:
    beat = worker(server).beat
    return -1 if beat is None else beat.rows + beat.prefilling + beat.waiting


def test_each_greedy_reply_is_that_of_the_model_alone(server: Served, tiny_model: Path) -> None:
    """Of prompts of different lengths that are computed together, streamed or not."""
    model = partita.load(tiny_model, backend="torch", dtype="float32")
    texts = [f"{'the quick brown fox ' * (i % 6)}{i}" for i in range(24)]
    alone = ["".join(piece.text for piece in partita.generate(model, text, max_tokens=24)) for text in texts]
    requests = [body(text, stream=i % 2 == 0) for i, text in enumerate(texts)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda request: said(server, request), requests))
    assert together == alone


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(server: Served, stream: bool) -> None:
    said(server, body())
    connection = server.connect()
    connection.request("POST", PATH, json.dumps(body(stream=stream, max_tokens=400)), JSON)
    until(lambda: rows(server) > 0)
    connection.close()
    until(lambda: rows(server) == 0, 2)


def test_seeds_repeat(server: Served) -> None:
    drawn = body(temperature=1.5, seed=11)
    first = said(server, drawn)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda request: said(server, request), [drawn, body("others", temperature=1.5), drawn]))
    assert again[0] == again[2] == first != again[1]


def test_a_process_that_is_killed(server: Served) -> None:
    """Its clients are told, and the next request is answered by another one."""
    expected = said(server, body())
    connection = server.connect()
    connection.request("POST", PATH, json.dumps(body(stream=True, max_tokens=400)), JSON)
    answer = connection.getresponse()
    answer.read(50)
    before = worker(server).pid
    os.kill(before, signal.SIGKILL)
    last = answer.read().split(b"data: ")[-1]
    connection.close()
    assert json.loads(last)["error"]["type"] == "server_error"
    assert said(server, body()) == expected
    assert worker(server).pid != before
    assert not psutil.pid_exists(before)


def test_an_overflow_has_both_numbers(server: Served) -> None:
    error = server.post(PATH, body("the quick brown fox " * 200)).json["error"]
    assert error["code"] == "context_length_exceeded"
    assert "512 tokens" in error["message"]


def test_a_full_queue(tiny_model: Path) -> None:
    load = Load("", backend="torch", dtype="float32", max_waiting=1)
    with serving(Registry(Names([entry(str(tiny_model))], None), load)) as server, ThreadPoolExecutor(64) as pool:
        said(server, body())
        requests = [body(f"{i} the fox", max_tokens=300) for i in range(64)]
        answers = list(pool.map(lambda request: server.post(PATH, request), requests))
    refused = [answer for answer in answers if answer.status != 200]
    assert refused
    assert {answer.status for answer in refused} == {429}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert all(answer.json["error"]["code"] == "rate_limit_exceeded" for answer in refused)
