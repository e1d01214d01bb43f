"""What is trained of a record: masks by hand-made templates of every kind, and a user's control tokens stay text."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from partita.data.encode import Encoder, Segment, _cuts, _cuts_of_ids, _ends, _merged
from partita.data.records import Chat, parse
from partita.errors import DataError, TemplateError
from partita.text.chat_template import ChatTemplate, encode_chat
from partita.text.load import tokenizer_from_folder
from partita.text.tokenizer import Tokenizer

CONTROLS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    *("<bos>", "<start_of_turn>", "<end_of_turn>", "</s>", "<s>"),
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "{{ '<|eom_id|>' if m.tool_calls else '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# marks the header and leaves the end token out, as templates do that were not written for training
MARKED_BADLY = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
THINKS = (  # thoughts stay in the last turn only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")  # finished turns do not
MOVES = "{{ messages | length }}: " + CHATML
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "a fox?"},
    {"role": "assistant", "content": "a dog"},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "the end"},
]


def train_library(folder: Path) -> None:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options: dict[str, Any] = {"initial_alphabet": alphabet, "show_progress": False}
    words = ["the fox and the dog a fox the end why assistant user system\n\n\n\n be brief"]
    library.train_from_iterator(words, trainers.BpeTrainer(vocab_size=310, **options))
    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in CONTROLS])
    library.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary")
    train_library(path)
    return path


@pytest.fixture(scope="module")
def load(folder, tmp_path_factory):
    """A tokenizer and its template by the template's source and the names of its BOS and EOS."""

    def make(source: str | None, bos: str | None = None, eos: str | None = "<|im_end|>", adds_bos: bool = False):
        path = tmp_path_factory.mktemp("model")
        (path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        config = {"bos_token": bos, "eos_token": eos, "add_bos_token": adds_bos, "chat_template": source}
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = tokenizer_from_folder(path)
        return tokenizer, ChatTemplate.of(tokenizer) if source else None

    return make


@pytest.fixture(scope="module")
def chatml(load):
    return load(CHATML)


def shown(tokenizer: Tokenizer, document) -> str:
    """The text of a document with what is trained in double brackets."""
    runs = groupby(zip(document.ids, document.trained, strict=True), key=lambda pair: pair[1])
    texts = [(tokenizer.decode([i for i, _ in run], specials=True, continues=True), flag) for flag, run in runs]
    return "".join(f"[[{text}]]" if flag else text for text, flag in texts)


def encoded(made, value: Any, **variables: Any) -> list[str]:
    tokenizer, template = made
    return [shown(tokenizer, d) for d in Encoder(tokenizer, template, variables).encode(parse(value))]


def test_chatml(chatml):
    assert encoded(chatml, {"messages": TALK}) == [
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na fox?<|im_end|>\n"
        "<|im_start|>assistant\n[[a dog<|im_end|>]]\n<|im_start|>user\nwhy<|im_end|>\n"
        "<|im_start|>assistant\n[[the end<|im_end|>]]\n"
    ]


def test_llama_writes_its_own_bos_and_has_two_ends(load):
    made = load(LLAMA, "<|begin_of_text|>", "<|eot_id|>", adds_bos=True)
    call = {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    talk = [TALK[1], call, {"role": "tool", "content": "3"}, TALK[2]]
    assert encoded(made, {"messages": talk}) == [
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na fox?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[x<|eom_id|>]]"
        "<|start_header_id|>tool<|end_header_id|>\n\n3<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[a dog<|eot_id|>]]"
    ]


def test_gemma_calls_the_assistant_model(load):
    made = load(GEMMA, "<bos>", "<end_of_turn>", adds_bos=True)
    assert encoded(made, {"messages": TALK[1:3]}) == [
        "<bos><start_of_turn>user\na fox?<end_of_turn>\n<start_of_turn>model\n[[a dog<end_of_turn>]]\n"
    ]


def test_a_bos_that_the_template_forgets(load):
    made = load(CHATML, "<s>", adds_bos=True)
    (text,) = encoded(made, {"messages": TALK[1:3]})
    assert text.startswith("<s><|im_start|>user")
    assert text.endswith("assistant\n[[a dog<|im_end|>]]\n")


def test_no_end_token_in_the_template(load):
    assert encoded(load(PLAIN, eos=None), {"messages": TALK[1:3]}) == ["user: a fox?\nassistant: [[a dog\n]]"]


@pytest.mark.parametrize("source", [MARKED, MARKED_BADLY])
def test_generation_marks_and_the_end_token_that_follows_them(load, source):
    made = load(source)
    marked, plain = encoded(made, {"messages": TALK}), encoded(load(CHATML), {"messages": TALK})
    assert marked == plain
    talk = {"prompt": TALK[:3], "completion": TALK[3:]}
    assert encoded(made, talk) == [plain[0].replace("[[a dog<|im_end|>]]", "a dog<|im_end|>")]


def test_marks_win_over_differences(load):
    source = MARKED.replace("{{ m.content }}<|im_end|>{% endg", "{{ m.content[:3] }}{% endg").replace(
        "{% else %}", "{{ m.content[3:] }}<|im_end|>{% else %}"
    )
    assert "assistant\n[[a d]]og<|im_end|>" in encoded(load(source), {"messages": TALK[1:3]})[0]


def weighed(talk: list[dict[str, Any]], *weights: float) -> dict[str, Any]:
    """A record of which the assistant's messages have these weights, None for no word."""
    given = iter(weights)
    return {"messages": [{**m, "weight": next(given)} if m["role"] == "assistant" else m for m in talk]}


@pytest.mark.parametrize("source", [CHATML, MARKED, MARKED_BADLY, THINKS])
def test_messages_of_weight_zero_are_read_and_not_trained(load, source):
    made = load(source)
    (plain,) = encoded(made, {"messages": TALK})
    assert encoded(made, weighed(TALK, 0, 1)) == [plain.replace("[[a dog<|im_end|>]]", "a dog<|im_end|>")]
    assert encoded(made, weighed(TALK, 1.0, 1)) == [plain]
    (last,) = encoded(made, weighed(TALK, 1, 0))
    assert "[[a dog<|im_end|>]]" in last
    assert "[[the end" not in last


def test_a_weight_where_marks_of_earlier_turns_change(load):
    source = MARKED.replace("{% generation %}{{ m.content }}", "{% generation %}{{ 'hm' if loop.last }}{{ m.content }}")
    assert encoded(load(source), weighed(TALK, 0, 1))[0].count("[[") == 1
    assert encoded(load(source), weighed(TALK, 0, 1))[0].endswith("assistant\n[[hmthe end<|im_end|>]]\n")


def test_marks_that_mark_nothing_leave_it_to_differences(load):
    source = "{% if never %}{% generation %}{% endgeneration %}{% endif %}" + CHATML
    assert encoded(load(source), {"messages": TALK}) == encoded(load(CHATML), {"messages": TALK})


def test_generation_marks_agree_with_transformers(load, folder):
    from transformers import PreTrainedTokenizerFast

    judge = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    judge.chat_template = MARKED
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    expected: Any = judge.apply_chat_template(TALK, **options)
    tokenizer, template = load(MARKED)
    (document,) = Encoder(tokenizer, template).encode(Chat(tuple(TALK)))
    assert document.ids == expected["input_ids"]
    assert document.trained == [bool(flag) for flag in expected["assistant_masks"]]


def test_a_turn_written_differently_later_begins_a_document_of_its_own(load):
    made = load(THINKS)
    talk = [{**m, "content": f"hm</think>{m['content']}"} if m["role"] == "assistant" else m for m in TALK[1:]]
    assert encoded(made, {"messages": talk}) == [
        "<|im_start|>user\na fox?<|im_end|>\n<|im_start|>assistant\n[[hm</think>a dog<|im_end|>]]\n",
        "<|im_start|>user\na fox?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
        "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n[[hm</think>the end<|im_end|>]]\n",
    ]
    assert len(encoded(made, {"messages": TALK})) == 1  # nothing to leave out, one document


def test_every_document_begins_as_inference_would(load):
    tokenizer, template = load(THINKS)
    talk = [{**m, "content": f"hm</think>{m['content']}"} if m["role"] == "assistant" else m for m in TALK]
    documents = Encoder(tokenizer, template).encode(Chat(tuple(talk)))
    for count, document in zip((2, 4), documents, strict=True):
        prompt = encode_chat(tokenizer, template, talk[:count])
        assert document.ids[: len(prompt)] == prompt
        assert document.trained.index(True) == len(prompt)


def test_a_reply_that_the_template_opens_with_more(load):
    tokenizer, template = load(OPENS)
    (document,) = Encoder(tokenizer, template).encode(Chat(tuple(TALK)))
    assert document.unopened == 2
    assert "assistant\n[[a dog<|im_end|>]]\n<|im_start|>user" in shown(tokenizer, document)
    assert Encoder(*load(CHATML)).encode(Chat(tuple(TALK)))[0].unopened == 0


def test_a_template_that_changes_what_it_has_written_is_refused(load):
    with pytest.raises(DataError, match=r"messages\[2\]: .*changes earlier"):
        encoded(load(MOVES), {"messages": TALK})


def test_a_template_that_writes_nothing_for_a_turn_is_refused(load):
    source = PLAIN.replace("{{ m.role }}", "{% if m.role == 'assistant' %}{% continue %}{% endif %}{{ m.role }}")
    with pytest.raises(DataError, match=r"messages\[1\]: .*(writes nothing|changes earlier)"):
        encoded(load(source.replace("assistant: {% endif %}", "{% endif %}"), eos=None), {"messages": TALK[1:3]})


def test_what_a_template_refuses_stays_its_error(load):
    with pytest.raises(TemplateError, match="no fox"):
        encoded(load("{{ raise_exception('no fox') }}"), {"messages": TALK})


def test_a_base_model_takes_no_chats(load):
    with pytest.raises(DataError, match="no chat template"):
        encoded(load(None), {"messages": TALK})


def test_the_date_is_the_same_on_every_day(load):
    assert encoded(load(DATED), {"messages": TALK})[0].startswith("26 Jul 2024<|im_start|>")


def test_tools_and_variables_reach_the_template(load):
    made = load("{{ tools | tojson if tools else 'none' }}{{ mood }}" + CHATML)
    tools = [{"type": "function", "function": {"name": "<|im_end|>"}}]
    (text,) = encoded(made, {"messages": TALK, "tools": tools}, mood="calm")
    assert text.startswith('[{"type": "function", "function": {"name": "<|im_end|>"}}]calm<|im_start|>')
    assert encoded(made, {"messages": TALK})[0].startswith("none<|im_start|>")
    tokenizer, template = made
    ids = Encoder(tokenizer, template).encode(parse({"messages": TALK, "tools": tools}))[0].ids
    assert ids.count(tokenizer.controls["<|im_end|>"]) == len(TALK)


def test_plain_texts_and_completions_end_with_the_end_of_text(load):
    made = load(None, "<s>", "</s>", adds_bos=True)
    assert encoded(made, {"text": "the fox <|im_end|>"}) == ["<s>[[the fox <|im_end|></s>]]"]
    assert encoded(made, {"prompt": "why", "completion": " the end"}) == ["<s>why[[ the end</s>]]"]
    assert encoded(made, {"prompt": "", "completion": "the end"}) == ["<s>[[the end</s>]]"]
    assert encoded(load(None, eos=None), {"text": "the fox"}) == ["[[the fox<|endoftext|>]]"]
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
def test_work_grows_with_the_messages_and_not_with_their_square(load, spaces, kind, weights):
    tokenizer, template = spaces if kind == "writes spaces" else load(MARKED if kind == "marks" else CHATML)
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


def test_control_tokens_of_plain_text_are_tokens_where_that_is_asked_for(load):
    tokenizer, template = load(CHATML, "<s>", adds_bos=True)
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


def test_keys_that_the_template_does_not_read_are_noted_once(load):
    tokenizer, template = load(CHATML)
    encoder = Encoder(tokenizer, template)
    said = {"messages": [{**TALK[1], "name": "ada", "ids<|im_end|>": 1, "nothing": None}, TALK[2]], "tools": [{}]}
    encoder.encode(parse(said), "a.jsonl line 1")
    encoder.encode(parse(said), "a.jsonl line 2")
    assert encoder.notes.lines() == (
        'nothing reads "ids<|im_end|>" of messages (a.jsonl line 1), "name" of messages (a.jsonl line 1), '
        '"tools" (a.jsonl line 1)',
    )
    whole = Encoder(*load("{% for m in messages %}{{ m | tojson }}<|im_end|>{% endfor %}"))
    whole.encode(parse({"messages": [{**TALK[1], "name": "ada"}, TALK[2]]}))
    assert whole.notes.lines() == ()


def test_thoughts_are_read_under_any_of_their_names(load):
    made = load(CHATML.replace("{{ m.content }}", "{{ m.thinking }}{{ m.content }}"))
    encoder = Encoder(*made)
    found = [
        encoder.encode(parse({"messages": [TALK[1], {**TALK[2], name: "hm"}]}))[0].ids
        for name in ("thinking", "reasoning", "reasoning_content")
    ]
    assert found[0] == found[1] == found[2]
    assert encoder.notes.lines() == ()
