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
from tests.runtime.engine.masks import drawn

from partita.engine.constraint import Matcher
from partita.engine.grammars import Vocabulary
from partita.engine.request import Constraint
from partita.inference.sampling import Sampling
from partita.text.chat_template import ChatTemplate
from partita.text.load import tokenizer_from_folder
from partita.text.reply.called import ToolCall
from partita.text.reply.parser import ReplyParser
from partita_apps.serve.asked import Ask, Format, Refused, Tool, ToolChoice
from partita_apps.serve.model_text import ModelText
from partita_apps.serve.structure import constraint_for
from partita_apps.serve.tools import described, form_of

Json = dict[str, Any]
NATIVE = (
    "thinking",
    "coder",
    "glm",
    "lfm",
    "phi",
    "olmo",
    "mistral",
    "llama",
    "deepseek",
    "gemma4",
    "harmony",
    "glimmer",
    "seed",
    "cohere",
    "glm4",
    "hunyuan",
    "ernie",
    "exaone",
)
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


def ends_of(model: Model) -> list[int]:
    """Tokens with which strings, lists, objects and calls come to an end."""
    known = model.text.tokenizer
    closing = (b'"', b"]", b"<", b"\n", b"}", b")")
    return [i for i in range(known.vocab_size) if known.token_bytes(i)[:1] in closing] + [*known.controls.values()]


def draw(model: Model, constraint: Constraint, seed: int, free: str = "") -> list[int]:
    """A reply's ids. free: what it begins with, "" for no thought either."""
    tokenizer = model.text.tokenizer
    if not free:
        constraint = msgspec.structs.replace(constraint, thought=None, thinking=False)
    said = drawn(
        Matcher(model.vocabulary, constraint),
        np.random.default_rng(seed),
        free=tokenizer.encode(free, bos=False, specials=True) if free else (),
        prompt=prompt_of(model),
        ends=ends_of(model),
    )
    assert len(said) < 2000, tokenizer.decode(said, specials=True)
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
        assert calls, (seed, made.text.tokenizer.decode(ids, specials=True))
        for call in calls:
            check_call(call)
        names |= {call.name for call in calls}
    assert names == {tool.name for tool in TOOLS}


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("thinking", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
        ("exaone", '<tool_call>{"name": "now", "arguments": {}}</tool_call>'),
        ("hunyuan", "<tool_calls><tool_call>now\n```json\n{}\n```</tool_call></tool_calls>"),
        ("glm4", "now\n{}"),
        (
            "glimmer",
            ' to=now<|message|><atem:function_calls>\n<atem:invoke name="now">\n'
            '<atem:parameter name="a">true</atem:parameter>\n</atem:invoke>\n</atem:function_calls>',
        ),
        ("seed", "<seed:tool_call>\n<function=now>\n<parameter=a>true</parameter>\n</function>\n</seed:tool_call>"),
        ("coder", "<tool_call>\n<function=now>\n<parameter=a>\ntrue\n</parameter>\n</function>\n</tool_call>"),
    ],
)
def test_a_call_is_written_as_the_template_writes_it(model: Callable[[str], Model], form: str, written: str) -> None:
    schema = {"type": "object", "properties": {"a": {"const": True}}, "required": ["a"]}
    made, tool = model(form), Tool("now", parameters=schema if "parameter" in written else {})
    asked = ask(tools=[tool], tool_choice=ToolChoice("required"), parallel_tool_calls=False)
    constraint = constraint_for(asked, made.text)
    assert constraint is not None
    assert made.text.tokenizer.decode(draw(made, constraint, 0), specials=True).startswith(written)


@pytest.mark.parametrize("form", ["thinking", "harmony", "llama", "none"])
def test_a_tool_that_is_named_is_the_one_that_is_called(model: Callable[[str], Model], form: str) -> None:
    made, asked = model(form), ask(tools=TOOLS, tool_choice=ToolChoice("required", "weather"))
    constraint = constraint_for(asked, made.text)
    assert constraint is not None
    for seed in range(5):
        _, _, calls = read(made, asked, draw(made, constraint, seed))
        assert {call.name for call in calls} == {"weather"}


