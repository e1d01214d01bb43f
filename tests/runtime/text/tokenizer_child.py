"""A program: tokenizers whose fields are replaced by hostile values, COUNT of them, each loaded and used.

Run as `python tokenizer_child.py FOLDER COUNT`. Each must work or end in one line of ours. Memory beyond the limit, a
crash, SECONDS without an end, or ANSWERED seconds in which Ctrl-C would not be answered make the program fail; FOLDER
then has the last file.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as library_models

from partita.errors import PartitaError
from partita.text import sentencepiece_model as proto

sys.path.append(str(Path(__file__).parents[2]))  # of the tests
from pulse import Pulse

from partita.text.load import tokenizer_from_folder

ROOM = 1 << 30  # bytes that a tokenizer may map
SECONDS, ANSWERED = 10, 2
TEXTS = ["a", "x" * 9_999, "x" * 400, "ab  <s>\n 12,345 é世界 </s>x ", "x y" * 2000, ""]

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPACES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}
ADDED = [{"id": 8, "content": "<s>", **FLAGS}, {"id": 9, "content": "</s>", **FLAGS, "special": False}]
LETTERS = ["<unk>", "a", "b", "x", "y", "▁", "Ġ", "ab"]
BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": "<unk>",
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": {letter: i for i, letter in enumerate(LETTERS)},
    "merges": [["a", "b"]],
}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [[x, -1.5] for x in LETTERS], "byte_fallback": False}
LEADING = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [8], "tokens": ["<s>"]}},
}


def sequence(kind: str, *steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


BACK = sequence("decoders", replace({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"})
DOCUMENTS: list[dict[str, Any]] = [
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": ADDED,
        "normalizer": sequence("normalizers", {"type": "NFC"}, replace({"Regex": " {2,}"}, " ")),
        "pre_tokenizer": sequence("pretokenizers", split(r"\p{N}{1,3}| ?\p{L}+"), BYTES),
        "post_processor": sequence("processors", BYTES, LEADING),
        "decoder": BYTES,
        "model": model,
    }
    for model in (BPE, UNIGRAM)
]
DOCUMENTS += [
    document
    | {
        "normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁")),
        "pre_tokenizer": SPACES,
        "post_processor": None,
        "decoder": BACK,
    }
    for document in DOCUMENTS
]

# --- what stands in place of a field

EXPRESSIONS = st.recursive(
    st.sampled_from(["x", "y", "xy", ".", r"\s", r"\p{L}", "[xy]", "[^x]", "^", "$", r"\b", "", r"\1", "(?#", "\\"]),
    lambda inner: st.one_of(
        st.builds(lambda a, sign: f"(?:{a}){sign}", inner, st.sampled_from(["*", "+", "?", "{9}", "{0,99999}", "++"])),
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: f"({a}|{b})", inner, inner),
        st.builds(lambda kind, a: f"({kind}{a})", st.sampled_from(["?=", "?!", "?>", "?<=", "?i:", "?~"]), inner),
    ),
    max_leaves=12,
)
PATTERNS = st.one_of(
    EXPRESSIONS.map(lambda expression: {"Regex": expression}),
    st.sampled_from(["", "x", " ", "▁", "x" * 300]).map(lambda text: {"String": text}),
)
CONTENTS = st.sampled_from(["", "x", "xx", "x" * 20, "x" * 10_000, "▁", "\ud800", "<s>"])
MODULES = (normalizers, pre_tokenizers, decoders, library_models, processors)
KINDS = sorted({name for module in MODULES for name in dir(module) if name[0].isupper()} | {"unheard"})
NUMBERS = st.one_of(st.sampled_from([0, -1, 1, 255, 2**16, 2**31, 2**32, 2**63, 2**64, 10**400]), st.floats())
STEPS = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={
        "pattern": PATTERNS,
        "content": CONTENTS,
        "prepend": CONTENTS,
        "behavior": st.sampled_from(["Isolated", "Removed", "MergedWithNext", "x"]),
        "invert": st.booleans(),
        "individual_digits": st.booleans(),
        "add_prefix_space": st.booleans(),
        "use_regex": st.booleans(),
        "replacement": st.sampled_from(["▁", "_", "", "xx"]),
        "prepend_scheme": st.sampled_from(["first", "never", "x"]),
        "split": st.booleans(),
        "length": NUMBERS,
        "start": NUMBERS,
        "stop": NUMBERS,
        "strip_left": st.booleans(),
        "strip_right": st.booleans(),
        "precompiled_charsmap": st.sampled_from(["", "/////w==", "AAAA", "!"]),
        "normalizers": st.just([]),
        "vocab": st.sampled_from([{}, [], {"a": 0}]),
    },
)
SEQUENCES = st.builds(
    lambda kind, steps, times: {"type": "Sequence", kind: steps * times},
    st.sampled_from(["normalizers", "pretokenizers", "decoders", "processors"]),
    st.lists(STEPS, max_size=4),
    st.sampled_from([1, 3, 9, 99]),
)


def nested(depth: int, kind: str = "") -> Any:
    value: Any = []
    for _ in range(depth):
        value = {"type": "Sequence", kind: [value]} if kind else [value]
    return value


LARGE: dict[str, Any] = {  # by name, since what fails is shown
    "long": "x" * 3_000_000,
    "numbers": [0] * 300_000,
    "merges": [["a", "b"]] * 200_000,
    "vocabulary": {f"t{i}": i for i in range(100_000)},
    "added": [{"id": i, "content": f"<{i}>", **FLAGS} for i in range(20_000)],
    "added runs": [{"id": i, "content": "x" * (i + 1), **FLAGS} for i in range(300)],
    "runs": [["x" * (i + 1), -1.0] for i in range(300)],
    "nested lists": nested(900),
    **{f"nested {kind}": nested(depth, kind) for kind, depth in (("normalizers", 40), ("pretokenizers", 300))},
}
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, CONTENTS, st.text(max_size=4))
SMALL = st.one_of(SCALARS, SCALARS, STEPS, STEPS, SEQUENCES, PATTERNS, st.lists(SCALARS, max_size=3))
HOSTILE = st.one_of(SMALL.map(lambda value: (value,)), SMALL.map(lambda value: (value,)), st.sampled_from([*LARGE]))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every field of a document is."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((*path, key), *places(value[key], (*path, key)))]


PLACES = [(i, place) for i, document in enumerate(DOCUMENTS) for place in places(document)]


def changed(which: int, changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
    document = copy.deepcopy(DOCUMENTS[which])
    for path, hostile in sorted(changes, key=lambda change: -len(change[0])):  # so that what is put in stays as it is
        node, value = document, LARGE[hostile] if isinstance(hostile, str) else hostile[0]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    return document


@st.composite
def damage(draw: st.DrawFn) -> tuple[int, list[tuple[tuple[Any, ...], Any]]]:
    which, place = draw(st.sampled_from(PLACES))
    others = draw(st.lists(st.sampled_from([path for i, path in PLACES if i == which]), max_size=2))
    return which, [(path, draw(HOSTILE)) for path in (place, *others)]


@st.composite
def models(draw: st.DrawFn) -> bytes:
    """A tokenizer.model, written as it stands: its parts may be anything."""
    letters = draw(st.lists(st.sampled_from([*LETTERS, "<0x41>", "x" * 99, "\0", ""]), min_size=1, max_size=9))
    scores = draw(st.lists(st.floats(width=32), min_size=len(letters), max_size=len(letters)))
    kinds = draw(st.lists(st.integers(0, 7), min_size=len(letters), max_size=len(letters)))
    kinds[0] = draw(st.sampled_from([2, 2, 2, 1]))
    trainer = bytes([0x18, draw(st.sampled_from([1, 2, 2, 3]))]) + draw(st.binary(max_size=6))
    normalizer = draw(
        st.sampled_from([b"", b"\x12\x04AAAA", b"\x12\x08\xff\xff\xff\xffAAAA", b"\x18\x00", b"\x20\x00"])
    )
    data = proto.write(proto.Model(letters, scores, kinds, trainer, normalizer), space_prefix=draw(st.booleans()))
    cut = draw(st.integers(0, 3))
    return data[: len(data) - cut]


def use(folder: Path, pulse: Pulse) -> None:
    """Everything that text does to a tokenizer; only errors of ours, each of one line."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    with pulse:
        message = outcome(folder)
    faulthandler.cancel_dump_traceback_later()
    assert message.isprintable(), repr(message)
    assert 0 < len(message) < 3000
    assert pulse.longest < ANSWERED


