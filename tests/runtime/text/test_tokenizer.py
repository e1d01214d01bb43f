"""Tokenizers of all three kinds, each from a tiny vocabulary trained here, judged by the library that defines it."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from partita.errors import CheckpointError, DataError, UnsupportedModel
from partita.text import pretokenizers, sentencepiece_model
from partita.text.load import tokenizer_from_folder, tokenizer_from_gguf

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "Hello world, hello again: 12 apples and 345 pears.",
    "  two spaces, a\ttab and naïve café 世界 are all text",
    "don't stop; we're here, they'll come in 2024.",
] * 5
TRICKY = [
    "",
    " ",
    "  lead",
    "trail  ",
    "a\n\n b\t",
    "héllo wörld",
    "世界 你好",
    "👩‍👩‍👧‍👦 🤽🏽 é",
    "\x00\x01",
    "don't 12345 ½",
    "\ufffd",
]
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
texts = st.one_of(st.text(max_size=40), st.sampled_from(TRICKY + CONTROLS), st.text("ab <|im_end>x", max_size=30))


def byte_level_library():
    library = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    library.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=400, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False),
    )
    return library


def byte_level_metadata(library, **changes):
    state = json.loads(library.to_str())
    vocabulary = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if token in CONTROLS else 1 for token, _ in vocabulary],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def train_sentencepiece(**options):
    buffer = io.BytesIO()
    settings_ = {"vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2} | options
    settings_ |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=buffer, **settings_)
    return buffer.getvalue()


def sentencepiece_metadata(proto, **changes):
    model = sentencepiece_model.read(proto, "test")
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [
            piece.replace("▁", " ") if kind == 4 else piece
            for piece, kind in zip(model.pieces, model.types, strict=True)
        ],
        "tokenizer.ggml.scores": model.scores,
        "tokenizer.ggml.token_type": model.types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


@pytest.fixture(scope="module")
def library():
    return byte_level_library()


@pytest.fixture(scope="module")
def proto():
    return train_sentencepiece(user_defined_symbols=["▁▁", "<turn>", "<start_of_turn>"], control_symbols=["<|im_end|>"])


@pytest.fixture(scope="module")
def every(library, proto, tmp_path_factory):
    """Every kind of tokenizer by name."""
    folder = tmp_path_factory.mktemp("folder")
    library.save(str(folder / "tokenizer.json"))
    return {
        "gguf-bpe": tokenizer_from_gguf(byte_level_metadata(library)),
        "gguf-sentencepiece": tokenizer_from_gguf(sentencepiece_metadata(proto)),
        "gguf-no-prefix": tokenizer_from_gguf(sentencepiece_metadata(proto, add_space_prefix=False)),
        "json-bpe": tokenizer_from_folder(folder),
        "json-metaspace": metaspace_folder(tmp_path_factory.mktemp("metaspace")),
        "sentencepiece": sentencepiece_folder(tmp_path_factory.mktemp("spm"), proto),
    }


def metaspace_folder(folder):
    """A tokenizer.json in the form of Llama 2: U+2581 for spaces, byte tokens, a post-processor that writes BOS."""
    base = sentencepiece_model.read(train_sentencepiece(), "test")
    index = {piece: i for i, piece in enumerate(base.pieces)}
    pairs = [
        (base.scores[i], left, right)
        for piece, i in index.items()
        if base.types[i] == 1 and len(piece) > 1
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        if left in index and right in index
    ]
    merges = [(left, right) for _, left, right in sorted(pairs, key=lambda pair: -pair[0])]
    library = tokenizers.Tokenizer(models.BPE(index, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<s>", "</s>")])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.enable_truncation(5)
    library.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer_from_folder(folder)


def sentencepiece_folder(folder, proto):
    (folder / "tokenizer.model").write_bytes(proto)
    size = len(sentencepiece_model.read(proto, "test").pieces)
    added = {str(size): {"content": "<|extra|>", "special": True}, str(size + 1): {"content": "<tool call>"}}
    config = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": added, "chat_template": "t"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer_from_folder(folder)


KINDS = ["gguf-bpe", "gguf-sentencepiece", "gguf-no-prefix", "json-bpe", "json-metaspace", "sentencepiece"]


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request, every):
    return every[request.param]


def streamed(tokenizer, ids, **options):
    stream = tokenizer.stream(**options)
    return "".join([*map(stream.push, ids), stream.finish()])


@given(data=st.data())
@settings(max_examples=60)
def test_a_stream_of_any_ids_equals_decoding_the_whole(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    options = {"specials": data.draw(st.booleans()), "continues": data.draw(st.booleans())}
    assert streamed(tokenizer, ids, **options) == tokenizer.decode(ids, **options)


@given(text=texts)
@settings(max_examples=60)
def test_text_comes_back_whole_and_streamed_and_is_never_a_control_token(tokenizer, text):
    text = text.replace("▁", "_")  # sentencepiece's own sign for a space
    ids = tokenizer.encode(text, bos=False)
    assert not set(ids) & set(tokenizer.controls.values())
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == text


@pytest.mark.parametrize("cut", range(1, 9))
def test_nothing_uncertain_is_pushed_at_any_byte_of_an_emoji(every, cut):
    """Byte tokens one at a time: text appears exactly when its last byte does."""
    data = "🤽é👩‍👧".encode()
    tokenizer = every["gguf-sentencepiece"]
    ids = {tokenizer.engine.token_text(i): i for i in range(tokenizer.vocab_size)}
    byte_ids = [ids[f"<0x{byte:02X}>"] for byte in data]
    stream = tokenizer.stream()
    pushed = "".join(map(stream.push, byte_ids[:cut]))
    assert pushed == data[:cut].decode("utf-8", "ignore")
    assert pushed + stream.finish() == data[:cut].decode("utf-8", "replace")


def test_byte_level_ids_are_those_of_the_library(every, library):
    for name in ("gguf-bpe", "json-bpe"):
        for text in [*TRICKY, *LINES]:
            ids = every[name].encode(text)
            assert ids == library.encode(text, add_special_tokens=False).ids
            assert every[name].decode(ids) == library.decode(ids, skip_special_tokens=True) == text


def test_sentencepiece_ids_and_text_are_those_of_the_library(every, proto):
    judge = sentencepiece.SentencePieceProcessor()
    judge.LoadFromSerializedProto(proto)
    for name in ("gguf-sentencepiece", "sentencepiece"):
        tokenizer = every[name]
        for text in [text for text in [*TRICKY, *LINES] if text]:
            ids = tokenizer.encode(text)
            assert ids == [1, *judge.encode(text)]
            assert tokenizer.decode(ids) == judge.decode(ids)


def test_metaspace_text_is_that_of_the_library(every):
    tokenizer = every["json-metaspace"]
    for text in [*TRICKY, *LINES]:
        ids = tokenizer.encode(text, bos=False)
        assert tokenizer.decode(ids) == tokenizer.engine._library.decode(ids) == text


def test_control_tokens_enter_only_where_asked(every):
    text = "a<|im_end|>b"
    for name in ("gguf-bpe", "json-bpe", "gguf-sentencepiece", "sentencepiece"):
        tokenizer = every[name]
        end = tokenizer.controls["<|im_end|>"]
        assert end not in tokenizer.encode(text)
        parsed = tokenizer.encode(text, specials=True, bos=False)
        assert parsed.count(end) == 1
        assert tokenizer.decode(parsed).replace(" ", "") == "ab"
        assert tokenizer.decode(parsed, specials=True).replace(" ", "") == text
        assert end not in tokenizer.encode(text)  # the switch went back


def test_markers_are_control_tokens_even_where_the_file_calls_them_user_defined(every):
    for name in ("gguf-sentencepiece", "sentencepiece"):
        tokenizer = every[name]
        turn = tokenizer.controls["<start_of_turn>"]
        assert turn not in tokenizer.encode("<start_of_turn>")
        assert turn in tokenizer.encode("<start_of_turn>", specials=True)
        assert "<turn>" not in tokenizer.controls  # an ordinary user-defined token is read from any text
        assert tokenizer.token_text(tokenizer.encode("a<turn>")[-1]) == "<turn>"


def test_added_tokens_extend_a_sentencepiece_vocabulary(every):
    tokenizer = every["sentencepiece"]
    call = tokenizer.encode("<tool call>", bos=False)[-1]
    assert call == tokenizer.vocab_size - 1
    assert tokenizer.decode([call]) == "<tool call>"
    assert tokenizer.encode("<|extra|>", specials=True)[-1] == call - 1
    assert tokenizer.chat_template == "t"


def test_exactly_one_bos(every, library):
    for name in ("gguf-sentencepiece", "json-metaspace", "sentencepiece"):
        tokenizer = every[name]
        assert tokenizer.adds_bos
        assert tokenizer.bos_token == "<s>"
        assert tokenizer.encode("hello")[0] == 1
        assert tokenizer.encode("hello").count(1) == 1
        assert tokenizer.encode("<s>hello", specials=True).count(1) == 1
        assert 1 not in tokenizer.encode("hello", bos=False)
        assert len(tokenizer.encode(LINES[0])) > 5  # a truncation setting in the file is not followed
    plain = every["gguf-bpe"]
    assert not plain.adds_bos
    assert plain.encode("hello", bos=True) == [1, *plain.encode("hello")]
    assert tokenizer_from_gguf(byte_level_metadata(library, add_bos_token=True)).encode("x")[0] == 1
    assert tokenizer_from_gguf(byte_level_metadata(library, pre="llama-bpe")).adds_bos
    with pytest.raises(DataError, match="no BOS"):
        every["json-bpe"].encode("x", bos=True)


def test_stop_ids_are_the_union_of_what_the_sources_name(every, library, tmp_path):
    assert every["gguf-bpe"].stop_ids == {0, 2}
    assert every["gguf-sentencepiece"].stop_ids == {2, every["gguf-sentencepiece"].controls["<|im_end|>"]}
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "bos_token_id": 1}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "!"}}))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.stop_ids == {0, 2, 7, 8, 9, library.token_to_id("!")}
    assert (tokenizer.bos_id, tokenizer.eos_token) == (1, "!")


def test_a_message_end_inside_a_turn_does_not_stop(library):
    for within, last in ((["<|end|>"], "<|return|>"), (["<|message|>", "<|eom|>"], "<|eot|>")):
        metadata = byte_level_metadata(library)
        metadata["tokenizer.ggml.tokens"] += [*within, last]
        metadata["tokenizer.ggml.token_type"] += [3] * (len(within) + 1)
        tokenizer = tokenizer_from_gguf(metadata)
        assert tokenizer.controls[last] in tokenizer.stop_ids
        assert not {tokenizer.controls[literal] for literal in within} & tokenizer.stop_ids


def test_token_text_is_printable(tokenizer):
    for token in range(tokenizer.vocab_size):
        text = tokenizer.token_text(token)
        assert text.isprintable()
        assert text
    assert tokenizer.token_text(tokenizer.encode("\n", bos=False)[-1]).endswith("\\n")


def test_a_leading_space_is_kept_where_text_continues(every):
    tokenizer = every["gguf-sentencepiece"]
    ids = tokenizer.encode("hello", bos=False)
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, continues=True) == " hello"


def test_lone_surrogates_become_replacement_characters(tokenizer):
    ids = tokenizer.encode("a\udce9b", bos=False)
    assert tokenizer.decode(ids) == "a\ufffdb"


@pytest.mark.parametrize("name", pretokenizers.names())
def test_every_pretokenizer_splits_without_loss(library, name):
    tokenizer = tokenizer_from_gguf(byte_level_metadata(library, pre=name))
    for text in ["don't stop 12345 HelloWorld\r\n  x\t世界 नमस्ते ½!?", "  a\n\n", "a.b(c)"]:
        assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "I'm 2024 now", ["I", "'m", " 2024", " now"]),
        ("smollm", "I'm 2024 now", ["I", "'m", " ", "2", "0", "2", "4", " now"]),
        ("tiny_aya", "I'm 20241 now", ["I'm", " ", "20", "241", " now"]),
        ("default", "go (2024)", ["go", " ", "(", "202", "4", ")"]),
        ("llama-bpe", "I'M 2024 (now)\n\nx", ["I", "'M", " ", "202", "4", " (", "now", ")\n\n", "x"]),
        ("qwen2", "x 2024", ["x", " ", "2", "0", "2", "4"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("deepseek-llm", "a b\n12", ["a", " b", "\n", "12"]),
        ("deepseek-v3", "x.y 1234", ["x", ".y", " ", "123", "4"]),
    ],
)
def test_pretokenizers_split_as_their_models_expect(name, text, pieces):
    splits = [
        pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
        for expression in pretokenizers.find(name).expressions
    ]
    assert [piece for piece, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)] == pieces


def test_composed_text_where_the_model_was_trained_on_it(library):
    qwen = tokenizer_from_gguf(byte_level_metadata(library, pre="qwen2"))
    assert qwen.encode("e\u0301") == qwen.encode("é")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pre": "martian"}, UnsupportedModel, "'martian'"),
        ({"model": "bert"}, UnsupportedModel, "'bert'"),
        ({"model": None}, CheckpointError, "no vocabulary"),
        ({"tokens": []}, CheckpointError, "tokens"),
        ({"merges": []}, CheckpointError, "merges"),
        ({"merges": ["a b c"]}, CheckpointError, "merges"),
        ({"merges": ["zzz yyy"]}, CheckpointError, "merges"),
        ({"token_type": [1]}, CheckpointError, "token_type"),
        ({"model": "llama"}, CheckpointError, "scores"),
        ({"tokens": [1, 2]}, CheckpointError, "entry 0"),
        ({"tokens": 5}, CheckpointError, "unexpected form"),
        ({"merges": [5]}, CheckpointError, "unexpected form"),
        ({"eos_token_id": "two"}, CheckpointError, "unexpected form"),
    ],
)
def test_damaged_metadata_is_named(library, changes, error, message):
    with pytest.raises(error, match=message):
        tokenizer_from_gguf(byte_level_metadata(library, **changes))


def test_duplicate_and_empty_tokens_keep_their_ids(library, proto):
    metadata = sentencepiece_metadata(proto)
    normal = [i for i, kind in enumerate(metadata["tokenizer.ggml.token_type"]) if kind == 1]
    metadata["tokenizer.ggml.tokens"][normal[-1]] = ""
    metadata["tokenizer.ggml.tokens"][normal[-2]] = metadata["tokenizer.ggml.tokens"][normal[0]]
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode(LINES[0])) == LINES[0]
    assert tokenizer.vocab_size == len(metadata["tokenizer.ggml.tokens"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer.json"),
        ({"tokenizer.json": "{"}, "tokenizer.json"),
        ({"tokenizer.model": "garbage"}, "tokenizer.model"),
        ({"tokenizer.model": ""}, "tokenizer.model"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "[1]"}, "tokenizer_config.json"),
        ({"tokenizer.json": "{}", "config.json": "{'"}, "config.json"),
        ({"tokenizer.model": "", "added_tokens.json": '{"x": "y"}'}, "tokenizer"),
    ],
)
def test_damaged_folders_are_named(tmp_path, files, message):
    for name, contents in files.items():
        (tmp_path / name).write_text(contents)
    with pytest.raises(CheckpointError, match=message) as caught:
        tokenizer_from_folder(tmp_path)
    assert "\n" not in str(caught.value)


@given(data=st.binary(max_size=60))
@settings(max_examples=100)
def test_any_bytes_as_a_sentencepiece_model_end_in_one_error(data):
    with pytest.raises(CheckpointError):
        sentencepiece_model.read(data + b"\x0a\x7f", "test")


def test_template_files_go_before_the_config(library, tmp_path):
    library.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_from_folder(tmp_path).chat_template is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert tokenizer_from_folder(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert tokenizer_from_folder(tmp_path).chat_template == "J"


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_size_of_a_template_is_bounded_before_it_is_read(library, tmp_path, name):
    library.save(str(tmp_path / "tokenizer.json"))
    with (tmp_path / name).open("wb") as file:
        file.truncate(3 << 30)  # sparse
    with pytest.raises(CheckpointError, match=f"{name}: 3221225472 bytes"):
        tokenizer_from_folder(tmp_path)
