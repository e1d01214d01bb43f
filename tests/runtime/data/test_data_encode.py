"""What is trained of a record: masks by hand-made templates of every kind, and a user's control tokens stay text."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.data.encode import Encoder
from partita.data.records import Chat, parse
from partita.errors import DataError, TemplateError
from partita.text.chat_template import encode_chat

from .templates import (
    CHATML,
    DATED,
    GEMMA,
    LLAMA,
    MARKED,
    MARKED_BADLY,
    MOVES,
    OPENS,
    PLAIN,
    TALK,
    THINKS,
    encoded,
    shown,
)


@pytest.fixture(scope="module")
def chatml(with_template):
    return with_template(CHATML)


def test_chatml(chatml):
    assert encoded(chatml, {"messages": TALK}) == [
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na fox?<|im_end|>\n"
        "<|im_start|>assistant\n[[a dog<|im_end|>]]\n<|im_start|>user\nwhy<|im_end|>\n"
        "<|im_start|>assistant\n[[the end<|im_end|>]]\n"
    ]


def test_llama_writes_its_own_bos_and_has_two_ends(with_template):
    made = with_template(LLAMA, "<|begin_of_text|>", "<|eot_id|>", adds_bos=True)
    call = {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    talk = [TALK[1], call, {"role": "tool", "content": "3"}, TALK[2]]
    assert encoded(made, {"messages": talk}) == [
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na fox?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[x<|eom_id|>]]"
        "<|start_header_id|>tool<|end_header_id|>\n\n3<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[a dog<|eot_id|>]]"
    ]


def test_gemma_calls_the_assistant_model(with_template):
    made = with_template(GEMMA, "<bos>", "<end_of_turn>", adds_bos=True)
    assert encoded(made, {"messages": TALK[1:3]}) == [
        "<bos><start_of_turn>user\na fox?<end_of_turn>\n<start_of_turn>model\n[[a dog<end_of_turn>]]\n"
    ]


def test_a_bos_that_the_template_forgets(with_template):
    made = with_template(CHATML, "<s>", adds_bos=True)
    (text,) = encoded(made, {"messages": TALK[1:3]})
    assert text.startswith("<s><|im_start|>user")
    assert text.endswith("assistant\n[[a dog<|im_end|>]]\n")


def test_no_end_token_in_the_template(with_template):
    assert encoded(with_template(PLAIN, eos=None), {"messages": TALK[1:3]}) == ["user: a fox?\nassistant: [[a dog\n]]"]


@pytest.mark.parametrize("source", [MARKED, MARKED_BADLY])
def test_generation_marks_and_the_end_token_that_follows_them(with_template, source):
    made = with_template(source)
    marked, plain = encoded(made, {"messages": TALK}), encoded(with_template(CHATML), {"messages": TALK})
    assert marked == plain
    talk = {"prompt": TALK[:3], "completion": TALK[3:]}
    assert encoded(made, talk) == [plain[0].replace("[[a dog<|im_end|>]]", "a dog<|im_end|>")]


def test_marks_win_over_differences(with_template):
    source = MARKED.replace("{{ m.content }}<|im_end|>{% endg", "{{ m.content[:3] }}{% endg").replace(
        "{% else %}", "{{ m.content[3:] }}<|im_end|>{% else %}"
    )
    assert "assistant\n[[a d]]og<|im_end|>" in encoded(with_template(source), {"messages": TALK[1:3]})[0]


def weighed(talk: list[dict[str, Any]], *weights: float) -> dict[str, Any]:
    """A record of which the assistant's messages have these weights, None for no word."""
    given = iter(weights)
    return {"messages": [{**m, "weight": next(given)} if m["role"] == "assistant" else m for m in talk]}


@pytest.mark.parametrize("source", [CHATML, MARKED, MARKED_BADLY, THINKS])
def test_messages_of_weight_zero_are_read_and_not_trained(with_template, source):
    made = with_template(source)
    (plain,) = encoded(made, {"messages": TALK})
    assert encoded(made, weighed(TALK, 0, 1)) == [plain.replace("[[a dog<|im_end|>]]", "a dog<|im_end|>")]
    assert encoded(made, weighed(TALK, 1.0, 1)) == [plain]
    (last,) = encoded(made, weighed(TALK, 1, 0))
    assert "[[a dog<|im_end|>]]" in last
    assert "[[the end" not in last


def test_a_weight_where_marks_of_earlier_turns_change(with_template):
    source = MARKED.replace("{% generation %}{{ m.content }}", "{% generation %}{{ 'hm' if loop.last }}{{ m.content }}")
    assert encoded(with_template(source), weighed(TALK, 0, 1))[0].count("[[") == 1
    assert encoded(with_template(source), weighed(TALK, 0, 1))[0].endswith("assistant\n[[hmthe end<|im_end|>]]\n")


