"""What stands beside a control token: the same from tokenizer.json, tokenizer.model and GGUF."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Library

from partita.errors import CheckpointError
from partita.text import sentencepiece_model
from partita.text.added_tokens import Added, Literals
from partita.text.load import tokenizer_from_folder, tokenizer_from_gguf

from .test_tokenizer import sentencepiece_metadata, train_sentencepiece

NAMES = ["<|user|>", "<|end|>", "<|assistant|>", "<call>"]
TURNS = "<|user|>\nhello world  <|end|>\n <|assistant|> \n\thello<|end|>  again <call> x<call>y"
FLAGS = ("lstrip", "rstrip", "single_word")


@pytest.fixture(scope="module")
def proto():
    return train_sentencepiece()


def described(flags, special=True):
    return {"content": "", "normalized": False, "special": special} | dict.fromkeys(FLAGS, False) | flags


def model_folder(folder, proto, flags, **settings_):
    """A tokenizer.model whose added tokens have these flags, the last of them no control token."""
    size = len(sentencepiece_model.read(proto, "test").pieces)
    added = {
        str(size + i): described(flags[i], special=name != "<call>") | {"content": name} for i, name in enumerate(NAMES)
    }
    (folder / "tokenizer.model").write_bytes(proto)
    config = {"added_tokens_decoder": added, "add_bos_token": False, **settings_}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer_from_folder(folder)


def json_folder(folder, proto, flags, scheme):
    """The same vocabulary as a tokenizer.json: merges in the order of scores, the space from a metaspace step."""
    base = sentencepiece_model.read(proto, "test")
    index = {piece: i for i, piece in enumerate(base.pieces)}
    merges = [
        (-base.scores[i], index[piece[:cut]], index[piece[cut:]], [piece[:cut], piece[cut:]])
        for piece, i in index.items()
        if base.types[i] == 1
        for cut in range(1, len(piece))
        if piece[:cut] in index and piece[cut:] in index
    ]
    added = [
        {"id": len(index) + i} | described(flags[i], special=name != "<call>") | {"content": name}
        for i, name in enumerate(NAMES)
    ]
    model = {"type": "BPE", "vocab": index, "merges": [pair for *_, pair in sorted(merges)]}
    document = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "model": model | {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return tokenizer_from_folder(folder)


neighbours = st.fixed_dictionaries({name: st.booleans() for name in FLAGS})
# no space where one is put in front: sentencepiece puts a second, the other library does not
words = st.sampled_from([*NAMES, "hello", "world", "x", "é", "\n", "\t", "\u3000"])
texts = st.lists(words, min_size=1, max_size=12).map("".join)


@given(flags=st.lists(neighbours, min_size=4, max_size=4), legacy=st.booleans(), text=texts)
@example(flags=[dict.fromkeys(FLAGS, False)] * 4, legacy=False, text="<call>hello")  # where no space is put in front
@settings(max_examples=60)
def test_a_sentencepiece_model_reads_them_as_a_json(proto, tmp_path_factory, flags, legacy, text):
    folder = tmp_path_factory.mktemp("m")
    (folder / "json").mkdir()
    theirs = json_folder(folder / "json", proto, flags, "always" if legacy else "first")
    ours = model_folder(folder, proto, flags, legacy=legacy)
    for specials in (False, True):
        assert ours.encode(text, specials=specials) == theirs.encode(text, specials=specials)


def test_a_space_goes_after_control_tokens_as_long_as_the_file_does_not_say_otherwise(proto, tmp_path):
    flags = [{}] * 4
    default, legacy, first = (
        model_folder(tmp_path, proto, flags, **settings_).encode("<|user|>hello", specials=True)
        for settings_ in ({}, {"legacy": True}, {"legacy": False})
    )
    assert default == legacy != first


def test_tokens_with_spaces_in_them_are_found(proto, tmp_path):
    flags = [{}] * 4
    config = json.loads((model_folder(tmp_path, proto, flags) and tmp_path / "tokenizer_config.json").read_text())
    for entry in config["added_tokens_decoder"].values():
        entry["content"] = entry["content"].replace("<", "<a ")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.encode("<a |user|>", specials=True) == [tokenizer.vocab_size - 4]
    assert tokenizer.encode("<a call>", specials=False)[-1] == tokenizer.vocab_size - 1


@given(flags=st.lists(neighbours, min_size=3, max_size=3), text=st.text("ab <>\n\t_é", max_size=20))
@settings(max_examples=300)
def test_literals_are_found_as_by_the_library(flags, text):
    names = ["<", "<a>", " b"]
    library = Library(models.BPE({letter: i for i, letter in enumerate("ab <>\n\t_é")}, []))
    library.add_special_tokens(
        [AddedToken(name, normalized=False, special=True, **flags[i]) for i, name in enumerate(names)]
    )
    tokens = {name: library.token_to_id(name) for name in names}
    found = Literals(tokens, {name: Added(name, **flags[i]) for i, name in enumerate(names)}).split(text)
    ids = [i for _, part, token in found for i in ([token] if token is not None else map(library.token_to_id, part))]
    assert ids == library.encode(text).ids


def test_many_literals_cost_no_more_than_one():
    literals = Literals({f"<unused{i}>": i for i in range(20_000)})
    assert [token for _, _, token in literals.split("<unused19999><unused1>x<unused")] == [19999, 1, None]
    assert len(literals.pattern.pattern) < 100_000
    assert [part for _, part, _ in Literals({}).split("abc")] == ["abc"]


def test_literals_that_go_on_and_on_are_refused():
    with pytest.raises(CheckpointError, match="begin with one another"):
        _ = Literals({"a" * i + "b": i for i in range(1, 200)}).pattern


# --- GGUF: no key says it


def gguf(proto, more=(), **general):
    metadata = sentencepiece_metadata(proto, add_bos_token=False)
    names = [*NAMES[:3], "<|endoftext|>", *more]
    metadata["tokenizer.ggml.tokens"] += names
    metadata["tokenizer.ggml.token_type"] += [3] * len(names)
    metadata["tokenizer.ggml.scores"] += [0.0] * len(names)
    return metadata | {f"general.{key}": value for key, value in general.items()}


def shown(metadata, text):
    tokenizer = tokenizer_from_gguf(metadata)
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, specials=True)]


TEXT = "<|user|>\nhe<|end|> \n<|assistant|>\n"


@pytest.mark.parametrize("name", ["phi3", "Phi-3-mini-4k-instruct", "Phi 3.5 Mini Instruct", "tuned_phi-3"])
@pytest.mark.parametrize(("architecture", "word"), [("llama", ["he"]), ("phi3", ["·he"])])
def test_phi3_swallows_white_space_by_its_name(proto, name, architecture, word):
    metadata = gguf(proto, name=name, architecture=architecture)
    assert shown(metadata, TEXT) == ["<|user|>", *word, "<|end|>", "<|assistant|>"]
    assert shown(metadata, "<s>\n<|endoftext|>\n")[-1] == "\\n"  # as its own config says of these two


def test_phi3_swallows_white_space_by_its_tokens(proto):
    metadata = gguf(proto, ["<|placeholder1|>"], name="mine", architecture="phi3")
    assert shown(metadata, TEXT) == ["<|user|>", "·he", "<|end|>", "<|assistant|>"]


@pytest.mark.parametrize("name", ["Llama 3", "delphi3", "phi-2", None])
def test_other_models_keep_their_white_space(proto, name):
    metadata = gguf(proto, name=name, architecture="llama")
    assert shown(metadata, "<|user|>\nhe")[1:] == ["·", "\\n", "he"]
