"""What llm-comply, which holds answers against the vendors' own schemas, says of Responses and Messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm_comply
import pytest
from llm_comply import runner, tests
from llm_comply.config import ComplianceConfig
from llm_comply.schema import SpecLoader

from partita.engine.request import Request

from .scripted import Script
from .served import Served

Serve = Callable[..., Served]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "San Francisco"}}\n</tool_call>'
THINKS = "claude-4"
"""A model that is asked for thoughts because of its name."""
PICTURES = "HTTP 400 (expected [200])"
"""A model of text refuses pictures by name."""


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
@pytest.mark.parametrize(
    ("suite", "schemas", "pictures", "skipped"),
    [
        ("open-responses", "openresponses.json", "image-input", {"reasoning-summary"}),  # it wants OpenAI's names
        ("anthropic", "anthropic.json", "anth-image-input", set[str]()),
    ],
)
def test_compliance(served: Serve, suite: str, schemas: str, pictures: str, skipped: set[str]) -> None:
    server: Any = None

    def play(request: Request) -> Script:
        asked = server.registry.models[THINKS].text.tokenizer.decode(request.prompt)
        if "weather" in asked:
            return Script(CALL)
        return Script(f"{'<think>hm</think>' if 'reasoning' in asked else ''}the quick brown fox")

    server = served(play, "thinking", text={"context": 4096, "name": THINKS})
    config = ComplianceConfig(f"{server.url}/v1", "none", THINKS)
    specifications = SpecLoader(str(Path(llm_comply.__file__).parent / "specs" / schemas))
    results = runner.TestRunner(config, tests.get_tests(suite), specifications).run_all().results
    found = {status: {each.id for each in results if each.status.name == status} for status in ("FAILED", "SKIPPED")}
    errors = {each.id: each.errors for each in results if each.errors}
    assert found == {"FAILED": {pictures}, "SKIPPED": skipped}, errors
    assert errors[pictures][0] == PICTURES
    warned = {each.id for each in results if each.warnings}
    assert warned <= {"compact-response"}  # this server has no such route