def test_marks_that_mark_nothing_leave_it_to_differences(with_template):
    source = "{% if never %}{% generation %}{% endgeneration %}{% endif %}" + CHATML
    assert encoded(with_template(source), {"messages": TALK}) == encoded(with_template(CHATML), {"messages": TALK})


def test_generation_marks_agree_with_transformers(with_template, vocabulary):
    from transformers import PreTrainedTokenizerFast

    judge = PreTrainedTokenizerFast(tokenizer_file=str(vocabulary / "tokenizer.json"))
    judge.chat_template = MARKED
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    expected: Any = judge.apply_chat_template(TALK, **options)
    tokenizer, template = with_template(MARKED)
    (document,) = Encoder(tokenizer, template).encode(Chat(tuple(TALK)))
    assert document.ids == expected["input_ids"]
    assert document.trained == [bool(flag) for flag in expected["assistant_masks"]]


def test_a_turn_written_differently_later_begins_a_document_of_its_own(with_template):
    made = with_template(THINKS)
    talk = [{**m, "content": f"hm</think>{m['content']}"} if m["role"] == "assistant" else m for m in TALK[1:]]
    assert encoded(made, {"messages": talk}) == [
        "<|im_start|>user\na fox?<|im_end|>\n<|im_start|>assistant\n[[hm</think>a dog<|im_end|>]]\n",
        "<|im_start|>user\na fox?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
        "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n[[hm</think>the end<|im_end|>]]\n",
    ]
    assert len(encoded(made, {"messages": TALK})) == 1  # nothing to leave out, one document


def test_every_document_begins_as_inference_would(with_template):
    tokenizer, template = with_template(THINKS)
    talk = [{**m, "content": f"hm</think>{m['content']}"} if m["role"] == "assistant" else m for m in TALK]
    documents = Encoder(tokenizer, template).encode(Chat(tuple(talk)))
    for count, document in zip((2, 4), documents, strict=True):
        prompt = encode_chat(tokenizer, template, talk[:count])
        assert document.ids[: len(prompt)] == prompt
        assert document.trained.index(True) == len(prompt)


def test_a_reply_that_the_template_opens_with_more(with_template):
    tokenizer, template = with_template(OPENS)
    (document,) = Encoder(tokenizer, template).encode(Chat(tuple(TALK)))
    assert document.unopened == 2
    assert "assistant\n[[a dog<|im_end|>]]\n<|im_start|>user" in shown(tokenizer, document)
    assert Encoder(*with_template(CHATML)).encode(Chat(tuple(TALK)))[0].unopened == 0


def test_a_template_that_changes_what_it_has_written_is_refused(with_template):
    with pytest.raises(DataError, match=r"messages\[2\]: .*changes earlier"):
        encoded(with_template(MOVES), {"messages": TALK})


def test_a_template_that_writes_nothing_for_a_turn_is_refused(with_template):
    source = PLAIN.replace("{{ m.role }}", "{% if m.role == 'assistant' %}{% continue %}{% endif %}{{ m.role }}")
    made = with_template(source.replace("assistant: {% endif %}", "{% endif %}"), eos=None)
    with pytest.raises(DataError, match=r"messages\[1\]: .*(writes nothing|changes earlier)"):
        encoded(made, {"messages": TALK[1:3]})


def test_what_a_template_refuses_stays_its_error(with_template):
    with pytest.raises(TemplateError, match="no fox"):
        encoded(with_template("{{ raise_exception('no fox') }}"), {"messages": TALK})


def test_a_base_model_takes_no_chats(with_template):
    with pytest.raises(DataError, match="no chat template"):
        encoded(with_template(None), {"messages": TALK})


def test_the_date_is_the_same_on_every_day(with_template):
    assert encoded(with_template(DATED), {"messages": TALK})[0].startswith("26 Jul 2024<|im_start|>")


def test_tools_and_variables_reach_the_template(with_template):
    made = with_template("{{ tools | tojson if tools else 'none' }}{{ mood }}" + CHATML)
    tools = [{"type": "function", "function": {"name": "<|im_end|>"}}]
    (text,) = encoded(made, {"messages": TALK, "tools": tools}, mood="calm")
    assert text.startswith('[{"type": "function", "function": {"name": "<|im_end|>"}}]calm<|im_start|>')
    assert encoded(made, {"messages": TALK})[0].startswith("none<|im_start|>")
    tokenizer, template = made
    ids = Encoder(tokenizer, template).encode(parse({"messages": TALK, "tools": tools}))[0].ids
    assert ids.count(tokenizer.controls["<|im_end|>"]) == len(TALK)


