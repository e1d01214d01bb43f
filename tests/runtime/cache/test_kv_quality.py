"""A large bias of the keys makes few bits unsafe: the warning fires where, and only where, the divergence explodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from partita.cache.state import Cache
from partita.inference.perplexity import compare
from partita.language_model import LanguageModel, load

IDS = [int(i) for i in np.random.default_rng(3).integers(0, 250, 200)]


def with_key_bias(source: Path, target: Path, size: float, dim: int = 5) -> LanguageModel:
    """The tiny model with biases of 0, but for one value of each head of k. Dim 5 turns once in 112 positions, dim 15
    once in 35,000."""
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text()) | {"attention_bias": True}
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name and "self_attn" in name]:
        tensors[name.replace("weight", "bias")] = bias = np.zeros(tensors[name].shape[0], np.float32)
        if "k_proj" in name:
            bias[dim :: config["head_dim"]] = size
    save_file(tensors, target / "model.safetensors")
    return load(target, backend="numpy")


def divergence(model: LanguageModel, kv: str, sinks: int = 4) -> float:
    reference, tested = (Cache(model.ops, model.cache_spec(kv=name, sinks=sinks)) for name in ("32", kv))
    return compare(model.ops, model.decoder, reference, tested, IDS).kl


def test_a_large_bias_spoils_few_bits_and_is_warned_of(tiny_model: Path, tmp_path: Path) -> None:
    plain, large = load(tiny_model, backend="numpy"), with_key_bias(tiny_model, tmp_path / "large", 150.0)
    assert plain.kv_warning(plain.cache_spec(kv="k4v4")) is None
    warning = large.kv_warning(large.cache_spec(kv="k4v4"))
    assert warning is not None
    assert "layer 0" in warning
    assert "use `kv` k8v8, or" in warning
    assert divergence(large, "k4v4") > 10 * divergence(plain, "k4v4")
    assert large.kv_warning(large.cache_spec(kv="k8v8")) is None
    assert divergence(large, "k8v8") < divergence(large, "k4v4") / 4


@pytest.mark.parametrize("kv", ["k4v4", "k4v4h"])
def test_the_centre_takes_away_a_bias_that_hardly_turns(kv: str, tiny_model: Path, tmp_path: Path) -> None:
    """The centre is made of sinks: without them the same bias is warned of, and rightly."""
    model = with_key_bias(tiny_model, tmp_path / "m", 60.0, dim=15)
    assert model.kv_warning(model.cache_spec(kv=kv)) is None
    assert model.kv_warning(model.cache_spec(kv=kv, sinks=0)) is not None
    assert divergence(model, kv) < divergence(model, kv, sinks=0) / 4


def test_a_bias_of_usual_size_is_no_reason_to_warn(tiny_model: Path, tmp_path: Path) -> None:
    model = with_key_bias(tiny_model, tmp_path / "small", 3.0)
    assert all(model.kv_warning(model.cache_spec(kv=name)) is None for name in ("16", "k8v8", "k8v4", "k4v4", "k4v4h"))


@pytest.mark.parametrize("name", ["16", "k16v4"])
def test_dense_keys_are_never_warned_of(tiny_model: Path, tmp_path: Path, name: str) -> None:
    model = with_key_bias(tiny_model, tmp_path / "m", 10_000.0)
    assert model.kv_warning(model.cache_spec(kv=name)) is None


def test_the_safer_format_is_one_that_is_safe(tiny_model: Path, tmp_path: Path) -> None:
    model = with_key_bias(tiny_model, tmp_path / "m", 5_000.0)
    warning = model.kv_warning(model.cache_spec(kv="k8v4"))
    assert warning is not None
    assert "use `kv` 16," in warning
