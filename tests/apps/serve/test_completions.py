"""Completions of plain text, over a real connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from .scripted import Script
from .served import Served

Serve = Callable[..., Served]
PATH = "/v1/completions"


def body(prompt: Any = "the quick", **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, **more}


def test_whole_and_streamed(served: Serve, client: Callable[[Served], openai.OpenAI]) -> None:
    server = served(Script(" brown fox"))
    found = client(server).completions.create(**body())
    assert (found.choices[0].text, found.choices[0].finish_reason) == (" brown fox", "stop")
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(server.worker.requests[-1].prompt)
    chunks = list(client(server).completions.create(**body(), stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == " brown fox"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None


def test_control_tokens_and_ids(served: Serve) -> None:
    server = served()
    text = "<|im_start|>the quick"
    server.post(PATH, body(text))
    ids = server.worker.requests[-1].prompt
    assert ids == server.registry.models["tiny"].text.tokenizer.encode(text, specials=True)
    server.post(PATH, body(ids))
    assert server.worker.requests[-1].prompt == ids


def test_several_prompts_and_replies(served: Serve) -> None:
    server = served(lambda request: Script(f" {len(request.prompt)}"))
    tokenizer = server.registry.models["tiny"].text.tokenizer
    prompts = ["the", "the quick brown"]
    answer = server.post(PATH, body(prompts, n=2)).json
    counts = [len(tokenizer.encode(prompt)) for prompt in prompts]
    assert [choice["text"] for choice in answer["choices"]] == [f" {counts[0]}"] * 2 + [f" {counts[1]}"] * 2
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == sum(counts)
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    assert [choice["text"] for choice in server.post(PATH, body(ids)).json["choices"]] == [f" {n}" for n in counts]


@pytest.mark.parametrize("stream", [False, True])
def test_echo(served: Serve, stream: bool) -> None:
    server = served(Script(" brown"))
    ids = server.registry.models["tiny"].text.tokenizer.encode("the quick")
    for prompt in ("the quick", ids):
        answer = server.post(PATH, body(prompt, echo=True, stream=stream))
        documents = [each for each in answer.data if each != "[DONE]"] or [answer.json]
        assert "".join(each["choices"][0]["text"] for each in documents) == "the quick brown"


def test_log_probabilities(served: Serve) -> None:
    server = served(Script(" brown fox"))
    found = server.post(PATH, body(logprobs=2)).json["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == " brown fox"
    assert all(len(top) == 2 for top in found["top_logprobs"])
    assert found["text_offset"][0] == 0
    steps = [b - a for a, b in zip(found["text_offset"], found["text_offset"][1:], strict=False)]
    assert steps == [len(token) for token in found["tokens"][:-1]]
    assert server.post(PATH, body()).json["choices"][0]["logprobs"] is None
    assert server.post(PATH, body(logprobs=0)).json["choices"][0]["logprobs"]["tokens"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "end"),
        ("best_of", 3),
        ("logprobs", 21),
        ("logprobs", -1),
        ("max_tokens", 0),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", 3),
        ("prompt", None),
        ("prompt", [-1]),
        ("prompt", [[1], "x"]),
        ("prompt", [2**31]),
        ("prompt", [999_999]),
        ("prompt", ["x"] * 65),
        ("prompt", ""),
        ("response_format", {"type": "xml"}),
    ],
)
def test_fields_that_cannot_be_done_are_named(served: Serve, field: str, value: Any) -> None:
    answer = served().post(PATH, {**body(), field: value})
    assert answer.status == 400, answer.body
    assert answer.json["error"]["param"].split("[")[0] == field


def test_echo_has_no_log_probabilities_of_the_prompt(served: Serve) -> None:
    assert served().post(PATH, body(echo=True, logprobs=1)).json["error"]["param"] == "logprobs"


def test_an_overflow(served: Serve) -> None:
    answer = served(text={"context": 8}).post(PATH, body("the quick brown fox " * 9))
    assert answer.json["error"]["code"] == "context_length_exceeded"
    assert answer.json["error"]["param"] == "prompt"
