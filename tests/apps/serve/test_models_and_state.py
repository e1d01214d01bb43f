"""The list of models, tokens of texts, and what the server says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest

import partita
from partita_apps.serve.api.errors import document, message, status
from partita_apps.serve.asked import Refused
from partita_apps.serve.registry import Description

from .scripted import Script, ScriptedRegistry
from .served import Served

Serve = Callable[..., Served]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "the fox"}]}


def test_models_for_both_clients(served: Serve) -> None:
    server = served(text={"context": 99})
    server.registry.adapters = ("poet",)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["tiny", "tiny:poet"]
        assert client.models.retrieve("tiny").created == 1_700_000_000
    with anthropic.Anthropic(base_url=server.url, api_key="none") as other:
        assert [model.id for model in other.models.list()] == ["tiny", "tiny:poet"]
        assert other.models.retrieve("tiny").display_name == "tiny"
    for path in ("/v1/models", "/models"):
        first, second = server.get(path).json["data"]
        assert first["max_model_len"] == first["context_length"] == first["meta"]["n_ctx"] == 99
        assert (second["parent"], first["parent"]) == ("tiny", None)
    assert server.get("/v1/models/nobody").status == 404
    assert server.get("/v1/models/tiny").json["id"] == "tiny"


def test_names_with_slashes(served: Serve) -> None:
    server = served()
    server.registry.models = {"owner/name": server.registry.models["tiny"]}
    for path in ("/v1/models/owner/name", "/v1/models/owner%2Fname"):
        assert server.get(path).json["id"] == "owner/name"
    assert server.get("/v1/models/../../etc/passwd").status == 404


def test_tokens_there_and_back(served: Serve) -> None:
    server = served(text={"context": 99})
    tokenizer = server.registry.models["tiny"].text.tokenizer
    for field in ("content", "prompt", "text"):
        found = server.post("/tokenize", {field: "the quick"}).json
        assert found == {"tokens": tokenizer.encode("the quick"), "count": len(found["tokens"]), "max_model_len": 99}
    assert server.post("/v1/detokenize", {"tokens": found["tokens"]}).json["content"] == "the quick"
    pieces = server.post("/tokenize", {"content": "the quick", "with_pieces": True}).json["tokens"]
    assert "".join(piece["piece"] for piece in pieces) == "the quick"
    parsed, plain = (
        server.post("/tokenize", {"content": "<|im_end|>", "parse_special": parse}).json["count"]
        for parse in (True, False)
    )
    assert (parsed, plain > 1) == (1, True)


def test_tokens_of_a_conversation_are_those_of_its_reply(served: Serve) -> None:
    server = served()
    server.post("/v1/chat/completions", CHAT)
    assert server.post("/tokenize", CHAT).json["tokens"] == server.worker.requests[-1].prompt


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": "a", "prompt": "b"}),
        ("/tokenize", {"content": 3}),
        ("/tokenize", {"messages": "x"}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**8]}),
        ("/detokenize", {"tokens": ["x"]}),
    ],
)
def test_tokens_that_cannot_be(served: Serve, path: str, body: Any) -> None:
    answer = served().post(path, body)
    assert answer.status == 400
    assert answer.json["error"]["param"]


def test_health(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key, and of the processes that compute, not of this one."""
    server = served(api_key="secret")
    found = server.get("/health")
    assert (found.status, found.json["partita"]) == (200, partita.__version__)
    assert found.json["models"] == {"unloaded": 0, "loading": 0, "loaded": 1}
    assert server.ask("HEAD", "/").status == 200
    assert server.ask("HEAD", "/health").status == 200
    real = ScriptedRegistry.describe

    def dead(self: ScriptedRegistry, name: str) -> Description:
        return replace(real(self, name), state="unloaded", pinned=True)

    monkeypatch.setattr(ScriptedRegistry, "describe", dead)
    found = server.get("/health")
    assert (found.status, found.json["status"]) == (503, "unavailable")


def test_metrics(served: Serve) -> None:
    server = served(Script("the quick brown", reused=1))
    server.post("/v1/chat/completions", CHAT)
    server.post("/v1/chat/completions", {})
    server.get("/nowhere")
    text = server.get("/metrics").body.decode()
    request = server.worker.requests[-1]
    assert 'partita_http_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'partita_http_requests_total{route="/v1/chat/completions",status="400"} 1.0' in text
    assert 'partita_http_requests_total{route="unknown",status="404"} 1.0' in text
    assert f"partita_prompt_tokens_total {float(len(request.prompt))}" in text
    assert "partita_cached_tokens_total 1.0" in text
    assert 'partita_replies_total{reason="stop"} 1.0' in text
    assert "partita_first_token_seconds_count 1.0" in text


def test_the_description_has_every_route(served: Serve) -> None:
    server = served()
    found = server.get("/openapi.json").json
    assert found["openapi"].startswith("3.1")
    operation = found["paths"]["/v1/chat/completions"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = found["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert {"messages", "temperature", "tools"} <= schema["properties"].keys()
    assert {"/v1/completions", "/v1/models/{name}", "/v1/tokenize", "/health", "/metrics"} <= found["paths"].keys()


# ---------------------------------------------------------------- errors


def test_an_overflow_is_worded_as_each_client_reads_it() -> None:
    why = Refused("too long", "context", needed=9000, limit=8192)
    assert message(why, "anthropic") == "prompt is too long: 9000 tokens > 8192 maximum"
    assert message(why, "openai").startswith("This model's maximum context length is 8192 tokens. However, ")
    assert document(why, "openai")["error"]["code"] == "context_length_exceeded"
    assert document(why, "anthropic")["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("why", "code", "kind"),
    [
        (Refused("", "invalid"), 400, "invalid_request_error"),
        (Refused("", "unauthorized"), 401, "authentication_error"),
        (Refused("", "forbidden"), 403, "permission_error"),
        (Refused("", "not_found"), 404, "not_found_error"),
        (Refused("", "too_large"), 413, "request_too_large"),
        (Refused("", "busy"), 429, "rate_limit_error"),
        (Refused("", "memory"), 400, "invalid_request_error"),
        (Refused("", "memory", retry_after=5), 503, "overloaded_error"),
        (Refused("", "engine"), 503, "overloaded_error"),
        (Refused("", "internal"), 500, "api_error"),
    ],
)
def test_statuses(why: Refused, code: int, kind: str) -> None:
    assert status(why) == code
    assert document(why, "anthropic")["error"]["type"] == kind
