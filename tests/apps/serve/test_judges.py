"""What programs that judge such servers find: schemas of whole answers, and requests that nobody would write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm_comply
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from llm_comply import runner, schema
from llm_comply.config import ComplianceConfig
from llm_comply.tests import get_tests
from schemathesis import GenerationMode

from partita.engine.request import Request

from .scripted import Script
from .served import Served, serving

Serve = Callable[..., Served]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Paris"}}\n</tool_call>'
SPECS = Path(llm_comply.__file__).parent / "specs"
NAME = "o1-claude-4"
"""Only models with such names are asked to think."""
SCHEMAS = {
    "openai-chat": "openai_chat.json",
    "open-responses": "openresponses.json",
    "anthropic": "anthropic.json",
}
_PICTURE = "these are models of text: an image is refused by name"
UNDONE = {
    **dict.fromkeys(("chat-image-input", "image-input", "anth-image-input"), _PICTURE),
    "reasoning-summary": "thoughts are given as they are, and never as a summary",
    "compact-response": "the server keeps nothing, and cannot read again what only it could: there is no such route",
}
"""What a judge wants and is not done, and why."""
OLD_RESOLVER = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")  # llm-comply's own use


def judgements(*formats: str) -> list[Any]:
    return [
        pytest.param(each, case, id=case.id) for each in formats for case in get_tests(each) if case.id not in UNDONE
    ]


@OLD_RESOLVER
@pytest.mark.parametrize(("form", "case"), judgements(*SCHEMAS))
def test_llm_comply(served: Serve, form: str, case: Any) -> None:
    """Every case in full, warnings too."""
    unknown = form == "open-responses" and case.streaming  # to its schemas: the events of a thought
    thought = "" if unknown else "<think>\nwell\n</think>\n\n"

    def play(request: Request) -> Script:
        return Script(f"{thought}{CALL if 'tool' in case.id else 'hello'}")

    server = served(play, "thinking", {"name": NAME}, strict=True)
    config = ComplianceConfig(f"{server.url}/v1", "none", NAME)
    spec = schema.SpecLoader(str(SPECS / SCHEMAS[form]))
    result = runner.TestRunner(config, [case], spec).run_one(case)
    assert (result.status.value, result.errors, result.warnings) == ("passed", [], [])


@OLD_RESOLVER
@pytest.mark.parametrize(
    "more", [{}, {"logprobs": True, "top_logprobs": 2}, {"stream_options": {"include_usage": True}}]
)
def test_every_chunk_is_of_the_schema(served: Serve, more: dict[str, Any]) -> None:
    server = served(Script(f"<think>\nwell\n</think>\n\nhello{CALL}"), "thinking")
    tool = {"type": "function", "function": {"name": "get_weather"}}
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool], "stream": True, **more}
    spec = schema.SpecLoader(str(SPECS / "openai_chat.json"))
    null = ("choices.0.finish_reason: None is not one of", "usage: None is not of type")  # OpenAI's own are null there
    for chunk in server.post("/v1/chat/completions", body).data[:-1]:
        errors = spec.validate(chunk, "CreateChatCompletionStreamResponse")
        assert [error for error in errors if not error.startswith(null)] == []


@pytest.fixture(scope="module")
def description(tiny_model: Path) -> Any:
    from .scripted import scripted

    with serving(scripted(tiny_model, Script("the fox"))) as server:
        yield server, server.get("/openapi.json").json


def test_schemathesis(description: tuple[Served, dict[str, Any]]) -> None:
    """Bodies as they are described and as they are not: never a fault of the server's, always JSON."""
    server, document = description
    loaded = schemathesis.openapi.from_dict(document)
    for result in loaded.get_all_operations():
        operation = result.ok()
        if operation.body:
            for mode in GenerationMode:
                attack(server, operation, mode)


def attack(server: Served, operation: Any, mode: GenerationMode) -> None:
    @settings(
        max_examples=25,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        derandomize=True,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        try:
            body = json.dumps(case.body).encode()
        except (TypeError, ValueError):  # bytes, or what stands for nothing at all
            body = b""
        answer = server.post(operation.path, body)
        assert answer.status < 500, (operation.path, body, answer.body)
        if answer.status >= 400:
            error = answer.json["error"]  # Ollama's are text
            assert error if operation.path.startswith("/api/") else error["message"]
        elif not answer.data:
            assert answer.json

    one()
