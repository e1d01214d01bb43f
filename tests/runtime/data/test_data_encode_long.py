"""Encoding a conversation as a whole: libraries that write spaces, where turns are cut, and how the work grows."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, trainers

from partita.data.encode import Encoder, Segment, _cuts, _cuts_of_ids, _ends, _merged
from partita.data.records import Chat, parse
from partita.errors import DataError
from partita.text.chat_template import ChatTemplate, encode_chat
from partita.text.load import tokenizer_from_folder
from partita.text.tokenizer import Tokenizer

from .templates import CHATML, MARKED, TALK


def space_writing_library(folder: Path) -> None:
    """As Llama 2's file: every text that is given to the library gets a space in front."""
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=90, show_progress=False, initial_alphabet=list("▁[]/INSTabcdefghijklmnopqrstuvwxyz?")
    )
    library.train_from_iterator(["▁the", "▁fox", "▁why", "▁a", "▁dog", "[INST]", "[/INST]"] * 2, trainer)
    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("<s>", "</s>")])
    library.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def spaces(tmp_path_factory):
    """A tokenizer that puts spaces in front, and a template that writes one between its text and the messages'."""
    path = tmp_path_factory.mktemp("spaces")
    space_writing_library(path)
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "chat_template": source}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizer_from_folder(path)
    return tokenizer, ChatTemplate.of(tokenizer)


def test_a_library_that_writes_spaces_is_given_the_whole(spaces):
    tokenizer, template = spaces
    talk = TALK[1:]
    (document,) = Encoder(tokenizer, template).encode(Chat(tuple(talk)))
    assert document.ids == encode_chat(tokenizer, template, talk, add_generation_prompt=False)
    runs = groupby(zip(document.ids, document.trained, strict=True), key=lambda pair: pair[1])
    trained = [tokenizer.decode([i for i, _ in run], specials=True, continues=True) for flag, run in runs if flag]
    assert trained == [" a dog </s>", " the end </s>"]
    assert document.ids.count(tokenizer.bos_id) == 2  # this template opens every question with it


@given(pairs=st.lists(st.tuples(*[st.text(" afoxdg[]?/s", min_size=1, max_size=9)] * 2), min_size=1, max_size=4))
@settings(max_examples=40)
def test_cuts_by_bytes_are_those_by_ids(spaces, pairs):
    """Of segments that end in what no token joins to its neighbours: control tokens and spaces behind brackets."""
    tokenizer, _ = spaces
    segments: list[Segment] = []
    for asked, said in pairs:
        prompt = [("<s>", True), (f"[INST] {asked} [/INST]", False)]
        segments += [(prompt, False), ([(f" {said} ", False), ("</s>", True)], True)]
    joined = tokenizer.encode_parts(_merged(part for parts, _ in segments for part in parts))
    text = "".join(text for parts, _ in segments for text, _ in parts)
    assert _ends(map(tokenizer.token_bytes, joined), text.encode()) is not None
    assert _cuts(tokenizer, segments, joined) == _cuts_of_ids(tokenizer, segments, joined)


class Counted:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_parts(self, parts: Any, **how: Any) -> list[int]:
        given = list(parts)
        self.characters += sum(len(text) for text, _ in given)
        return self._tokenizer.encode_parts(given, **how)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("kind", ["appends", "marks", "writes spaces"])
def test_work_grows_with_the_messages_and_not_with_their_square(with_template, spaces, kind, weights):
    tokenizer, template = spaces if kind == "writes spaces" else with_template(MARKED if kind == "marks" else CHATML)
    rendered = 0

    def counting(self: ChatTemplate, *arguments: Any) -> list[str]:
        nonlocal rendered
        texts = ChatTemplate.renderings(self, *arguments)
        rendered += sum(map(len, texts))
        return texts

    def work(count: int) -> tuple[int, int]:
        nonlocal rendered
        rendered = 0
        counted: Any = Counted(tokenizer)
        talk = [{"role": ("user", "assistant")[i % 2], "content": "a fox", "id": i} for i in range(count)]
        weigh = [{**m, "weight": i % 4 // 3} if weights and i % 2 else m for i, m in enumerate(talk)]
        (document,) = Encoder(counted, copy, None).encode(parse({"messages": weigh}))
        runs = [flag for flag, _ in groupby(document.trained) if flag]
        assert len(runs) == (count // 4 if weights else count // 2)
        return rendered, counted.characters

    copy: Any = type("Template", (ChatTemplate,), {"renderings": counting})(
        template.source, tokens=tokenizer.special_tokens
    )
    few, many = work(1100), work(2200)
    assert many[0] < 2.2 * few[0]
    assert many[1] < 2.2 * few[1]


def test_what_still_takes_the_square_has_a_bound(spaces):
    tokenizer, _ = spaces
    segments: list[Segment] = [([("a", False)], True)] * 2001
    with pytest.raises(DataError, match=r"1000 turns, .*split "):
        _cuts_of_ids(tokenizer, segments, [])
