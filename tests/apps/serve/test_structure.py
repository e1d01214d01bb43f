"""Constraints of replies: whatever a grammar admits, drawn at random, is read back as what was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from tests.chat_forms import write_tokenizer
from tests.runtime.engine.masks import allowed, drawn

from partita.engine.constraint import Matcher
from partita.engine.grammars import Vocabulary
from partita.engine.request import Constraint
from partita.inference.sampling import Sampling
from partita.text.chat_template import ChatTemplate
from partita.text.load import tokenizer_from_folder
from partita.text.reply.calls import ToolCall
from partita.text.reply.parser import ReplyParser
from partita_apps.serve.asked import Ask, Format, Refused, Tool, ToolChoice
from partita_apps.serve.model_text import ModelText
from partita_apps.serve.structure import constraint_for
from partita_apps.serve.tools import described, form_of

Json = dict[str, Any]
NATIVE = ("thinking", "coder", "glm", "lfm", "phi", "olmo", "mistral", "llama", "deepseek", "gemma4", "harmony")
FORMS = (*NATIVE, "none", "plain")

WEATHER = {
    "type": "object",
    "description": "Where and when.",
    "properties": {
        "city": {"type": "string", "maxLength": 8, "description": "A city."},
        "days": {"type": "integer", "minimum": 0, "maximum": 20},
        "unit": {"enum": ["°C", "F", 'a "b\\'], "type": "string"},
        "hourly": {"type": "boolean", "default": False},
    },
    "required": ["city", "unit"],
}
WRITE = {
    "type": "object",
    "$defs": {"Mode": {"enum": ["append", "overwrite"]}, "Text": {"type": "string", "maxLength": 6}},
    "properties": {
        "text": {"$ref": "#/$defs/Text"},
        "mode": {"$ref": "#/$defs/Mode"},
        "line": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 99}, {"type": "null"}]},
        "note": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "place": {
            "type": "object",
            "properties": {"x": {"type": "number", "minimum": 0, "maximum": 1}, "y": {"type": "boolean"}},
            "required": ["y"],
            "additionalProperties": False,
        },
    },
    "required": ["text", "place"],
}
TOOLS = (Tool("weather", "Tells the weather.", WEATHER), Tool("write-file", "Writes.", WRITE), Tool("now"))


@dataclass(frozen=True)
class Model:
    text: ModelText
    vocabulary: Vocabulary


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Tokenizer and template of a form, which takes tools where published models of that form do."""
    known: dict[str, Model] = {}

    def make(form: str) -> Model:
        if form not in known:
            folder: Path = tmp_path_factory.mktemp(form)
            write_tokenizer(folder, form)
            tokenizer = tokenizer_from_folder(folder)
            text = ModelText(form, tokenizer, ChatTemplate.of(tokenizer), context=4096, usual=Sampling())
            known[form] = Model(text, Vocabulary(tokenizer, tokenizer.vocab_size))
        return known[form]

    return make


def ask(**more: Any) -> Ask:
    return Ask("tiny", messages=[{"role": "user", "content": "?"}], **more)


def prompt_of(model: Model) -> list[int]:
    rendered = ChatTemplate.of(model.text.tokenizer).render([{"role": "user", "content": "?"}])
    return model.text.tokenizer.encode(rendered, bos=False, specials=True)


def read(model: Model, asked: Ask, ids: list[int]) -> tuple[str, str, list[ToolCall]]:
    """Speech, thought and calls of a reply."""
    parser = ReplyParser(
        form_of(asked, model.text), model.text.tokenizer, prompt_of(model), tools=described(asked.tools)
    )
    stops = model.text.tokenizer.stop_ids
    parts = [part for token in ids if token not in stops for part in parser.push(token)] + parser.finish()
    speech, thought = ("".join(part.text for part in parts if part.kind == kind) for kind in ("speech", "thought"))
    return speech, thought, [part.call for part in parts if part.call is not None]


def thought_of(constraint: Constraint) -> str:
    """A thought, as far as the prompt does not hold its beginning."""
    assert constraint.thought is not None
    begin, end = constraint.thought
    return f"{'' if constraint.thinking else begin}Hm <b>.{end}"


def draw(model: Model, constraint: Constraint, seed: int, free: str = "") -> list[int]:
    tokenizer = model.text.tokenizer
    if not free:
        constraint = msgspec.structs.replace(constraint, thought=None)
    ends = [
        i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i)[:1] in (b'"', b"]", b"<", b"\n", b"}", b")")
    ]
    ends += [*tokenizer.controls.values()]
    said = drawn(
        Matcher(model.vocabulary, constraint),
        np.random.default_rng(seed),
        free=tokenizer.encode(free, bos=False, specials=True) if free else (),
        prompt=prompt_of(model),
        ends=ends,
    )
    assert len(said) < 2000
    return said


def check_call(call: ToolCall) -> None:
    assert call.error is None, call
    schema = {tool.name: dict(tool.parameters) for tool in TOOLS}[call.name]
    jsonschema.validate(json.loads(call.arguments), schema)


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize("form", FORMS)
def test_a_call_that_is_required_is_a_call(model: Callable[[str], Model], form: str) -> None:
    made, asked = model(form), ask(tools=TOOLS, tool_choice=ToolChoice("required"))
    constraint = constraint_for(asked, made.text, prompt_of(made))
    assert constraint is not None
    assert not constraint.triggers
    assert not constraint.warning
    names: set[str] = set()
    for seed in range(25):
        thinks = constraint.thinking or (constraint.thought is not None and seed % 2 == 0)
        ids = draw(made, constraint, seed, thought_of(constraint) if thinks else "")
        speech, thought, calls = read(made, asked, ids)
        assert not speech, made.text.tokenizer.decode(ids, specials=True)
        assert thought.strip() == ("Hm <b>." if thinks else "")
        assert calls
        for call in calls:
            check_call(call)
        names |= {call.name for call in calls}
    assert names == {tool.name for tool in TOOLS}
