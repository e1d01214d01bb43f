"""A folder's tokenizer as GGUF keys: the same ids for any text, and what GGUF cannot say refused by name."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.text.load import tokenizer_from_folder, tokenizer_from_gguf
from partita.text.pretokenizers import find
from partita.text.tokenizer import Tokenizer
from partita_convert.gguf import vocabulary
from partita_convert.gguf.file import Typed
from partita_convert.gguf.tokenizer import SAMPLES, tokenizer_keys
from partita_convert.tokenizer_files import write_tokenizer

from ..conftest import SPECIALS, TEMPLATE, WORDS

LINES = [WORDS, "Ünïcödé 日本語 text, 1234 numbers", "and more of the same: the fox, the dog, the end.", *SAMPLES[:3]]
ROWS = 512
ENOUGH = {"model.embed_tokens.weight": np.zeros((ROWS, 8), np.float32)}

Keys = dict[str, Any]
Folder = Callable[..., Path]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Folder:
    """A model folder with another tokenizer: files by name, JSON where they are not bytes."""

    def make(**files: Any) -> Path:
        path = tmp_path / "model"
        shutil.copytree(tiny_model, path, ignore=shutil.ignore_patterns("tokenizer*"))
        config = json.loads((path / "config.json").read_text()) | {"eos_token_id": None}  # an id of another vocabulary
        (path / "config.json").write_text(json.dumps(config))
        save_file(ENOUGH, path / "model.safetensors")
        for name, value in files.items():
            file = path / name.replace("__", ".")
            file.write_bytes(value) if isinstance(value, bytes) else file.write_text(json.dumps(value))
        return path

    return make


def keys_of(path: Path, rows: int = ROWS) -> Keys:
    return {key: value.value for key, value in tokenizer_keys(open_checkpoint(path), rows).items()}


def byte_level(pre_tokenizer: Any = None, normalizer: Any = None, merges: int = 60) -> dict[str, Any]:
    """A tokenizer.json, trained on LINES."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(LINES, trainer)
    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIALS])
    library.add_tokens([AddedToken("<tool_call>", normalized=False)])
    value = json.loads(library.to_str())
    if pre_tokenizer is not None:
        value["pre_tokenizer"] = pre_tokenizer
    return value | {"normalizer": normalizer}


def splits(*expressions: str) -> dict[str, Any]:
    parts = [{"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False} for e in expressions]
    byte_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*parts, byte_step]}