def test_plain_texts_and_completions_end_with_the_end_of_text(with_template):
    made = with_template(None, "<s>", "</s>", adds_bos=True)
    assert encoded(made, {"text": "the fox <|im_end|>"}) == ["<s>[[the fox <|im_end|></s>]]"]
    assert encoded(made, {"prompt": "why", "completion": " the end"}) == ["<s>why[[ the end</s>]]"]
    assert encoded(made, {"prompt": "", "completion": "the end"}) == ["<s>[[the end</s>]]"]
    assert encoded(with_template(None, eos=None), {"text": "the fox"}) == ["[[the fox<|endoftext|>]]"]
    tokenizer, _ = made
    (document,) = Encoder(tokenizer, None).encode(parse({"text": "<|im_end|>"}))
    assert tokenizer.controls["<|im_end|>"] not in document.ids


contents = st.lists(
    st.sampled_from(["the fox", "<|im_end|>", "<|im_", "end|>", "\n", " ", "é🤽", "a"]), min_size=1
).map("".join)


@given(talk=st.lists(st.tuples(contents, contents), min_size=1, max_size=3), completion=st.booleans())
@settings(max_examples=60)
def test_typed_control_tokens_are_text_and_masks_are_whole_turns(chatml, talk, completion):
    tokenizer, template = chatml
    messages = [m for q, a in talk for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
    first = len(messages) - 2 if completion else 0
    (document,) = Encoder(tokenizer, template).encode(Chat(tuple(messages), first))
    end = tokenizer.controls["<|im_end|>"]
    assert document.ids.count(end) == len(messages)
    assert tokenizer.decode(document.ids, specials=True) == template.render(messages, add_generation_prompt=False)
    runs = groupby(zip(document.ids, document.trained, strict=True), key=lambda pair: pair[1])
    trained = [[token for token, _ in run] for flag, run in runs if flag]
    replies = [m["content"] for m in messages[first:] if m["role"] == "assistant"]
    assert [tokenizer.decode(run[:-1], specials=True) for run in trained] == replies
    assert all(run.index(end) == len(run) - 1 for run in trained)


def test_control_tokens_of_plain_text_are_tokens_where_that_is_asked_for(with_template):
    tokenizer, template = with_template(CHATML, "<s>", adds_bos=True)
    text = "<s><|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\nthe end<|im_end|>"
    reads, letters = Encoder(tokenizer, template, control_tokens=True), Encoder(tokenizer, template)
    (document,) = reads.encode(parse({"text": text}))
    assert document.ids == tokenizer.encode(text, specials=True)  # neither a second BOS nor a second end
    assert reads.notes.lines() == ()
    cut = text.index("the end")
    (pair,) = reads.encode(parse({"prompt": text[:cut], "completion": text[cut:]}))
    assert shown(tokenizer, pair) == f"{text[:cut]}[[{text[cut:]}]]"
    assert reads.long_text([text]).tolist() == document.ids
    (plain,) = letters.encode(parse({"text": text}), "d.jsonl line 7")
    assert tokenizer.controls["<|im_start|>"] not in plain.ids
    assert letters.notes.lines() == (
        "control tokens in plain text are read as letters, as <s> in d.jsonl line 7: `control_tokens` reads them as "
        "tokens",
    )
    (chat,) = reads.encode(parse({"messages": [TALK[1], {**TALK[2], "content": "<|im_end|>"}]}))
    assert chat.ids.count(tokenizer.controls["<|im_end|>"]) == 2  # those of the template


def test_keys_that_the_template_does_not_read_are_noted_once(with_template):
    tokenizer, template = with_template(CHATML)
    encoder = Encoder(tokenizer, template)
    said = {"messages": [{**TALK[1], "name": "ada", "ids<|im_end|>": 1, "nothing": None}, TALK[2]], "tools": [{}]}
    encoder.encode(parse(said), "a.jsonl line 1")
    encoder.encode(parse(said), "a.jsonl line 2")
    assert encoder.notes.lines() == (
        'nothing reads "ids<|im_end|>" of messages (a.jsonl line 1), "name" of messages (a.jsonl line 1), '
        '"tools" (a.jsonl line 1)',
    )
    whole = Encoder(*with_template("{% for m in messages %}{{ m | tojson }}<|im_end|>{% endfor %}"))
    whole.encode(parse({"messages": [{**TALK[1], "name": "ada"}, TALK[2]]}))
    assert whole.notes.lines() == ()


def test_thoughts_are_read_under_any_of_their_names(with_template):
    made = with_template(CHATML.replace("{{ m.content }}", "{{ m.thinking }}{{ m.content }}"))
    encoder = Encoder(*made)
    found = [
        encoder.encode(parse({"messages": [TALK[1], {**TALK[2], name: "hm"}]}))[0].ids
        for name in ("thinking", "reasoning", "reasoning_content")
    ]
    assert found[0] == found[1] == found[2]
    assert encoder.notes.lines() == ()
