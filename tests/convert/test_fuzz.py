"""Damaged and hostile model files: thousands of them, opened whole or refused with one line, nothing else."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partita.adapters.read import open_adapter
from partita.errors import PartitaError

from . import fuzz_corpus
from .fuzz_exercise import exercise

CHILD = Path(__file__).with_name("fuzz_child.py")
SEED = 20


def run_child(folder: Path, count: int) -> dict[str, Any]:
    """`count` damaged files in a process of its own, since a crash and a limit on memory are the process's."""
    command = [sys.executable, "-B", "-W", "error", str(CHILD), str(folder), str(SEED), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    now = folder / "now.json"
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{now.read_text() if now.is_file() else 'before the first'}"
    return json.loads(done.stdout.splitlines()[-1])


def check(report: dict[str, Any], count: int) -> None:
    assert report["count"] == count == sum(report["outcomes"].values())
    # neither does all damage hit what nobody reads, nor does every file fail at its first byte
    assert report["outcomes"]["CheckpointError"] > count / 4
    assert report["outcomes"]["opened"] > count / 40
    assert report["outcomes"]["decoded"] > count / 40
    assert report["outcomes"]["UnsupportedModel"] > count / 100


def test_two_thousand_damaged_files(tmp_path):
    check(run_child(tmp_path, 2_000), 2_000)


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path):
    check(run_child(tmp_path, 10_000), 10_000)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hostile_metadata_ends_soon_and_in_little_memory(tmp_path, count):
    """The limits are the child's: 10 s a file, 2 s until Ctrl-C is answered, and 1 GB."""
    child = CHILD.with_name("metadata_child.py")
    command = [sys.executable, "-B", "-W", "error", str(child), str(tmp_path), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])["outcomes"]
    assert outcomes.keys() == {"opened", "refused later", "CheckpointError"}
    assert min(outcomes.values()) > count / 60
    assert sum(outcomes.values()) == count


# ---------------------------------------------------------------- headers from nothing

NUMBERS = st.one_of(
    st.integers(0, 64), st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1]), st.integers(0, 2**64 - 1)
)
TEXTS = st.one_of(st.sampled_from(["llama", "gpt2", "a b", "blk.0.attn_q.weight"]), st.text(max_size=8))
SCALARS = {
    fuzz_corpus.U8: st.integers(0, 255),
    fuzz_corpus.U32: st.integers(0, 2**32 - 1) | st.integers(0, 64),
    fuzz_corpus.I32: st.integers(-(2**31), 2**31 - 1),
    fuzz_corpus.F32: st.floats(width=32),
    fuzz_corpus.BOOL: st.booleans(),
    fuzz_corpus.STRING: TEXTS,
    fuzz_corpus.U64: NUMBERS,
    fuzz_corpus.F64: st.floats(),
}


def typed(kinds: st.SearchStrategy) -> st.SearchStrategy:
    return kinds.flatmap(lambda kind: st.tuples(st.just(kind), SCALARS[kind]))


ARRAYS = st.sampled_from(sorted(SCALARS)).flatmap(
    lambda kind: st.tuples(st.just(fuzz_corpus.ARRAY), st.tuples(st.just(kind), st.lists(SCALARS[kind], max_size=5)))
)
VALUES = st.one_of(typed(st.sampled_from(sorted(SCALARS))), ARRAYS)
KEY_NAMES = [*(name for name, _, _ in fuzz_corpus.gguf_forms()["llama"][0]), "llama.rope.scaling.type", ""]
KEYS = st.lists(st.tuples(st.sampled_from(KEY_NAMES) | TEXTS, VALUES).map(lambda item: (item[0], *item[1])), max_size=8)
TENSORS = st.lists(st.tuples(TEXTS, st.lists(NUMBERS, max_size=5).map(tuple), st.integers(0, 45), NUMBERS), max_size=4)
EASY = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@EASY
@given(keys=KEYS, tensors=TENSORS, data=st.binary(max_size=64), keep=st.booleans())
def test_gguf_headers_of_any_content(tmp_path, keys, tensors, data, keep):
    """keep: beside the keys of a valid model, whose own keys then come first."""
    valid, places, contents = fuzz_corpus.gguf_forms()["llama"] if keep else ([], [], b"")
    known = {name for name, _, _ in keys}
    own = [key for key in valid if key[0] not in known]
    path = tmp_path / "m.gguf"
    path.write_bytes(fuzz_corpus.gguf_bytes([*own, *keys], [*places, *tensors], contents + data))
    exercise(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    fuzz_corpus.write_all(root)
    return root


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U32", "F8_E4M3", "BOOL", "F4"]) | JSON,
        "shape": st.lists(NUMBERS, max_size=3) | JSON,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    },
)
HEADERS = st.dictionaries(st.sampled_from(["a.weight", "a.scales", "a.biases"]) | TEXTS, ENTRIES | JSON, max_size=5)


@EASY
@given(header=HEADERS, data=st.binary(max_size=64), block=JSON)
def test_safetensors_headers_of_any_content(tmp_path, header, data, block):
    (tmp_path / "config.json").write_text(json.dumps(fuzz_corpus.CONFIG | {"quantization": block}))
    (tmp_path / "model.safetensors").write_bytes(fuzz_corpus.safetensors_bytes(header, data))
    exercise(tmp_path)


@EASY
@given(
    change=st.dictionaries(st.sampled_from(sorted(fuzz_corpus.GEMMA)), JSON, min_size=1, max_size=4),
    gemma=st.booleans(),
)
def test_configs_of_any_content(folders, change, gemma):
    """The tensors are those of a whole model, which is decoded where the config still goes with them."""
    path, valid = (folders / "sharded", fuzz_corpus.GEMMA) if gemma else (folders / "single", fuzz_corpus.CONFIG)
    (path / "config.json").write_text(json.dumps(valid | change))
    exercise(path)


MATRICES = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", (2, 8)),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": ("BF16", (4, 2)),
}
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False}
PATTERNS = st.dictionaries(st.text("ab.*+\\d()[]|^$", max_size=8) | st.just("q_proj"), JSON | st.just(2), max_size=3)


@EASY
@given(
    change=st.dictionaries(st.sampled_from([*PEFT, "bias", "init_lora_weights"]), JSON | PATTERNS, max_size=3),
    header=HEADERS | st.none(),
    mlx=st.booleans(),
)
def test_adapters_of_any_content(tmp_path, change, header, mlx):
    settings_ = {"lora_parameters": {"rank": 2, "scale": 1.0} | change} if mlx else PEFT | change
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings_))
    made = fuzz_corpus.stored(MATRICES) if header is None else fuzz_corpus.safetensors_bytes(header, bytes(64))
    (tmp_path / ("adapters.safetensors" if mlx else "adapter_model.safetensors")).write_bytes(made)
    with contextlib.suppress(PartitaError):
        adapter = open_adapter(tmp_path)
        for name in adapter.changes:
            delta = adapter.delta(name)
            assert delta is not None
            assert delta.shape == adapter.changes[name].shape


def test_a_message_is_one_line_of_bounded_length(tmp_path):
    """Files choose the words of some messages."""
    name = "\x1b[2J\n" + "x" * 100_000
    (tmp_path / "config.json").write_text("{}")
    header = {name: {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}
    (tmp_path / "model.safetensors").write_bytes(fuzz_corpus.safetensors_bytes(header, bytes(4)))
    assert exercise(tmp_path) == "CheckpointError"
