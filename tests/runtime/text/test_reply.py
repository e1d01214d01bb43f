"""Replies told apart: every form; what is broken stays visible; what goes back to the model."""

from __future__ import annotations

import pytest

from partita.text.chat_template import ChatTemplate, chat_parts
from partita.text.reply.parser import ReplyFormat, ReplyParser

from .reply_cases import BROKEN, CITY, DAYS, INVOKED, REPLIES, TOOLS, by_token, prompt_of, read_as, separated


@pytest.mark.parametrize(("name", "text", "speech", "thought", "calls"), REPLIES)
def test_a_reply_is_separated(forms, name, text, speech, thought, calls):
    assert read_as(forms, name, text) == (speech, thought, calls)


def test_a_thought_of_gemma_begins_with_its_name(forms):
    text = "<|channel>thought\nHm.\n<channel|>Paris."
    for reply, expected in [
        (text, ("Paris.", "Hm.", [])),
        (text.replace("thought\n", "thou"), ("Paris.", "thouHm.", [])),
        ("<|channel>thought<channel|>Paris.", ("Paris.", "", [])),
        ("<|channel>thought", ("", "", [])),
    ]:
        assert read_as(forms, "gemma4", reply, enable_thinking=True) == expected


def test_a_thought_that_the_template_begins_where_it_is_asked_to(forms):
    text = 'Hm.\n</think>\n\n<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    assert read_as(forms, "exaone", text, enable_thinking=True) == ("", "Hm.", [CITY])
    assert read_as(forms, "exaone", "Paris.") == ("Paris.", "", [])


def test_a_call_by_name_may_follow_a_thought(forms):
    """As of GLM-Z1, whose template begins a thought."""
    tokenizer, _ = forms["glm4"]
    template = ChatTemplate(
        tokenizer.chat_template.replace("<|assistant|>{% endif %}", "<|assistant|>\n<think>{% endif %}")
    )
    known = tokenizer.chat_template
    tokenizer.chat_template = template.source
    form = ReplyFormat.of(tokenizer, template)
    tokenizer.chat_template = known
    prompt = tokenizer.encode(template.render([{"role": "user", "content": "?"}]), bos=False, specials=True)
    for text, expected in [
        ('Hm.\n</think>\n\nweather\n{"city": "Oslo"}', ("", "Hm.", [CITY])),
        ("Hm.\n</think>\nweather\nis fine.", ("weather\nis fine.", "Hm.", [])),
        ("Hm, weather\n</think>So", ("So", "Hm, weather", [])),
        ('Hm.<|assistant|>weather\n{"city": "Oslo"}', ("", "Hm.", [CITY])),
        ('Hm.<|assistant|>weather\n{"city": "Oslo"}</think>No.',
         ("No.", 'Hm.\nweather\n{"city": "Oslo"}\n', [])),
        ("Hm.<|assistant|>we</think>No.", ("No.", "Hm.\nwe", [])),
    ]:  # fmt: skip
        parser = ReplyParser(form, tokenizer, prompt, tools=TOOLS)
        assert separated(by_token(parser, tokenizer.encode(text, bos=False, specials=True))) == expected


