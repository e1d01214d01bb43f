"""A growing conversation: the ids say what the rendered text says, and what was generated is kept."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.text.chat_template import ChatTemplate, encode_chat
from partita.text.load import tokenizer_from_folder
from partita.text.tokenizer import Tokenizer
from partita.text.transcript import Transcript
from partita.text.vocabulary import Facts

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMS = CHATML.replace("m.content", "m.content | trim")
THINKS = CHATML.replace("{{ m.content }}", "{{ m.content.split('the')[-1] if m.role == 'assistant' else m.content }}")
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
texts = st.text(st.sampled_from("the q<|im_end|>\n 日🎉ab"), min_size=1, max_size=12) | st.sampled_from(
    ["<|im_end|>", "the <|im_start|>fox", "x<|endoftext|>"]
)
replies = st.lists(st.integers(0, 302), max_size=12)


@cache
def tokenizer_of(folder: Path) -> Tokenizer:
    return tokenizer_from_folder(folder)


@pytest.mark.parametrize("source", [CHATML, TRIMS, THINKS, PLAIN])
@given(turns=st.lists(st.tuples(texts, replies), min_size=1, max_size=4))
@settings(max_examples=60)
def test_ids_decode_to_the_rendered_text(tiny_model, source, turns):
    tokenizer, template = tokenizer_of(tiny_model), ChatTemplate(source)
    transcript, messages = Transcript(tokenizer, template), []
    controls = set(tokenizer.controls.values())
    for text, reply in turns:
        messages.append({"role": "user", "content": text})
        ids = transcript.encode(messages)
        assert tokenizer.decode(ids, specials=True) == template.render(messages)
        placed = [token for token in ids if token in controls]
        assert placed == [token for token in encode_chat(tokenizer, template, messages) if token in controls]
        transcript.add_reply(reply)
        messages.append({"role": "assistant", "content": tokenizer.decode(reply)})


@given(turns=st.lists(st.tuples(texts, st.lists(st.integers(0, 255), max_size=12)), min_size=2, max_size=4))
@settings(max_examples=60)
def test_a_turn_begins_with_the_ids_of_the_last_one_and_its_reply(tiny_model, turns):
    tokenizer = tokenizer_of(tiny_model)
    transcript, messages, before = Transcript(tokenizer, ChatTemplate(CHATML)), [], []
    for text, reply in turns:
        messages.append({"role": "user", "content": text})
        ids = transcript.encode(messages)
        assert ids[: len(before)] == before
        transcript.add_reply(reply)
        messages.append({"role": "assistant", "content": tokenizer.decode(reply)})
        before = [*ids, *reply]


@pytest.mark.parametrize("source", [CHATML, TRIMS, THINKS, PLAIN])
@given(turns=st.lists(st.tuples(texts, replies), min_size=1, max_size=4), held=st.integers(0, 30))
@settings(max_examples=40)
def test_what_a_cache_holds_is_known_whatever_it_is(tiny_model, source, turns, held):
    """Nothing is lost, and where a template keeps replies as they are, nothing that the cache holds is new."""
    tokenizer, template = tokenizer_of(tiny_model), ChatTemplate(source)
    before, messages, ids = Transcript(tokenizer, template), [], []
    for text, reply in turns:
        messages.append({"role": "user", "content": text})
        ids = [*before.encode(messages), *reply]
        before.add_reply(reply)
        messages.append({"role": "assistant", "content": tokenizer.decode(reply)})
    cached = ids[: len(ids) - held]
    after = Transcript(tokenizer, template)
    after.resume(cached, messages)
    found = after.encode([*messages, {"role": "user", "content": "and then"}])
    assert tokenizer.decode(found, specials=True) == template.render(
        [*messages, {"role": "user", "content": "and then"}]
    )
    if source == CHATML and not any(token in tokenizer.controls.values() for _, reply in turns for token in reply):
        assert found[: len(cached)] == cached or tokenizer.decode(cached, specials=True).endswith("\ufffd")


def test_going_on_renders_the_conversation_once_however_long_it_is(tiny_model, monkeypatch):
    tokenizer, template, rendered = tokenizer_of(tiny_model), ChatTemplate(CHATML), 0
    render = ChatTemplate.renderings

    def counted(self, messages, which, variables):
        nonlocal rendered
        texts = render(self, messages, which, variables)
        rendered += sum(map(len, texts))
        return texts

    monkeypatch.setattr(ChatTemplate, "renderings", counted)
    talk = [{"role": ("user", "assistant")[i % 2], "content": "a fox"} for i in range(1000)]
    ids = encode_chat(tokenizer, template, talk, add_generation_prompt=False)
    once, rendered = rendered, 0
    transcript = Transcript(tokenizer, template)
    transcript.resume(ids, talk)
    assert rendered == once
    assert transcript.encode([*talk, {"role": "user", "content": "and then"}])[: len(ids)] == ids


@pytest.mark.parametrize("front", ["", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_cache_has_one_bos_whatever_the_template_writes(tiny_model, front, adds_bos):
    plain = tokenizer_of(tiny_model)
    tokenizer = Tokenizer(plain.engine, Facts(bos_id=plain.controls["<|endoftext|>"], adds_bos=adds_bos))
    template = ChatTemplate(front + CHATML, tokens=tokenizer.special_tokens)
    first, messages = Transcript(tokenizer, template), [{"role": "user", "content": "the fox"}]
    cached = [*first.encode(messages), *tokenizer.encode("a d", bos=False), *tokenizer.encode("og", bos=False)]
    messages += [{"role": "assistant", "content": "a dog"}, {"role": "user", "content": "and then"}]
    after = Transcript(tokenizer, template)
    after.resume(cached, messages[:2])
    assert after.encode(messages)[: len(cached)] == cached


def test_another_conversation_may_follow(tiny_model):
    tokenizer, template = tokenizer_of(tiny_model), ChatTemplate(CHATML)
    transcript = Transcript(tokenizer, template)
    first = [{"role": "user", "content": "the fox"}]
    transcript.encode(first)
    transcript.add_reply(tokenizer.encode("a dog"))
    other = [{"role": "system", "content": "be brief"}, *first]
    assert transcript.encode(other) == encode_chat(tokenizer, template, other)
    assert transcript.encode(first) == encode_chat(tokenizer, template, first)


def test_a_reply_cut_by_a_stop_string_is_encoded_as_it_was_shown(tiny_model):
    tokenizer, template = tokenizer_of(tiny_model), ChatTemplate(CHATML)
    transcript, messages = Transcript(tokenizer, template), [{"role": "user", "content": "the fox"}]
    transcript.encode(messages)
    transcript.add_reply(tokenizer.encode("the dog STOP"))
    messages += [{"role": "assistant", "content": "the dog "}, {"role": "user", "content": "and then"}]
    assert transcript.encode(messages) == encode_chat(tokenizer, template, messages)
