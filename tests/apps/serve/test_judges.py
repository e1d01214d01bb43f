"""What programs that judge such servers find: schemas of whole answers, and requests that nobody would write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm_comply
import pytest
import schemathesis
from canitoolcall.probe import probe
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


def hermes(name: str, **arguments: Any) -> str:
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


NOTE = {"title": "Grüße aus Zürich", "body": "Café ☕ in 東京 — naïve résumé 🚀"}
PEOPLE = [{"name": "Ana", "email": "ana@example.com"}, {"name": "Bo", "email": "bo@example.com"}]
EVENT = {"title": "Design review", "attendees": PEOPLE, "location": {"city": "Berlin", "room": "4.12"}}
ANSWERS = {
    '"temp_c"': "It is 18 degrees and clear.",
    "right now?": hermes("get_weather", city="Paris"),
    "once per city": "\n".join(hermes("get_weather", city=city) for city in ("Paris", "Tokyo")),
    "17 + 25": "42",
    "Create an event": hermes("create_event", **EVENT),
    "Save a note titled": hermes("save_note", **NOTE),
    "What time is it": hermes("get_server_time"),
    "Lisbon": "\n".join(hermes("get_weather", city=city) for city in ("Lisbon", "Porto")),
    "step by step": hermes("record_answer", answer="9.9"),
}
"""What a good model says, by something in what it is asked."""


@pytest.mark.parametrize("form", [None, "thinking"])
def test_canitoolcall(served: Serve, form: str | None) -> None:
    """Its probe, to a model that says what it should: by a template that knows no tools, and with thoughts in front."""

    def play(request: Request) -> Script:
        text = server.registry.models["tiny"].text.tokenizer.decode(request.prompt)
        answer = next(answer for question, answer in ANSWERS.items() if question in text)
        return Script(answer if form is None else f"<think>\nLet me see: a <tool_call>?\n</think>\n\n{answer}")

    server = served(play, form, {"context": 1 << 14})
    report = probe(f"{server.url}/v1", "tiny")
    problems = [(each.scenario_id, each.stream, each.detail) for each in report.outcomes if each.status != "pass"]
    assert problems == []
    assert len(report.outcomes) == 27


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
        max_examples=15,
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
        answer = server.post(operation.path, body, {"x-partita-page": server.token})
        assert answer.status < 500, (operation.path, body, answer.body)
        if answer.status >= 400:
            error = answer.json["error"]  # Ollama's are text
            assert error if operation.path.startswith("/api/") else error["message"]
        elif not answer.data:
            assert answer.json

    one()
