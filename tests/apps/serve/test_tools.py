"""What a model is told of tools: by its template, or in its instructions where that has no place for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.chat_forms import FORMS, WITHOUT_TOOLS

from partita.text.reply.formats import GENERIC
from partita.text.reply.parser import ReplyParser
from partita_apps.serve.asked import Ask, Refused, Tool, ToolChoice
from partita_apps.serve.model_text import ModelText
from partita_apps.serve.tools import described, form_of, has_tools, with_tools
from partita_apps.serve.turns import normalized

Json = dict[str, Any]
TOOLS = (
    Tool("weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("maps__weather", namespace="maps"),
)
CALL = {"id": "toolu_01ABC-def", "type": "function", "function": {"name": "weather", "arguments": {"city": "Åre"}}}
TURNS: list[Json] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How is it in Åre, and here?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL, {**CALL, "id": "abcdefghi"}]},
    {"role": "tool", "content": "cold", "tool_call_id": "toolu_01ABC-def"},
    {"role": "tool", "content": "warm", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "Cold and warm."},
    {"role": "user", "content": "And now?"},
]
WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Åre"}}\n</tool_call>'


@pytest.fixture(scope="module")
def text(form_model: Callable[[str], Path]) -> Callable[[str], ModelText]:
    known: dict[str, ModelText] = {}

    def make(form: str) -> ModelText:
        if form not in known:
            known[form] = ModelText.open(form, form_model(form), context=4096)
        return known[form]

    return make


def ask(**more: Any) -> Ask:
    return Ask("tiny", **{"messages": TURNS, "tools": TOOLS, **more})


def rendered(text: ModelText, asked: Ask) -> str:
    messages, tools = with_tools(asked, text)
    assert text.template is not None
    return text.template.render(normalized(messages, text), tools=tools)


@pytest.mark.parametrize("form", FORMS)
def test_who_has_tools_of_its_own(text: Callable[[str], ModelText], form: str) -> None:
    assert has_tools(text(form)) == (form not in WITHOUT_TOOLS)


@pytest.mark.parametrize("form", ["thinking", "harmony"])
def test_a_template_that_reads_tools_gets_them_as_openai_writes_them(
    text: Callable[[str], ModelText], form: str
) -> None:
    messages, tools = with_tools(ask(), text(form))
    assert tools == described(TOOLS)
    assert tools[1]["function"] == {
        "name": "maps__weather",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    }
    assert [message["content"] for message in messages] == [message["content"] for message in TURNS]
    assert form_of(ask(), text(form)) is text(form).reply_format


def test_ids_of_calls_are_what_every_template_takes(text: Callable[[str], ModelText]) -> None:
    messages, _ = with_tools(ask(), text("mistral"))
    ids = [call["id"] for call in messages[2]["tool_calls"]]
    assert ids == [messages[3]["tool_call_id"], messages[4]["tool_call_id"]] == ["call00000", "abcdefghi"]
    assert TURNS[2]["tool_calls"][0]["id"] == "toolu_01ABC-def"


def test_a_template_without_tools_is_told_of_them_in_its_one_instruction(text: Callable[[str], ModelText]) -> None:
    made = text("none")
    messages, tools = with_tools(ask(), made)
    assert tools is None
    turns = normalized(messages, made)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    system = turns[0]["content"]
    assert system.startswith("Be brief.\n\n")
    for tool in described(TOOLS):
        assert json.dumps(tool, ensure_ascii=False) in system.splitlines()
    assert turns[2]["content"] == f"I look.\n{WRITTEN}\n{WRITTEN}"
    assert turns[3]["content"] == ("<tool_response>\ncold\n</tool_response>\n<tool_response>\nwarm\n</tool_response>")
    assert turns[4:] == TURNS[5:]


def test_without_instructions_the_tools_are_the_first(text: Callable[[str], ModelText]) -> None:
    messages, _ = with_tools(ask(messages=TURNS[1:2]), text("none"))
    assert [message["role"] for message in messages] == ["system", "user"]


def test_what_was_written_is_what_the_next_turn_shows(text: Callable[[str], ModelText]) -> None:
    """So that what the cache holds of a call is not read again."""
    made = text("none")
    parser = ReplyParser(form_of(ask(), made), made.tokenizer, tools=described(TOOLS))
    reply = f"I look.\n{WRITTEN}"
    parts = [part for token in made.tokenizer.encode(reply, bos=False) for part in parser.push(token)]
    parts += parser.finish()
    calls = [part.call for part in parts if part.call is not None]
    said = {"role": "assistant", "content": "".join(part.text for part in parts), "tool_calls": [
        {"id": call.id, "function": {"name": call.name, "arguments": json.loads(call.arguments)}} for call in calls
    ]}  # fmt: skip
    assert f"assistant\n{reply}<|im_end|>" in rendered(made, ask(messages=[*TURNS[:2], said]))


def test_calls_are_metadata_where_the_template_has_them_so(text: Callable[[str], ModelText]) -> None:
    shown = rendered(text("glm4"), ask())
    call = '<|assistant|>weather\n{"city": "Åre"}'
    assert f"<|assistant|>\nI look.{call}{call}<|observation|>\ncold<|observation|>\nwarm<|assistant|>\nCold" in shown
    silent = [*TURNS[:2], {**TURNS[2], "content": ""}, *TURNS[3:]]
    assert f"here?{call}{call}<|observation|>" in rendered(text("glm4"), ask(messages=silent))


@pytest.mark.parametrize("form", ["none", "thinking", "plain", "harmony", "glm4"])
def test_no_tools_change_nothing(text: Callable[[str], ModelText], form: str) -> None:
    made, turns = text(form), [TURNS[0], TURNS[1], TURNS[5], TURNS[6]]
    assert made.template is not None
    plain = made.template.render(normalized(turns, made))
    assert rendered(made, ask(messages=turns, tools=())) == plain
    assert rendered(made, ask(messages=turns, tool_choice=ToolChoice("none"))) == plain
    assert form_of(ask(tools=()), made) is made.reply_format
    assert form_of(ask(tool_choice=ToolChoice("none")), made) is made.reply_format


def test_results_stay_results_where_the_template_knows_them(text: Callable[[str], ModelText]) -> None:
    made = text("none")
    knows = ModelText.__new__(ModelText)
    knows.__dict__.update(made.__dict__)
    assert made.template is not None
    knows.template = type(made.template)("{# tool #}" + made.template.source)
    messages, _ = with_tools(ask(), knows)
    assert [message["role"] for message in messages if message["role"] == "tool"] == ["tool", "tool"]


def test_the_generic_notation_takes_the_place_of_one_that_is_not_asked_for(text: Callable[[str], ModelText]) -> None:
    form = form_of(ask(), text("opened"))
    assert form.calls == GENERIC
    assert form.thought is not None
    assert form.dialect is None


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 129, "a\n", '"'])
def test_a_name_that_no_model_can_write_is_refused(text: Callable[[str], ModelText], name: str) -> None:
    with pytest.raises(Refused) as caught:
        with_tools(ask(tools=[Tool(name)]), text("none"))
    assert caught.value.field == "tools"