def pieces(**options: Any) -> bytes:
    buffer = io.BytesIO()
    settings_ = {"vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    settings_ |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=buffer, **settings_)
    return buffer.getvalue()


CONFIG = {"bos_token": None, "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}


GEMMA4_CONFIG = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
GEMMA4 = {"general.architecture": Typed("str", "gemma4")}


def spaced(*, bytes_too: bool = True) -> dict[str, Any]:
    """A tokenizer.json in the form of Gemma 4's, trained on LINES, with four control tokens behind its vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=bytes_too))
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")  # as its merges never cross them
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    first = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=first, show_progress=False)
    library.train_from_iterator([*LINES, "a\n\nb\n\n\nc\n\n"], trainer)
    marks = ["<|turn>", "<turn|>", "<|channel>", "<channel|>"]
    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in marks])
    value = json.loads(library.to_str())
    value["added_tokens"] = [token for token in value["added_tokens"] if not token["content"].startswith("<0x")]
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return value | {"pre_tokenizer": split}


# --- with merges, of text whose spaces are letters


def test_a_vocabulary_of_gemma_4_keeps_its_merges(folder: Folder, tmp_path: Path) -> None:
    path = folder(tokenizer__json=spaced(), tokenizer_config__json=GEMMA4_CONFIG)
    keys = {key: value.value for key, value in tokenizer_keys(open_checkpoint(path), ROWS, GEMMA4).items()}
    assert keys["tokenizer.ggml.model"] == "gemma4"
    assert keys["tokenizer.ggml.merges"] == [" ".join(pair) for pair in spaced()["model"]["merges"]]
    types = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True))
    assert [types[name] for name in ("<unk>", "<turn|>", "<|channel>", "<0x41>", "▁")] == [2, 3, 4, 6, 1]
    source, back = tokenizer_from_folder(path), tokenizer_from_gguf(keys)
    for text in (*SAMPLES, *LINES, "\n\n\n\n a\n", "<|turn>user\nhi<turn|>\n"):
        for specials in (False, True):
            ids = source.encode(text, specials=specials)
            assert back.encode(text, specials=specials) == ids
            assert back.decode(ids) == source.decode(ids)
    assert not back.adds_bos
    del keys["tokenizer.ggml.add_bos_token"]
    assert tokenizer_from_gguf(keys).adds_bos


def test_a_vocabulary_of_gemma_4_from_a_file_to_a_folder(folder: Folder, tmp_path: Path) -> None:
    """What transformers reads of it gives the same ids and text."""
    from transformers import PreTrainedTokenizerFast

    path = folder(tokenizer__json=spaced(), tokenizer_config__json=GEMMA4_CONFIG)
    source = tokenizer_from_folder(path)
    keys = tokenizer_keys(open_checkpoint(path), ROWS, GEMMA4)
    checkpoint = open_checkpoint(path)
    object.__setattr__(checkpoint, "metadata", {key: value.value for key, value in keys.items()})
    (tmp_path / "out").mkdir()
    write_tokenizer(checkpoint, tmp_path / "out")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    written = tokenizer_from_folder(tmp_path / "out")
    for text in (*SAMPLES, *LINES):
        ids = source.encode(text, bos=False)
        assert written.encode(text, bos=False) == ids
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
        assert theirs.decode(ids) == source.decode(ids)


def test_a_vocabulary_of_gemma_4_without_bytes(folder: Folder) -> None:
    path = folder(tokenizer__json=spaced(bytes_too=False), tokenizer_config__json=GEMMA4_CONFIG)
    with pytest.raises(UnsupportedModel, match="or has no bytes, for this model; write `to` mlx"):
        tokenizer_keys(open_checkpoint(path), ROWS, GEMMA4)


# --- byte-level


@pytest.mark.parametrize(
    "name", ["llama-bpe", "qwen2", "dbrx", "gpt-4o", "smollm", "tekken", "stablelm2", "deepseek-v3"]
)
def test_pre_tokenizers_are_found_by_their_expressions(name: str, folder: Folder) -> None:
    known = find(name)
    library = byte_level(splits(*known.expressions), {"type": "NFC"} if known.nfc else None)
    library["model"]["ignore_merges"] = known.whole_words
    path = folder(tokenizer__json=library, tokenizer_config__json=CONFIG)
    keys = keys_of(path)
    assert keys["tokenizer.ggml.pre"] == name
    source, back = tokenizer_from_folder(path), tokenizer_from_gguf(keys)
    for text in (*SAMPLES, *LINES):
        assert back.encode(text, specials=True) == source.encode(text, specials=True)


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, "gpt-2"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                ],
            },
            "smollm",
        ),
        (splits(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "gpt-2"),
    ],
)
def test_the_librarys_own_steps_have_names(pre_tokenizer: Any, name: str, folder: Folder) -> None:
    path = folder(tokenizer__json=byte_level(pre_tokenizer), tokenizer_config__json=CONFIG)
    assert keys_of(path)["tokenizer.ggml.pre"] == name


def test_words_taken_whole_where_merging_finds_them_anyway(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    library = byte_level(splits(*find("dbrx").expressions))
    library["model"]["ignore_merges"] = True
    path = folder(tokenizer__json=library, tokenizer_config__json=CONFIG)
    assert keys_of(path)["tokenizer.ggml.pre"] == "llama-bpe"
    library = byte_level(splits(*find("gpt-4o").expressions))  # no name with words taken whole
    library["model"]["ignore_merges"] = True
    (path / "tokenizer.json").write_text(json.dumps(library))
    assert keys_of(path)["tokenizer.ggml.pre"] == "gpt-4o"
    monkeypatch.setattr(vocabulary, "_all_merge", lambda model: False)
    with pytest.raises(UnsupportedModel, match="expressions"):
        keys_of(path)


def test_ids_types_and_template(folder: Folder) -> None:
    path = folder(tokenizer__json=byte_level(), tokenizer_config__json=CONFIG)
    keys = keys_of(path)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == ROWS
    assert [types[tokens.index(name)] for name in SPECIALS] == [3, 3, 3]
    assert types[tokens.index("<tool_call>")] == 4
    assert types[tokens.index("Ġthe")] == 1
    assert (tokens[-1], types[-1]) == (f"[PAD{ROWS - 1}]", 5)
    assert keys["tokenizer.ggml.eos_token_id"] == tokens.index("<|im_end|>")
    assert "tokenizer.ggml.bos_token_id" not in keys
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.chat_template"] == TEMPLATE
    assert keys["tokenizer.ggml.merges"][0].count(" ") == 1
    back = tokenizer_from_gguf(keys)
    assert back.encode("<|im_start|>", specials=False) != [tokens.index("<|im_start|>")]
    assert back.stop_ids == tokenizer_from_folder(path).stop_ids


def test_a_template_for_tools_goes_along(folder: Folder, tmp_path: Path) -> None:
    by_name = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools" + TEMPLATE}]
    path = folder(tokenizer__json=byte_level(), tokenizer_config__json={**CONFIG, "chat_template": by_name})
    back = tokenizer_from_gguf(keys_of(path))
    (path / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "chat_template": None}))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("tools" + TEMPLATE)
    (tmp_path / "out").mkdir()
    write_tokenizer(open_checkpoint(path), tmp_path / "out")
    for found in (back, tokenizer_from_folder(path), tokenizer_from_folder(tmp_path / "out")):
        assert (found.chat_template, found.tool_template) == (TEMPLATE, "tools" + TEMPLATE)
        assert found.special_tokens == {"eos_token": "<|im_end|>"}


def test_merges_as_strings_and_as_pairs_are_the_same(folder: Folder) -> None:
    library = byte_level()
    path = folder(tokenizer__json=library, tokenizer_config__json=CONFIG)
    first = keys_of(path)
    library["model"]["merges"] = [" ".join(pair) for pair in library["model"]["merges"]]
    (path / "tokenizer.json").write_text(json.dumps(library))
    assert keys_of(path) == first


def test_ends_of_turn_and_message(folder: Folder) -> None:
    library = byte_level()
    ids = {entry["content"]: entry["id"] for entry in library["added_tokens"]}
    path = folder(tokenizer__json=library, tokenizer_config__json=CONFIG)
    ends = [ids["<|endoftext|>"], ids["<|im_end|>"], ids["<|im_start|>"]]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    keys = keys_of(path)
    assert keys["tokenizer.ggml.eos_token_id"] == ids["<|im_end|>"]
    assert {keys["tokenizer.ggml.eot_token_id"], keys["tokenizer.ggml.eom_token_id"]} == {ends[0], ends[2]}
    assert set(ends) <= tokenizer_from_gguf(keys).stop_ids
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ends, 5]}))
    with pytest.raises(UnsupportedModel, match="4 ends"):
        keys_of(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"pre_tokenizer": splits(r"\p{L}+|[0-9]{2}")}, r"expressions .*\[0-9\]\{2\}"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "add_prefix_space"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}]}}, "Punctuation"),
        ({"normalizer": {"type": "NFKC"}}, "NFKC"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
    ],
)
def test_steps_that_gguf_cannot_say(change: dict[str, Any], what: str, folder: Folder) -> None:
    good = byte_level()
    path = folder(tokenizer__json=good, tokenizer_config__json=CONFIG)
    (path / "tokenizer.json").write_text(json.dumps(good | change))
    with pytest.raises(UnsupportedModel, match=f"{what}.*`to` mlx"):
        vocabulary.read_vocabulary(path)


def test_more_tokens_than_rows(folder: Folder) -> None:
    path = folder(tokenizer__json=byte_level(), tokenizer_config__json=CONFIG)
    with pytest.raises(CheckpointError, match="tokens, and an embedding of 100 rows"):
        keys_of(path, 100)


def test_no_tokenizer(folder: Folder) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        keys_of(folder())


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model": 3}', '{"model": {"type": "BPE", "merges": 3}, "added_tokens": []}']
)
def test_damaged_files_are_one_error(text: str, folder: Folder) -> None:
    path = folder(tokenizer_config__json=CONFIG)
    (path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="tokenizer"):
        vocabulary.read_vocabulary(path)


def test_a_vocabulary_that_would_split_otherwise_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tokenizer__json=byte_level(), tokenizer_config__json=CONFIG)
    monkeypatch.setattr(vocabulary, "_pre", lambda library, model: "default")
    with pytest.raises(UnsupportedModel, match=r"would split .* otherwise"):
        keys_of(path)


# --- sentencepiece


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_model(prefix: bool, folder: Folder) -> None:
    path = folder(tokenizer__model=pieces(add_dummy_prefix=prefix), tokenizer_config__json=LLAMA)
    keys = keys_of(path)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is prefix
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert keys["tokenizer.ggml.unknown_token_id"] == 0
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    source, back = tokenizer_from_folder(path), tokenizer_from_gguf(keys)
    for text in (*SAMPLES, *LINES, ""):
        assert back.encode(text) == source.encode(text)
        assert back.decode(back.encode(text)) == text


def test_added_tokens_and_ends_of_text(folder: Folder) -> None:
    added = {
        "420": {"content": "<|end|>", "special": True},
        "421": {"content": "two words", "special": False},
        "0": {"content": "<unk>", "special": True},
    }
    config = LLAMA | {"added_tokens_decoder": added, "add_eos_token": True, "pad_token": "<|end|>"}
    path = folder(tokenizer__model=pieces(), tokenizer_config__json=config)
    keys = keys_of(path)
    assert keys["tokenizer.ggml.tokens"][420:422] == ["<|end|>", "two words"]
    assert keys["tokenizer.ggml.token_type"][420:423] == [3, 4, 5]
    assert keys["tokenizer.ggml.token_type"][0] == 2
    assert keys["tokenizer.ggml.padding_token_id"] == 420
    assert keys["tokenizer.ggml.add_eos_token"] is True
    assert tokenizer_from_gguf(keys).encode("a two words b", bos=False) == tokenizer_from_folder(path).encode(
        "a two words b", bos=False
    )


@pytest.fixture(scope="module")
def merged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """A sentencepiece vocabulary kept as tokenizer.json alone, and as GGUF from it."""
    base = tmp_path_factory.mktemp("merged")
    shutil.copytree(tiny_model, base / "pieces", ignore=shutil.ignore_patterns("tokenizer*"))
    config = json.loads((base / "pieces" / "config.json").read_text()) | {"eos_token_id": 2}
    (base / "pieces" / "config.json").write_text(json.dumps(config))
    save_file(ENOUGH, base / "pieces" / "model.safetensors")
    (base / "pieces" / "tokenizer.model").write_bytes(pieces())
    (base / "pieces" / "tokenizer_config.json").write_text(json.dumps(LLAMA))
    source = open_checkpoint(base / "pieces")
    keys = {key: value.value for key, value in tokenizer_keys(source, ROWS).items()}
    object.__setattr__(source, "metadata", keys)  # as if it had come from a GGUF file
    shutil.copytree(base / "pieces", base / "json", ignore=shutil.ignore_patterns("tokenizer*"))
    write_tokenizer(source, base / "json")
    assert not (base / "json" / "tokenizer.model").exists()
    back = tokenizer_keys(open_checkpoint(base / "json"), ROWS)
    metadata = {key: value.value for key, value in back.items()}
    assert metadata["tokenizer.ggml.token_type"][:420] == keys["tokenizer.ggml.token_type"][:420]
    assert metadata["tokenizer.ggml.tokens"] == keys["tokenizer.ggml.tokens"]
    return tokenizer_from_gguf(keys), tokenizer_from_gguf(metadata)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("the quickbrownfxjmpdovlazy  ,.12Ü日\n🚀") | st.characters(codec="utf-8"), max_size=60))
def test_scores_from_merges_give_the_same_ids(merged: tuple[Tokenizer, Tokenizer], text: str) -> None:
    first, second = merged
    assert second.encode(text) == first.encode(text)


def test_scores_of_a_model_beside_the_json_are_its_own(folder: Folder, tiny_model: Path, tmp_path: Path) -> None:
    data = pieces()
    path = folder(tokenizer__model=data, tokenizer_config__json=LLAMA)
    scores = keys_of(path)["tokenizer.ggml.scores"]
    source = open_checkpoint(path)
    object.__setattr__(source, "metadata", keys_of(path))
    write_tokenizer(source, path)  # tokenizer.json beside it
    assert keys_of(path)["tokenizer.ggml.scores"] == scores
    (path / "tokenizer.model").write_bytes(pieces(vocab_size=400))  # of another model
    assert keys_of(path)["tokenizer.ggml.scores"] != scores


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"model_type": "unigram", "vocab_size": 380}, "unigrams"),
        ({"remove_extra_whitespaces": True}, "shortens runs of spaces"),
    ],
)
def test_models_that_gguf_cannot_say(options: dict[str, Any], what: str, folder: Folder) -> None:
    path = folder(tokenizer__model=pieces(**options), tokenizer_config__json=LLAMA)
    with pytest.raises(UnsupportedModel, match=f"tokenizer.model.*{what}.*`to` mlx"):
        keys_of(path)


def test_a_gguf_source_keeps_its_keys_and_needs_a_vocabulary(folder: Folder) -> None:
    source = open_checkpoint(folder(tokenizer__json=byte_level(), tokenizer_config__json=CONFIG))
    metadata = {key: value.value for key, value in tokenizer_keys(source, ROWS).items()}
    metadata["tokenizer.ggml.seperator_token_id"] = 3
    object.__setattr__(source, "metadata", metadata)
    assert {key: value.value for key, value in tokenizer_keys(source, ROWS).items()} == metadata
    with pytest.raises(CheckpointError, match="512 tokens, and an embedding of 600 rows"):
        tokenizer_keys(source, 600)
    object.__setattr__(source, "metadata", {})
    with pytest.raises(CheckpointError, match="no vocabulary"):
        tokenizer_keys(source, ROWS)


# --- what stands beside control tokens


TURNS = "<|user|>\nthe fox<|end|> \n<|assistant|>\n"


def phi3(**config: Any) -> dict[str, Any]:
    """A tokenizer_config.json whose added tokens swallow white space after them."""
    names = ["<|end|>", "<|user|>", "<|assistant|>"]
    added = {str(420 + i): {"content": name, "rstrip": True, "special": True} for i, name in enumerate(names)}
    added["2"] = added["420"] | {"content": "</s>"}
    return LLAMA | {"added_tokens_decoder": added} | config


def test_tokens_that_swallow_white_space_cannot_be_said_but_by_a_name_that_readers_know(folder: Folder) -> None:
    path = folder(tokenizer__model=pieces(), tokenizer_config__json=phi3())
    with pytest.raises(UnsupportedModel, match="otherwise"):
        keys_of(path)
    general = {"general.name": Typed("str", "phi-3"), "general.architecture": Typed("str", "phi3")}
    keys = {**general, **tokenizer_keys(open_checkpoint(path), ROWS, general)}
    source, back = tokenizer_from_folder(path), tokenizer_from_gguf({key: value.value for key, value in keys.items()})
    assert back.encode(TURNS, specials=True) == source.encode(TURNS, specials=True)
    assert back.decode(back.encode(TURNS, specials=True)) == "the fox"


@pytest.mark.parametrize("architecture", ["phi3", "llama"])
def test_phi3s_vocabulary_as_json_swallows_white_space_too(architecture: str, folder: Folder, tmp_path: Path) -> None:
    path = folder(tokenizer__model=pieces(), tokenizer_config__json=phi3(legacy=architecture == "phi3"))
    source = open_checkpoint(path)
    general = {"general.name": Typed("str", "Phi 3 mini"), "general.architecture": Typed("str", architecture)}
    keys = {**general, **tokenizer_keys(source, ROWS, general)}
    object.__setattr__(source, "metadata", {key: value.value for key, value in keys.items()})
    (tmp_path / "out").mkdir()
    write_tokenizer(source, tmp_path / "out")
    written, read = tokenizer_from_folder(tmp_path / "out"), tokenizer_from_folder(path)
    for text in (TURNS, "the fox", "the<|user|>fox <|end|> and\n\n<|end|>\n\n"):
        assert written.encode(text, specials=True) == read.encode(text, specials=True)
