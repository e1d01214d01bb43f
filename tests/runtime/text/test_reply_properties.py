"""Any replies, however they are split: a stream gives what the whole gives, nothing is lost, notations do not fail."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.chat_forms import FORMS

from partita.text.reply.calls import NOTATIONS, read
from partita.text.reply.parser import Part, ReplyParser
from partita.text.reply.values import Malformed
from partita.text.tokenizer import Tokenizer

from .reply_cases import BROKEN, REPLIES, TOOLS, by_token, prompt_of, separated


def pieces_of(name: str) -> st.SearchStrategy[list[str]]:
    """Beginnings, ends and middles of what a form knows, and what stands between them."""
    own = [*FORMS[name].controls, *(text for form, text, *_ in [*REPLIES, *BROKEN] if form == name and len(text) < 999)]
    marks = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<function=a>", "</function>", "<parameter=b>\n"]
    rest = ["\n", "\n\n", " ", "é🎉", '"', "\\", "{", "}", '{"name": "a"}', "word", "assistant", "final", "analysis"]
    return st.lists(st.sampled_from([*own, *marks, *rest]), max_size=8)


def split(parser: ReplyParser, tokens: list[int | str]) -> list[Part]:
    return [
        *(part for x in tokens for part in (parser.push(x) if isinstance(x, int) else parser.push_text(x))),
        *parser.finish(),
    ]


def whole_and_parts(tokenizer: Tokenizer, text: str) -> tuple[list[int | str], list[int | str]]:
    """Text with control tokens between it; the same with every character by itself."""
    whole: list[int | str] = []
    for i, piece in enumerate(tokenizer.control_pattern.split(text)):
        if piece:
            whole.append(tokenizer.controls[piece] if i % 2 else piece)
    return whole, [x for item in whole for x in ([item] if isinstance(item, int) else item)]


@pytest.mark.parametrize("size", [1, 7])
def test_replies_in_pieces_are_separated_alike(forms, size):
    for name, text, *expected in REPLIES:
        tokenizer, form = forms[name]
        whole, _ = whole_and_parts(tokenizer, text)
        pieces = [
            piece
            for item in whole
            for piece in ([item] if isinstance(item, int) else [item[i : i + size] for i in range(0, len(item), size)])
        ]
        parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?"), tools=TOOLS)
        assert separated(split(parser, pieces)) == tuple(expected), text


@pytest.mark.parametrize("name", FORMS)
def test_a_stream_gives_what_the_whole_gives(forms, name):
    tokenizer, form = forms[name]
    prompts = [prompt_of(tokenizer, "?"), prompt_of(tokenizer, "?", enable_thinking=True)]

    @given(pieces_of(name), st.sampled_from(prompts), st.sampled_from([None, TOOLS]), st.lists(st.integers(0, 400)))
    @settings(max_examples=30)
    @example(['<tool_call>{"name": "a, "b": {}}</tool_call>', "x", "<tool_call>"], prompts[0], None, [])
    def check(pieces, prompt, tools, cuts):
        text = "".join(pieces)

        def parser() -> ReplyParser:
            return ReplyParser(form, tokenizer, prompt, tools=tools)

        whole, characters = whole_and_parts(tokenizer, text)
        expected = separated(split(parser(), whole))
        assert separated(split(parser(), characters)) == expected
        assert separated(by_token(parser(), tokenizer.encode(text, bos=False, specials=True))) == expected
        places = sorted({0, len(characters), *(cut for cut in cuts if cut < len(characters))})
        groups = [joined(characters[a:b]) for a, b in pairwise(places)]
        assert separated(split(parser(), [x for group in groups for x in group])) == expected

    check()


def joined(items: list[int | str]) -> list[int | str]:
    """The same, texts beside each other as one."""
    found: list[int | str] = []
    for item in items:
        if isinstance(item, str) and found and isinstance(found[-1], str):
            found[-1] += item
        else:
            found.append(item)
    return found


@pytest.mark.parametrize("name", FORMS)
def test_nothing_but_markers_and_line_ends_is_lost(forms, name):
    """The letters of a reply are in its parts, once each and in order, whatever stands between them."""
    tokenizer, form = forms[name]

    @given(st.lists(st.sampled_from([*FORMS[name].controls, "<think>", "</think>", "<tool_call>", "</tool_call>", '"']
                                    + ["\n", " ", "{", "}"] + [f"§{c}" for c in "abcdefgh"]), max_size=12))  # fmt: skip
    @settings(max_examples=30)
    def check(pieces):
        parser = ReplyParser(form, tokenizer, prompt_of(tokenizer, "?"), tools=TOOLS)
        parts = by_token(parser, tokenizer.encode("".join(pieces), bos=False, specials=True))
        shown = "".join(part.text if part.call is None else part.call.written for part in parts)
        assert [c for c in shown if c == "§"] == [c for c in "".join(pieces) if c == "§"]

    check()


@given(st.sampled_from(sorted(NOTATIONS)), st.text(st.sampled_from("a\"'\\{}[]()<>|=:,./ \n1-e`") | st.characters()))
@settings(max_examples=200)
def test_a_notation_gives_calls_or_a_reason(notation, text):
    try:
        calls = read(notation, text, {}, "")
    except Malformed:
        return
    assert all(isinstance(json.loads(call.arguments), dict) and call.name for call in calls)
    assert calls


@pytest.mark.parametrize("notation", NOTATIONS)
def test_long_arguments_are_read(notation):
    value = "the fox " * 20_000
    text = {
        "json": json.dumps({"name": "a", "arguments": {"b": value}}),
        "cohere": json.dumps([{"tool_call_id": "0", "tool_name": "a", "parameters": {"b": value}}]),
        "mistral": f"a[ARGS]{json.dumps({'b': value})}",
        "fenced": f"a\n```json\n{json.dumps({'b': value})}\n```",
        "named": f"a\n{json.dumps({'b': value})}",
        "deepseek": f"a<｜tool▁sep｜>{json.dumps({'b': value})}",
        "xml": f"<function=a>\n<parameter=b>\n{value}\n</parameter>\n</function>",
        "arg_keys": f"a<arg_key>b</arg_key><arg_value>{value}</arg_value>",
        "invoked": f'<atem:invoke name="a"><atem:parameter name="b">{value}</atem:parameter></atem:invoke>',
        "gemma": f'call:a{{b:<|"|>{value}<|"|>}}',
        "python": f"[a(b='{value}')]",
    }[notation]
    (call,) = read(notation, text, {}, "")
    assert (call.name, json.loads(call.arguments)) == ("a", {"b": value})
