"""Fields and errors of Chat Completions: what is done, what is refused by name, what is listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from partita.engine.request import Failed

from .scripted import Script
from .served import Served, until
from .test_chat_completions import PATH, body, prompt

Serve = Callable[..., Served]
Client = Callable[[Served], openai.OpenAI]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", 1e9),
        ("top_p", 1.5),
        ("top_k", -2),
        ("n", 0),
        ("n", 9),
        ("n", 10**30),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_completion_tokens", 2**70),
        ("seed", -1),
        ("stop", ["x"] * 17),
        ("stop", 3),
        ("top_logprobs", 21),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"99999999": 1}),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("reasoning_effort", "heroic"),
        ("modalities", ["audio"]),
        ("audio", {"voice": "x"}),
        ("functions", [{"name": "x"}]),
        ("guided_json", {"type": "object"}),
        ("chat_template_kwargs", {"messages": []}),
        ("chat_template_kwargs", {"tools": []}),
        ("stream", "yes"),
    ],
)
def test_fields_that_cannot_be_done_are_named(served: Serve, field: str, value: Any) -> None:
    answer = served().post(PATH, body(**{field: value}, **({"logprobs": True} if field == "top_logprobs" else {})))
    assert answer.status == 400, answer.body
    assert answer.json["error"]["param"].split(".")[0].split("[")[0] == field
    assert field in answer.json["error"]["message"]
    assert answer.json["error"]["type"] == "invalid_request_error"


def test_hints_and_unknown_fields_are_listed(served: Serve) -> None:
    more = {"user": "me", "store": False, "metadata": {"a": "b"}, "frobnicate": 1}
    for stream in (False, True):
        answer = served().post(PATH, body(stream=stream, **more))
        assert answer.status == 200
        assert answer.headers["x-partita-ignored"] == "user, store, metadata, frobnicate"
    assert served(strict=True).post(PATH, body(user="me")).status == 200
    answer = served(strict=True).post(PATH, body(frobnicate=1))
    assert (answer.status, answer.json["error"]["param"]) == (400, "frobnicate")


def test_fields_reach_the_engine(served: Serve) -> None:
    server = served()
    more = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 3, "frequency_penalty": 0.5}
    server.post(PATH, body(**more, logit_bias={"5": -100}, stop="x"))
    request = server.worker.requests[-1]
    assert {name: getattr(request.sampling, name) for name in more} == more
    assert request.logit_bias == {5: -100}
    server.post(PATH, body(temperature=1e-6))
    assert server.worker.requests[-1].sampling.temperature == 0
    server.post(PATH, body(top_p=0))
    assert server.worker.requests[-1].sampling.top_k == 1


def test_an_effort_reaches_the_template(served: Serve) -> None:
    server = served(form="gemma4")
    server.post(PATH, body())
    without = prompt(server)
    server.post(PATH, body(reasoning_effort="high"))
    assert prompt(server) != without
    server.post(PATH, body(chat_template_kwargs={"enable_thinking": True}))
    assert prompt(server) != without
    server.post(PATH, body(enable_thinking=True))
    assert prompt(server) != without
    server.post(PATH, body(reasoning_effort="none"))
    assert prompt(server) == without


def test_several_replies(served: Serve, client: Client) -> None:
    server = served([Script("the"), Script("fox"), Script("dog")])
    found = client(server).chat.completions.create(**body(n=3, seed=5))
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert {choice.message.content for choice in found.choices} == {"the", "fox", "dog"}
    assert sorted(request.sampling.seed for request in server.worker.requests) == [5, 6, 7]
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(prompt(server))
    chunks = list(client(server).chat.completions.create(**body(n=3), stream=True))
    for i in range(3):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == i]
        assert "".join(choice.delta.content or "" for choice in mine) == "dog"
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["stop"]


def test_log_probabilities(served: Serve, client: Client) -> None:
    server = served(Script("the quick brown"))
    whole = client(server).chat.completions.create(**body(logprobs=True, top_logprobs=2)).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    assert "".join(token.token for token in whole.content) == "the quick brown"
    assert all(len(token.top_logprobs) == 2 for token in whole.content)
    data = server.post(PATH, body(logprobs=True, top_logprobs=2, stream=True)).data[:-1]
    streamed = [token for chunk in data for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [token["token"] for token in streamed] == [token.token for token in whole.content]
    assert server.post(PATH, body()).json["choices"][0]["logprobs"] is None


def test_a_stop_string(served: Serve) -> None:
    server = served(Script("the quick brown fox", holds=True))
    choice = server.post(PATH, body(stop=["brown", "zzz"])).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("the quick ", "stop")
    until(lambda: server.worker.cancelled == [1])


# ---------------------------------------------------------------- errors


def test_an_overflow_in_the_words_that_clients_know(served: Serve, client: Client) -> None:
    server = served(text={"context": 16})
    for stream in (False, True):
        answer = server.post(PATH, body("the quick brown fox " * 20, stream=stream))
        assert answer.status == 400
        error = answer.json["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["message"].startswith("This model's maximum context length is 16 tokens. However, your messages")
    with pytest.raises(openai.BadRequestError) as found:
        client(server).chat.completions.create(**body("the quick brown fox " * 20))
    assert found.value.code == "context_length_exceeded"


@pytest.mark.parametrize(("kind", "status"), [("input", 400), ("memory", 400), ("busy", 429), ("internal", 503)])
def test_what_fails_before_the_reply(served: Serve, kind: Any, status: int) -> None:
    """Streamed or not, it is an answer with a status."""
    server = served(Script(refuses=Failed(0, "why", kind)))
    for stream in (False, True):
        answer = server.post(PATH, body(stream=stream))
        assert (answer.status, answer.json["error"]["message"]) == (status, "why")
        assert ("retry-after" in answer.headers) == (kind == "busy")


def test_what_fails_in_a_stream_is_its_last_event(served: Serve) -> None:
    data = served(Script("the fox", fails=Failed(0, "the process ended"))).post(PATH, body(stream=True)).data
    assert data[-1]["error"]["message"] == "the process ended"
    assert all(not chunk["choices"][0]["finish_reason"] for chunk in data[:-1])


def test_a_model_that_is_not_there(served: Serve, client: Client) -> None:
    for stream in (False, True):
        answer = served().post(PATH, {**body(stream=stream), "model": "../../etc/passwd"})
        assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
    with pytest.raises(openai.NotFoundError):
        client(served()).chat.completions.create(**{**body(), "model": "nobody"})


def test_without_a_model_the_first_answers(served: Serve) -> None:
    answer = served().post(PATH, {"messages": [{"role": "user", "content": "hi"}]})
    assert answer.json["model"] == "tiny"


def test_a_warning_is_said(served: Serve) -> None:
    server = served(Script("the", warns=("the schema of look is not enforced",)))
    assert server.post(PATH, body()).headers["x-partita-warnings"] == "the schema of look is not enforced"
    assert b"\n: the schema of look is not enforced\n" in server.post(PATH, body(stream=True)).body