@pytest.mark.parametrize("form", FORMS)
def test_one_call_is_one_call(model: Callable[[str], Model], form: str) -> None:
    made = model(form)
    asked = ask(tools=TOOLS, tool_choice=ToolChoice("required"), parallel_tool_calls=False)
    constraint = constraint_for(asked, made.text)
    assert constraint is not None
    for seed in range(5):
        _, _, calls = read(made, asked, draw(made, constraint, seed))
        check_call(*calls)


@pytest.mark.parametrize("form", FORMS)
def test_a_call_that_the_model_begins_becomes_whole(model: Callable[[str], Model], form: str) -> None:
    made, asked = model(form), ask(tools=TOOLS)
    constraint = constraint_for(asked, made.text, prompt_of(made))
    assert constraint is not None
    assert constraint.thinking == (form in ("plain", "deepseek", "ernie"))
    trigger = constraint.triggers[0] if form != "glm4" else "weather\n{"
    assert len(constraint.triggers) == (form != "glm4")
    thought = thought_of(constraint) if constraint.thought else ""
    said = "" if form in ("harmony", "glimmer", "llama", "glm4") else "I look.\n"
    front = {"harmony": "<|start|>assistant", "glimmer": "<|start|>assistant to=weather"}.get(form, "")
    for seed in range(15):
        matcher = Matcher(made.vocabulary, constraint)
        free = made.text.tokenizer.encode(f"{thought}{front}{said}{trigger}", bos=False, specials=True)
        ids = drawn(matcher, np.random.default_rng(seed), prompt=prompt_of(made), free=free, ends=ends_of(made))
        assert matcher.warning is None
        speech, thought_read, calls = read(made, asked, ids)
        assert speech.strip() == said.strip()
        assert thought_read.strip() == ("Hm <b>." if thought else "")
        assert calls
        for call in calls:
            check_call(call)


def test_a_call_of_llama_needs_no_marker_where_the_reply_begins(model: Callable[[str], Model]) -> None:
    made, asked = model("llama"), ask(tools=TOOLS)
    constraint = constraint_for(asked, made.text)
    assert constraint is not None
    for seed in range(10):
        free = made.text.tokenizer.encode('{"name": "', bos=False)
        matcher = Matcher(made.vocabulary, constraint)
        ids = drawn(matcher, np.random.default_rng(seed), free=free, ends=ends_of(made))
        speech, _, calls = read(made, asked, ids)
        assert not speech
        assert calls
        for call in calls:
            check_call(call)
    for text in ('{"names": ["a"]}', 'So: {"name": "x"}', "{}"):
        matcher = Matcher(made.vocabulary, constraint)
        matcher.begin([])
        for token in made.text.tokenizer.encode(text, bos=False):
            matcher.push(token)
        assert matcher.mask() is None


