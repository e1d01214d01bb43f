"""From a connection to a model in its own process and back: answers, clients that go away, processes that die."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import openai
import psutil
import pytest
from pydantic import BaseModel, Field

import partita
from partita_apps.serve.frames import Load
from partita_apps.serve.names import Names, entry
from partita_apps.serve.registry import Registry

from .served import Served, serving, until

CONTEXT = 4096
PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def long_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context that holds what a model without a template for tools is told of them."""
    folder = tmp_path_factory.mktemp("long") / "tiny"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    return folder


@pytest.fixture(scope="module")
def server(long_model: Path) -> Iterator[Served]:
    registry = Registry(Names([entry(str(long_model))], None), Load("", backend="torch", dtype="float32"))
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
    connection.request("POST", PATH, json.dumps(body(stream=stream, max_tokens=2000)), JSON)
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
    connection.request("POST", PATH, json.dumps(body(stream=True, max_tokens=2000)), JSON)
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


def test_a_model_is_not_unloaded_under_its_reply(long_model: Path) -> None:
    """However long that is in comparison; once idle it is, and then loaded again."""
    registry = Registry(Names([entry(str(long_model))], None), Load("", backend="torch", dtype="float32"), ttl=0.05)
    with serving(registry) as server:
        replies: list[str] = []
        for _ in range(2):
            answer = server.post(PATH, body(stream=True, max_tokens=400))
            assert answer.data[-1] == "[DONE]"
            assert answer.data[-2]["choices"][0]["finish_reason"] == "length"
            replies.append("".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answer.data[:-1]))
            until(lambda: not registry.workers())
        assert replies[0] == replies[1] != ""


class Place(BaseModel):
    city: str = Field(max_length=8)
    kind: Literal["town", "village"]
    inhabitants: int = Field(ge=0, le=99)


def test_a_schema_is_kept_whatever_is_drawn(server: Served) -> None:
    """By a model of random weights, as OpenAI's client asks for it."""

    def one(seed: int) -> Place | None:
        turns: Any = body()["messages"]
        found = client.chat.completions.parse(
            model="tiny", messages=turns, response_format=Place, temperature=1, seed=seed, max_tokens=200
        )
        return found.choices[0].message.parsed

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client, ThreadPoolExecutor(4) as pool:
        places = list(pool.map(one, range(12)))
    assert all(isinstance(place, Place) for place in places)
    assert len({place.city for place in places if place}) > 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_call_is_made_where_one_is_required(server: Served, choice: Any, stream: bool) -> None:
    schema = {"type": "object", "properties": {"place": {"enum": ["sky", "sea"]}}, "required": ["place"]}
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name in ("look", "hear")]
    request = body(tools=tools, tool_choice=choice, temperature=1, max_tokens=200, parallel_tool_calls=False)
    answer = server.post(PATH, {**request, "stream": stream})
    if stream:
        chunks = [chunk["choices"][0] for chunk in answer.data[:-1]]
        first, second = (call for chunk in chunks for call in chunk["delta"].get("tool_calls", ()))
        name, arguments, reason = (
            first["function"]["name"],
            second["function"]["arguments"],
            chunks[-1]["finish_reason"],
        )
    else:
        (found,) = answer.json["choices"]
        (call,) = found["message"]["tool_calls"]
        name, arguments, reason = call["function"]["name"], call["function"]["arguments"], found["finish_reason"]
    assert name in (("look",) if isinstance(choice, dict) else ("look", "hear"))
    assert json.loads(arguments)["place"] in ("sky", "sea")
    assert reason == "tool_calls"


@pytest.mark.parametrize(
    "schema",
    [{"type": "strin"}, {"not": {"type": "string"}}, {"type": "string", "pattern": "(?=a)"}, {"$ref": "http://a/b"}],
)
def test_a_schema_that_cannot_be_kept_is_refused(server: Served, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    answer = server.post(PATH, body(response_format=form))
    assert (answer.status, answer.json["error"]["param"]) == (400, "response_format")


def test_an_overflow_has_both_numbers(server: Served) -> None:
    error = server.post(PATH, body("the quick brown fox " * 2000)).json["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"{CONTEXT} tokens" in error["message"]


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