@pytest.mark.parametrize(("name", "text", "words"), BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_a_broken_call_stays_visible(forms, name, text, words):
    tokenizer, form = forms[name]
    parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?"), tools=TOOLS)
    (part,) = by_token(parser, tokenizer.encode(text, bos=False, specials=True))
    call = part.call
    assert call is not None
    assert (call.name, call.arguments, call.id) == ("", "", "")
    assert words in str(call.error)
    marked = text.removeprefix("</think>")
    said = {"harmony": 'commentary to=functions.a {"b":', "glimmer": marked.replace("<|message|>", " ").strip()}
    assert call.written == said.get(name, marked)


def test_a_string_that_never_ends_costs_its_call_alone(forms):
    good = '<tool_call>{"name": "now"}</tool_call>'
    text = f'<tool_call>{{"name": "a, "arguments": {{}}}}</tool_call>\n<think>Hm.</think>So.{good}'
    speech, thought, calls = read_as(forms, "thinking", text)
    assert (speech, thought) == ("So.", "Hm.")
    assert calls == [('<tool_call>{"name": "a, "arguments": {}}</tool_call>',), ("now", {})]


def test_calls_have_ids(forms):
    tokenizer, form = forms["mistral"]
    text = "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]now[ARGS]{}"
    ids = tokenizer.encode(text, bos=False, specials=True)
    calls = [part.call for part in by_token(ReplyParser(form, tokenizer, calls=7), ids)]
    assert [call.id for call in calls if call is not None] == ["call00007", "abcdefghi", "call00009"]


def test_half_of_a_surrogate_pair_can_be_printed(forms):
    text = '<tool_call>{"name": "a", "arguments": {"b": "\\ud83d"}}</tool_call>'
    ((_, arguments),) = read_as(forms, "thinking", text)[2]
    assert arguments == {"b": "\ud83d"}
    tokenizer, form = forms["thinking"]
    (part,) = by_token(ReplyParser(form, tokenizer), tokenizer.encode(text))
    assert part.call is not None
    assert part.call.arguments.isascii()


def test_what_was_called_is_given_back_as_it_was_written(forms):
    """LFM2.5: calls, their results and the tools between control tokens; a thought before the last reply is gone."""
    tokenizer, form = forms["lfm"]
    written = '<|tool_call_start|>[weather(city="Oslo", days=2), now()]<|tool_call_end|>'
    ids = tokenizer.encode(f"<think>Look.</think>{written}", bos=False, specials=True)
    speech, thought, calls = separated(by_token(ReplyParser(form, tokenizer, tools=TOOLS), ids))
    assert (speech, thought, calls) == ("", "Look.", [DAYS, ("now", {})])
    template = ChatTemplate.of(tokenizer)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "<think>Look.</think>",
            "tool_calls": [{"function": {"name": name, "arguments": values}} for name, values in calls],
        },
        {"role": "tool", "content": "<|tool_call_end|> 5 C"},
    ]
    parts = chat_parts(tokenizer, template, turns, tools=TOOLS[:1])
    text = "".join(part for part, _ in parts)
    assert text.startswith("<|im_start|>system\nBe brief.\nList of tools: <|tool_list_start|>[{")
    assert f"<|im_start|>assistant\n{written}<think>Look.</think><|im_end|>\n<|im_start|>tool\n" in text
    assert text.endswith("<|tool_response_start|><|tool_call_end|> 5 C<|tool_response_end|><|im_end|>\n"
                         "<|im_start|>assistant\n")  # fmt: skip
    assert ("<|tool_call_end|>", False) in parts  # what a tool said is text
    found = tokenizer.encode_parts(parts)
    assert [found.count(tokenizer.controls[f"<|tool_call_{end}|>"]) for end in ("start", "end")] == [1, 1]
    later = [*turns, {"role": "assistant", "content": "5 C."}, {"role": "user", "content": "And now?"}]
    assert "Look." not in template.render(later)
    assert "<think>Look.</think>" in template.render(later, keep_past_thinking=True)


def test_messages_go_back_to_whom_they_were(forms):
    """Muse Glimmer: what a model thought, called and said, and what the tool answered."""
    tokenizer, form = forms["glimmer"]
    written = f" to=self<|message|>Look.<|eom|><|start|>assistant to=weather<|message|>{INVOKED}"
    ids = tokenizer.encode(f"{written}<|eot|>", bos=False, specials=True)
    speech, thought, ((name, values),) = separated(by_token(ReplyParser(form, tokenizer, tools=TOOLS), ids))
    assert not speech
    turns = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": thought,
            "tool_calls": [{"function": {"name": name, "arguments": values}}],
        },
        {"role": "tool", "name": name, "content": "<|eot|> 5 C"},
    ]
    parts = chat_parts(tokenizer, ChatTemplate.of(tokenizer), turns)
    text = "".join(part for part, _ in parts)
    assert text == (
        f"<|start|>user<|message|>Weather?<|eot|><|start|>assistant{written}<|eot|><|start|>tool weather<|message|>"
        '<tool_output name="weather">\n<|eot|> 5 C\n</tool_output><|eot|><|start|>assistant'
    )
    assert ("<|eot|>", False) in parts  # what a tool said is text