def test_a_call_by_name_is_held_to_its_schema_and_speech_is_not(model: Callable[[str], Model]) -> None:
    made = model("glm4")
    constraint = constraint_for(ask(tools=TOOLS), made.text)
    assert constraint is not None

    def admits(text: str, stops: bool = True) -> bool:
        matcher = Matcher(made.vocabulary, constraint)
        matcher.begin(prompt_of(made))
        stop = [next(iter(made.text.tokenizer.stop_ids))] if stops else []
        for token in [*made.text.tokenizer.encode(text, bos=False, specials=True), *stop]:
            mask = matcher.mask()
            if mask is not None and not mask[token // 32] >> (token % 32) & 1:
                return False
            matcher.push(token)
        return True

    for text in (
        "\nParis.",
        "weather",
        "weather\nis {fine}",
        "Now:\nnow\n{}",
        "{}",
        'other\n{"city": 1}',
        "now then\n{",
    ):
        assert admits(text), text
    assert admits("now\n{}")
    assert admits("\nI look.<|assistant|>now\n{}<|assistant|>now\n{}")
    for text in ('now\n{"a', "weather\n{}", 'weather\n{"town', "now\n{} and", "So.<|assistant|>So"):
        assert not admits(text), text
    assert admits('weather\n{"city": "Oslo', stops=False)


def test_tools_too_many_for_a_grammar_leave_calls_by_name_free(model: Callable[[str], Model]) -> None:
    made, many = model("glm4"), [Tool(f"{'x' * 120}{i}") for i in range(600)]
    constraint = constraint_for(ask(tools=many), made.text)
    assert constraint is not None
    assert constraint.warning
    matcher = Matcher(made.vocabulary, constraint)
    matcher.begin([])
    for token in made.text.tokenizer.encode("Paris.", bos=False):
        matcher.push(token)
    assert matcher.mask() is not None


def test_without_a_call_all_is_free(model: Callable[[str], Model]) -> None:
    made = model("none")
    constraint = constraint_for(ask(tools=TOOLS), made.text)
    assert constraint is not None
    matcher = Matcher(made.vocabulary, constraint)
    matcher.begin([])
    for token in made.text.tokenizer.encode("No {tool_call> needed.", bos=False):
        assert matcher.mask() is None
        matcher.push(token)


@pytest.mark.parametrize("more", [{}, {"tools": TOOLS, "tool_choice": ToolChoice("none")}, {"tools": ()}])
def test_nothing_asked_for_is_no_constraint(model: Callable[[str], Model], more: Json) -> None:
    assert constraint_for(ask(**more), model("thinking").text) is None


# ---------------------------------------------------------------- formats


SCHEMA = {
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "host": {"type": "string", "format": "ipv4"},
        "role": {"oneOf": [{"const": "a"}, {"const": "b"}]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 6, "format": "no such thing"},
    },
    "required": ["name", "role", "code"],
}


@pytest.mark.parametrize("form", FORMS)
def test_speech_of_a_format_is_of_that_format(model: Callable[[str], Model], form: str) -> None:
    made, asked = model(form), ask(format=Format("json_schema", SCHEMA))
    constraint = constraint_for(asked, made.text, prompt_of(made))
    assert constraint is not None
    for seed in range(10):
        thinks = constraint.thinking or (constraint.thought is not None and seed % 2 == 0)
        ids = draw(made, constraint, seed, thought_of(constraint) if thinks else "")
        speech, thought, calls = read(made, asked, ids)
        assert thought.strip() == ("Hm <b>." if thinks else "")
        assert not calls
        jsonschema.validate(json.loads(speech), SCHEMA, format_checker=jsonschema.FormatChecker())


def test_any_object_is_an_object(model: Callable[[str], Model]) -> None:
    made, asked = model("none"), ask(format=Format("json_object"))
    constraint = constraint_for(asked, made.text)
    assert constraint is not None
    for seed in range(5):
        assert isinstance(json.loads(read(made, asked, draw(made, constraint, seed))[0]), dict)


@pytest.mark.parametrize("form", ["thinking", "harmony", "glimmer", "mistral"])
def test_a_format_and_tools_are_one_or_the_other(model: Callable[[str], Model], form: str) -> None:
    made, asked = model(form), ask(tools=TOOLS, format=Format("json_schema", SCHEMA))
    constraint = constraint_for(asked, made.text, prompt_of(made))
    assert constraint is not None
    kinds = set()
    for seed in range(25):
        speech, _, calls = read(made, asked, draw(made, constraint, seed))
        assert bool(speech) != bool(calls)
        kinds.add(bool(calls))
        if speech:
            jsonschema.validate(json.loads(speech), SCHEMA)
        for call in calls:
            check_call(call)
    assert len(kinds) == 2


def test_raw_text_has_a_format_too(model: Callable[[str], Model]) -> None:
    asked = Ask("tiny", text="{", format=Format("json_object"), tools=TOOLS)
    assert constraint_for(asked, model("thinking").text) == Constraint("json_schema", '{"type": "object"}')


def test_a_thought_that_the_prompt_has_ended_does_not_begin_again(model: Callable[[str], Model]) -> None:
    made = model("thinking")
    prompt = prompt_of(made) + made.text.tokenizer.encode("<think>\n\n</think>\n\n", bos=False)
    constraint = constraint_for(ask(format=Format("json_object")), made.text, prompt)
    assert constraint is not None
    assert constraint.thought is None


# ---------------------------------------------------------------- what cannot be enforced


