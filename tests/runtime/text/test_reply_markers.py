"""What in a reply is a marker: nothing that a person typed, nothing inside arguments, no text that looks like one."""

from __future__ import annotations

import pytest
from tests.chat_forms import FORMS

from partita.text.chat_template import ChatTemplate
from partita.text.reply.calls import NOTATIONS
from partita.text.reply.formats import BLOCKS, DIALECTS, NOISE
from partita.text.reply.parser import ReplyFormat, ReplyParser

from .reply_cases import TOOLS, by_token, prompt_of, read_as, separated


@pytest.mark.parametrize("name", ["harmony", "glimmer", "gemma4", "mistral", "lfm", "deepseek"])
def test_literals_of_control_tokens_are_text_unless_they_are_the_tokens(forms, name):
    tokenizer, form = forms[name]
    text = "".join(FORMS[name].controls) + " and <tool_call> {name}, so."
    parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?", enable_thinking=False), tools=TOOLS)
    speech, thought, calls = separated(by_token(parser, tokenizer.encode(text, bos=False, specials=False)))
    assert (speech + thought, calls) == (text, [])


def test_literals_inside_arguments_are_text(forms):
    tokenizer, form = forms["harmony"]
    inside = '{"text": "<|call|><|end|>"}'
    ids = tokenizer.encode("<|channel|>commentary to=functions.write<|message|>", bos=False, specials=True)
    parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?"))
    assert separated(by_token(parser, [*ids, *tokenizer.encode(inside, bos=False)])) == (
        "", "", [("write", {"text": "<|call|><|end|>"})],
    )  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_what_a_person_types_does_not_decide_how_the_reply_is_read(forms, name):
    tokenizer, form = forms[name]
    for asked in ("<think>", "</think>", "<tool_call>", "[THINK]", "{", "<|channel>thought\n"):
        marked = prompt_of(tokenizer, "\x00")
        place = marked.index(tokenizer.encode("\x00", bos=False)[0])
        prompt = [*marked[:place], *tokenizer.encode(asked, bos=False), *marked[place + 1 :]]
        for ids in (prompt, marked):
            parser = ReplyParser(form, tokenizer, ids)
            found = separated(by_token(parser, tokenizer.encode("Hello, you.", bos=False)))
            opened = name in ("opened", "plain", "deepseek", "ernie")
            assert found == (("", "Hello, you.", []) if opened else ("Hello, you.", "", [])), asked


def test_calls_without_a_marker_need_tools(forms):
    bare = '{"name": "now", "parameters": {}}'
    assert read_as(forms, "llama", bare, tools=None) == (bare, "", [])
    bare = 'weather\n{"city": "Oslo"}'
    assert read_as(forms, "glm4", bare, tools=None) == (bare, "", [])
    bare = "<function=now>\n</function>\n</tool_call>"
    assert read_as(forms, "coder", bare, tools=None)[0].startswith("<function=now>")


def test_a_base_model_and_a_template_that_fails_speak(forms):
    tokenizer, _ = forms["thinking"]
    assert ReplyFormat.of(tokenizer, None) == ReplyFormat()
    form = ReplyFormat.of(tokenizer, ChatTemplate("{{ raise_exception('no') }}"))
    assert (form.header, form.opening) == (None, "")
    assert separated(by_token(ReplyParser(form, tokenizer), tokenizer.encode("<think>a</think>b"))) == ("b", "a", [])


def test_the_table_can_be_read_in_one_way():
    markers = {literal for block in BLOCKS for literal in (block.begin, *block.ends)} | NOISE
    assert not [(a, b) for a in markers for b in markers if a != b and a.startswith(b) and b != "{"]
    calls = [*(block for block in BLOCKS if block.kind == "tool_call"), *(dialect.call for dialect in DIALECTS)]
    assert {block.notation for block in calls} == {*NOTATIONS, ""}


def test_tools_of_any_form_are_taken(forms):
    for tools in ([None, 3, {"function": 4}, {"name": "now"}, {"name": "a", "parameters": {"properties": 5}}], []):
        assert read_as(forms, "thinking", '<tool_call>{"name": "now"}</tool_call>', tools=tools)[2] == [("now", {})]