def outcome(folder: Path) -> str:
    try:
        tokenizer = tokenizer_from_folder(folder)
        for text in TEXTS:
            ids = tokenizer.encode(text, bos=False) + tokenizer.encode(text, bos=False, specials=True)
            assert ids == tokenizer.encode(text, bos=False) + tokenizer.encode(text, bos=False, specials=True)
            assert not ids or 0 <= min(ids) <= max(ids) < tokenizer.vocab_size
            tokenizer.decode([*ids[:100], *range(min(tokenizer.vocab_size, 50))])
    except PartitaError as error:
        return str(error)
    return "whole"


def main(folder: Path, count: int) -> None:
    pulse = Pulse()
    quiet = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @quiet
    @given(damage())
    def json_files(damage: tuple[int, list[tuple[tuple[Any, ...], Any]]]) -> None:
        (folder / "tokenizer.json").write_text(json.dumps(changed(*damage)))
        use(folder, pulse)

    @quiet
    @given(models())
    def model_files(data: bytes) -> None:
        (folder / "tokenizer.model").write_bytes(data)
        use(folder, pulse)

    for document in DOCUMENTS:  # also imports whatever is used
        (folder / "tokenizer.json").write_text(json.dumps(document))
        assert tokenizer_from_folder(folder).encode("ab x", bos=False)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + ROOM, pages + ROOM))
    json_files()
    (folder / "tokenizer.json").unlink()
    model_files()
    print(f"at most {pulse.longest:.1f} s without a look at signals")


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main(Path(sys.argv[1]), int(sys.argv[2]))