ODD = Tool("odd", parameters={"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}})


def test_a_schema_that_cannot_be_enforced_frees_its_own_arguments_alone(model: Callable[[str], Model]) -> None:
    made, asked = model("thinking"), ask(tools=[*TOOLS, ODD], tool_choice=ToolChoice("required"))
    constraint = constraint_for(asked, made.text)
    assert constraint is not None
    assert "odd" in constraint.warning
    assert '"uniqueItems"' in constraint.warning
    assert "\n" not in constraint.warning
    for seed in range(25):
        for call in read(made, asked, draw(made, constraint, seed))[2]:
            if call.name != "odd":
                check_call(call)
    lazily = constraint_for(ask(tools=[*TOOLS, ODD]), made.text)
    assert lazily is not None
    assert lazily.warning == constraint.warning
    assert lazily.triggers


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"format": Format("json_schema", {"not": {}})}, "response_format"),
        ({"format": Format("json_schema", {"type": "object", "properties": {"a": 1}})}, "response_format"),
        ({"format": Format("json_schema", {"type": "string", "pattern": "("})}, "response_format"),
        ({"tools": [Tool("odd", "", ODD.parameters, strict=True)], "tool_choice": ToolChoice("required")}, "tools"),
        ({"tools": TOOLS, "tool_choice": ToolChoice("required", "other")}, "tool_choice"),
        ({"tool_choice": ToolChoice("required")}, "tool_choice"),
        ({"tools": [Tool("no name")]}, "tools"),
    ],
)
def test_what_must_be_enforced_and_cannot_is_refused(model: Callable[[str], Model], more: Json, field: str) -> None:
    with pytest.raises(Refused) as caught:
        constraint_for(ask(**more), model("thinking").text)
    assert caught.value.field == field
    assert "\n" not in caught.value.message


def deep(count: int) -> Json:
    found: Json = {"type": "string"}
    for _ in range(count):
        found = {"type": "object", "properties": {"a": found}}
    return found


def test_schemas_are_bounded(model: Callable[[str], Model]) -> None:
    text = model("thinking").text
    with pytest.raises(Refused, match="nested"):
        constraint_for(ask(format=Format("json_schema", deep(99))), text)
    with pytest.raises(Refused, match="characters"):
        constraint_for(ask(format=Format("json_schema", {"enum": [f"{i:09}" for i in range(9999)]})), text)
    constraint = constraint_for(ask(tools=[Tool("deep", parameters=deep(9999))]), text)
    assert constraint is not None
    assert "nested" in constraint.warning


@pytest.mark.parametrize("form", ["coder", "glm", "lfm", "gemma4"])
def test_notations_that_are_not_json_say_what_they_cannot_be_held_to(model: Callable[[str], Model], form: str) -> None:
    code = {"type": "object", "properties": {"a": {"type": "object", "patternProperties": {"^x": {"type": "integer"}}}}}
    constraint = constraint_for(ask(tools=[Tool("code", parameters=code)]), model(form).text)
    assert constraint is not None
    if form in ("lfm", "gemma4"):
        assert "patternProperties" in constraint.warning
    text = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x+$"}}}
    constraint = constraint_for(ask(tools=[Tool("text", parameters=text)]), model(form).text)
    assert constraint is not None
    assert ("pattern" in constraint.warning) == (form != "lfm")


def test_a_schema_that_holds_itself(model: Callable[[str], Model]) -> None:
    tree = {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"left": {"$ref": "#/$defs/tree"}, "leaf": {"type": "boolean"}},
                "required": ["leaf"],
            }
        },
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/tree"}},
        "required": ["root"],
    }
    for form in ("thinking", "coder", "glm", "lfm", "gemma4", "mistral"):
        made, asked = model(form), ask(tools=[Tool("plant", parameters=tree)], tool_choice=ToolChoice("required"))
        constraint = constraint_for(asked, made.text)
        assert constraint is not None
        assert not constraint.warning
        for seed in range(5):
            for call in read(made, asked, draw(made, constraint, seed))[2]:
                assert call.error is None
                jsonschema.validate(json.loads(call.arguments), tree)
