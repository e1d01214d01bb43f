"""A stranger's tokenizer.json: used as its maker meant it, or refused by name before a library sees any of it."""

import json
import threading

import pytest
from tokenizers import Regex, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from partita.errors import CheckpointError, UnsupportedModel
from partita.text import guard, tokenizer_json
from partita.text.engines import TokenizersEngine
from partita.text.guard import Watch
from partita.text.load import tokenizer_from_folder

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
TEXTS = ["hello world", "  two  spaces\n\n", "naïve café 世界 👩‍👧", "12345 + 678", "don't <s> stop</s>", "", " "]


def by_bytes(**changes):
    """Byte-level BPE with a merge and two control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)} | {"he": 256, "ll": 257, "Ġw": 258}
    model = {"type": "BPE", "vocab": vocab, "merges": [["h", "e"], ["l", "l"], ["Ġ", "w"]]}
    added = [{"id": 259 + i, "content": name, **FLAGS, "special": True} for i, name in enumerate(("<s>", "</s>"))]
    document = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": BYTES}
    return document | {"post_processor": None, "decoder": BYTES, "model": model} | changes


def model(**changes):
    return by_bytes()["model"] | changes


def unigrams(**changes):
    vocab = [["<unk>", 0.0], *([letter, -5.0] for letter in "▁helowrd"), ["▁hello", -1.0], ["or", -2.0]]
    return {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False} | changes


def load(folder, document):
    (folder / "tokenizer.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return tokenizer_from_folder(folder)


def judge(folder):
    return Library.from_file(str(folder / "tokenizer.json"))


SPLITS = r"'s|\p{N}{1,3}| ?\p{L}+|\s+"
HONEST = {
    "gpt2": by_bytes(),
    "older merges": by_bytes(model=model(merges=["h e", "l l", "Ġ w"])),
    "no type": by_bytes(model={key: value for key, value in model().items() if key != "type"}),
    "empty affixes": by_bytes(model=model(continuing_subword_prefix="", end_of_word_suffix="", dropout=None)),
    "nfc and splits": by_bytes(
        normalizer={"type": "NFC"},
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLITS}, "behavior": "Isolated", "invert": False},
                {"type": "Digits", "individual_digits": True},
                {"type": "Punctuation", "behavior": "Contiguous"},
                BYTES | {"use_regex": False},
            ],
        },
    ),
    "sequence in a sequence": by_bytes(
        normalizer={"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [{"type": "NFKC"}]}]}
    ),
    "unigrams": by_bytes(
        model=unigrams(),
        added_tokens=[],
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_ids_are_those_of_the_library(tmp_path, name):
    tokenizer = load(tmp_path, HONEST[name])
    library = judge(tmp_path)
    for text in TEXTS:
        library.encode_special_tokens = True
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
        library.encode_special_tokens = False
        assert tokenizer.encode(text, specials=True) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["gpt2", "unigrams"])
def test_a_file_without_a_decoder_is_decoded_by_its_first_steps(tmp_path, name):
    whole = load(tmp_path, HONEST[name])
    tokenizer = load(tmp_path, HONEST[name] | {"decoder": None})
    ids = whole.encode("hello world")
    assert tokenizer.decode(ids) == whole.decode(ids) == "hello world"


def test_a_prefix_written_by_a_normalizer_is_taken_back_without_a_decoder(tmp_path):
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    document = by_bytes(model=unigrams(), added_tokens=[], pre_tokenizer=None, decoder=None)
    tokenizer = load(tmp_path, document | {"normalizer": {"type": "Sequence", "normalizers": steps}})
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"


def test_what_says_nothing_of_its_decoder_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="decoder"):
        load(tmp_path, by_bytes(pre_tokenizer=None, decoder=None))


def test_settings_of_training_are_left_out(tmp_path):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    plain = load(tmp_path, by_bytes())
    noisy = load(tmp_path, by_bytes(model=model(dropout=0.9), truncation=cut, padding=pad | {"pad_token": "<s>"}))
    assert (
        len({tuple(noisy.encode("hello hello hello")) for _ in range(20)} | {tuple(plain.encode("hello " * 3)[:-1])})
        == 1
    )


@pytest.mark.parametrize("kind", ["template", "roberta", "sequence"])
def test_a_leading_token_of_the_post_processor_is_seen(tmp_path, kind):
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 259)])
    made = {
        "template": template,
        "roberta": processors.RobertaProcessing(("</s>", 260), ("<s>", 259)),
        "sequence": processors.Sequence([processors.ByteLevel(), template]),
    }[kind]
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    document = by_bytes(post_processor=json.loads(made.__getstate__()))
    assert load(tmp_path, document).encode("a")[0] == 259 == judge(tmp_path).encode("a").ids[0]
    assert load(tmp_path, by_bytes()).encode("a")[0] != 259


def test_the_size_counts_to_the_largest_id(tmp_path):
    document = by_bytes(added_tokens=[])
    document["model"]["vocab"]["far"] = 5000
    assert load(tmp_path, document).vocab_size == 5001


def normalizer(*steps):
    return by_bytes(normalizer={"type": "Sequence", "normalizers": list(steps)})


def pre_tokenizer(*steps):
    return by_bytes(pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps, BYTES | {"use_regex": False}]})


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern):
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


REFUSED = [
    (normalizer(*[replace({"String": "a"}, "aaaaaaaaaa")] * 9), UnsupportedModel, "times as long"),
    (normalizer(replace({"String": "a"}, "a" * 200)), UnsupportedModel, "200 times as long"),
    (normalizer(replace({"Regex": "a"}, "a" * 200)), UnsupportedModel, "201 times as long"),
    (normalizer(*[{"type": "ByteLevel"}] * 9), UnsupportedModel, "times as long"),
    (normalizer(replace({"String": ""}, "b")), CheckpointError, "not empty"),
    (normalizer(replace({"String": "a"}, "a" * 300)), CheckpointError, "content"),
    (normalizer(replace({"Glob": "a"}, "b")), CheckpointError, "String or Regex"),
    (normalizer(replace({"Regex": "(a+a+)+b"}, "b")), UnsupportedModel, "too many ways"),
    (normalizer({"type": "Precompiled", "precompiled_charsmap": "AAAA"}), UnsupportedModel, "'Precompiled'"),
    (normalizer({"type": "Unheard"}), UnsupportedModel, "'Unheard'"),
    (normalizer({"type": "Prepend", "prepend": 7}), CheckpointError, "prepend"),
    (normalizer(*[{"type": "NFC"}] * 99), CheckpointError, "more than 32 steps"),
    (normalizer(7), CheckpointError, "normalizer"),
    (by_bytes(normalizer={"type": "Sequence", "normalizers": 5}), CheckpointError, "normalizers"),
    (pre_tokenizer(split({"Regex": r"(\w|\w\w)*!"})), UnsupportedModel, "too many ways"),
    (pre_tokenizer(split({"Regex": r"(a)\1"})), UnsupportedModel, "not supported"),
    (pre_tokenizer(split({"Regex": "(?:^)?"})), CheckpointError, "library"),
    (pre_tokenizer(split({"String": "a"}) | {"behavior": "Shuffled"}), CheckpointError, "behavior"),
    (pre_tokenizer({"type": "FixedLength", "length": 0}), UnsupportedModel, "'FixedLength'"),
    (pre_tokenizer({"type": "Metaspace", "replacement": "_"}), UnsupportedModel, "stand for a space"),
    (pre_tokenizer({"type": "Metaspace", "prepend_scheme": "twice"}), CheckpointError, "prepend_scheme"),
    (pre_tokenizer({"type": "Digits", "individual_digits": "yes"}), CheckpointError, "individual_digits"),
    (by_bytes(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), UnsupportedModel, "'WordPiece'"),
    (by_bytes(decoder={"type": "Strip", "content": "ab", "start": 1, "stop": 0}), CheckpointError, "one character"),
    (by_bytes(decoder={"type": "Strip", "content": " ", "start": 10**12, "stop": 0}), CheckpointError, "start"),
    (by_bytes(post_processor={"type": "Unheard"}), UnsupportedModel, "'Unheard'"),
    (by_bytes(post_processor={"type": "TemplateProcessing", "single": 3}), CheckpointError, "tokenizer's JSON"),
    (by_bytes(model=model(continuing_subword_prefix="#")), UnsupportedModel, "continuing_subword_prefix"),
    (by_bytes(model=model(end_of_word_suffix="</w>")), UnsupportedModel, "end_of_word_suffix"),
    (by_bytes(model=model(vocab={"a": -1})), CheckpointError, "id"),
    (by_bytes(model=model(vocab={"a": 1.5})), CheckpointError, "id"),
    (by_bytes(model=model(vocab={"a": True})), CheckpointError, "id"),
    (by_bytes(model=model(vocab={"a": 2**40})), CheckpointError, "id"),
    (by_bytes(model=model(vocab={"a" * 2000: 0})), CheckpointError, "characters"),
    (by_bytes(model=model(vocab=[])), CheckpointError, "vocab"),
    (by_bytes(model=model(merges=[["h", "?"]])), CheckpointError, "library"),
    (by_bytes(model=model(merges=[["h"]])), CheckpointError, "tokenizer's JSON"),
    (by_bytes(model=model(merges=[[1, 2]])), CheckpointError, "library"),
    (by_bytes(model=model(merges={"h": "e"})), CheckpointError, "merges"),
    (by_bytes(model=model(byte_fallback="no")), CheckpointError, "byte_fallback"),
    (by_bytes(model={"type": "WordPiece", "vocab": {}}), UnsupportedModel, "'WordPiece'"),
    (by_bytes(model={"type": "WordLevel", "vocab": {}}), UnsupportedModel, "'WordLevel'"),
    (by_bytes(model={"type": ["BPE"]}), UnsupportedModel, "BPE and Unigram are"),
    (by_bytes(model=None), CheckpointError, "no model"),
    (by_bytes(model=unigrams(unk_id=None)), CheckpointError, "unk_id"),
    (by_bytes(model=unigrams(unk_id=10**9)), CheckpointError, "unk_id"),
    (by_bytes(model=unigrams(vocab=[["a", "b"]])), CheckpointError, "tokenizer's JSON"),
    (by_bytes(model=unigrams(vocab=[["a", 1e300]])), CheckpointError, "score"),
    (by_bytes(model=unigrams(vocab=[["a" * 200, 1.0]])), CheckpointError, "characters"),
    (by_bytes(added_tokens={"a": 1}), CheckpointError, "added_tokens"),
    (by_bytes(added_tokens=[{"id": 1, "content": 5, "special": True}]), CheckpointError, "added token"),
    (by_bytes(added_tokens=[{"id": 1, "content": "a", "lstrip": "no"}]), CheckpointError, "added token"),
    (by_bytes(added_tokens=[{"id": 1, "content": "a" * 2000}]), CheckpointError, "characters"),
    ("[]", CheckpointError, "JSON object"),
    ("[" * 100_000, CheckpointError, "nested"),
    ('{"model": NaN}', CheckpointError, "model"),
    ('"\\ud800"', CheckpointError, "JSON object"),
]


@pytest.mark.parametrize(("document", "error", "message"), REFUSED)
def test_what_is_not_known_or_damaged_is_one_line(tmp_path, document, error, message):
    with pytest.raises(error, match=message) as caught:
        load(tmp_path, document)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_sizes_are_bounded_before_anything_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_json, "parse", None)
    for text in ("{}," * 1_600_000, "[" * 1_600_000, "," * 4_100_000):
        with pytest.raises(CheckpointError, match="more lists"):
            load(tmp_path, text)
    (tmp_path / "tokenizer.json").write_bytes(b"")
    with (tmp_path / "tokenizer.json").open("r+b") as file:
        file.truncate(tokenizer_json.FILE + 1)  # sparse
    with pytest.raises(CheckpointError, match="too many"):
        tokenizer_from_folder(tmp_path)


def test_no_more_tokens_than_there_may_be(tmp_path, monkeypatch):
    for name in ("MAX_TOKENS", "MAX_MERGES", "MAX_ADDED"):
        monkeypatch.setattr(tokenizer_json, name, 3)
    four = {letter: i for i, letter in enumerate("abcd")}
    for changes in (
        {"model": model(vocab=four, merges=[])},
        {"model": model(merges=[["a", "b"]] * 4)},
        {"model": unigrams()},
        {"added_tokens": [{"content": letter} for letter in four]},
    ):
        with pytest.raises(CheckpointError, match=r"at most 3|1 to 3"):
            load(tmp_path, by_bytes(**changes))


def engine(library, **options):
    settings = {"controls": {}, "literals": {}, "hidden": frozenset(), "to_bytes": str.encode, "space_prefix": False}
    return TokenizersEngine(library, **settings, size=1, where="the file", **options)


@pytest.mark.parametrize("easy", [None, 10])
def test_a_panic_of_the_library_is_one_error(easy, capfd):
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated")
    with pytest.raises(CheckpointError, match=r"^the file: the library refuses it: Onig"):
        engine(library, easy=easy).encode("x" * 60, parse=False, first=True)
    assert "panicked" in capfd.readouterr().err  # it says so itself


def test_an_error_of_the_library_is_one_error():
    library = Library(models.BPE({"a": 0}, [], unk_token="?"))
    with pytest.raises(CheckpointError, match=r"^the file: the library refuses it: Unk token"):
        engine(library).encode("b", parse=False, first=True)


def test_what_may_take_the_square_of_a_text_is_waited_for_no_longer_than_that(monkeypatch):
    monkeypatch.setattr(guard, "_SECONDS", 0.05)
    monkeypatch.setattr(guard, "_RATE", 10**9)
    done, answers = threading.Event(), []
    watch = Watch(lambda text: answers.append(done.wait(20)) if len(text) > 10_000 else text, "the file", 1000)
    assert watch("short") == "short"
    with pytest.raises(CheckpointError, match="the file: its expressions take more than"):
        watch("x" * 20_000)
    with pytest.raises(CheckpointError, match="still busy"):
        watch("short")
    done.set()
    watch._late.join(20)
    assert answers == [True]
    assert watch("short") == "short"
    assert watch("x" * 20_000) is None


def test_a_text_that_was_answered_keeps_nobody_waiting(monkeypatch):
    """Its thread may end a moment later than the answer comes."""
    done, answer = threading.Event(), Watch._answer
    monkeypatch.setattr(Watch, "_answer", lambda *arguments: (answer(*arguments), done.wait(20)))
    watch = Watch(len, "the file", 1000)
    assert [watch("x" * 20_000), watch("short"), watch("x" * 30_000)] == [20_000, 5, 30_000]
    done.set()


def test_an_expression_that_matches_nothing_may_be_replaced(tmp_path):
    steps = [replace({"Regex": "^"}, "▁"), replace({"Regex": " "}, "▁")]
    tokenizer = load(tmp_path, normalizer(*steps) | {"model": unigrams(), "added_tokens": [], "pre_tokenizer": None})
    assert [tokenizer.token_text(i) for i in tokenizer.encode("hello world")][:2] == ["▁hello", "▁"]
    assert tokenizer.encode("hello world") == judge(tmp_path).encode("hello world", add_special_tokens=False).ids
    assert tokenizer.encode("") == []


def test_an_expression_of_nobody_gives_the_ids_of_the_library_for_long_texts_too(tmp_path):
    tokenizer = load(tmp_path, pre_tokenizer(split({"Regex": r"x*y|\p{L}+"})))
    text = "hello xxy world " * 1000
    assert tokenizer.encode(text) == judge(tmp_path).encode(text, add_special_tokens=False).ids
