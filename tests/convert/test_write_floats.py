"""Folders of small floats out: what a recipe gives each weight, what is kept on the way through, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import partita
import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.open import open_checkpoint
from partita.checkpoint.schemes.mlx_floats import GLOBAL, global_scales
from partita.model.load import load_decoder
from partita.quantization import SMALL_FLOATS, Packed, dequantize
from partita_convert.convert import convert
from partita_convert.planning import Request
from partita_convert.quantize import quantize
from partita_convert.write_folder import write_huggingface, write_mlx

from .. import bounds, tiny_models

Family = Callable[[str], Path]
MODES = list(SMALL_FLOATS)


def logits(folder: Path, tokens: list[int], backend: str = "numpy") -> np.ndarray:
    ops = partita_backends.load(backend, device="cpu", dtype="float32")
    model = load_decoder(ops, open_checkpoint(folder))
    cache = Cache(ops, plan(model.config, KVFormat.parse("32")))
    return ops.to_numpy(model(ops, ops.array(np.array([tokens], np.int32)), cache, every=True))[0]


def said(path: Path) -> dict:
    return json.loads((path / "config.json").read_text())["quantization"]


@pytest.mark.parametrize("mode", MODES)
def test_a_recipe_of_small_floats(tiny_family: Family, tmp_path: Path, mode: str) -> None:
    """Layers in the mode; embedding, head and routers by their own rule, each with its entry."""
    source = tiny_family("qwen3_moe")
    report = convert(open_checkpoint(source), tmp_path / "m", Request(quantize=mode))
    bits, group = SMALL_FLOATS[mode]
    block = said(tmp_path / "m")
    assert {key: block[key] for key in ("mode", "bits", "group_size")} == {
        "mode": mode,
        "bits": bits,
        "group_size": group,
    }
    targets = {tensor.name: tensor.target for tensor in report.tensors}
    embedding = targets["model.embed_tokens.weight"]
    assert embedding == (mode.upper() if bits == 8 else "6-bit:64")
    if bits == 4:
        assert block["model.embed_tokens"] == {"mode": "affine", "bits": 6, "group_size": 64}
    routers = [target for name, target in targets.items() if name.endswith("mlp.gate.weight")]
    assert routers
    assert not any(target in (mode.upper(), "6-bit:64") for target in routers)
    assert targets["model.layers.0.mlp.switch_mlp.up_proj.weight"] == mode.upper()
    assert 0 < max(tensor.error or 0 for tensor in report.tensors) < 0.13
    assert len(list(partita.load(tmp_path / "m", backend="mlx", device="cpu").session().generate([1, 2], max_tokens=2)))


@pytest.mark.parametrize("mode", MODES)
def test_codes_and_multipliers_are_kept_on_the_way_through(tiny_family: Family, tmp_path: Path, mode: str) -> None:
    convert(open_checkpoint(tiny_family("llama")), tmp_path / "a", Request(quantize=mode))
    for place, request in (("b", Request()), ("c", Request(quantize=mode))):
        report = convert(open_checkpoint(tmp_path / "a"), tmp_path / place, request)
        assert {tensor.error for tensor in report.tensors} == {0.0}
        before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("a", place))
        assert before.keys() == after.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value)
        assert said(tmp_path / place) == said(tmp_path / "a")


@pytest.mark.parametrize("mode", MODES)
def test_dense_again_without_a_loss(tiny_family: Family, tmp_path: Path, mode: str) -> None:
    def floats(name: str, value: np.ndarray | Packed) -> np.ndarray | Packed:
        chosen = ".layers." in name and name.endswith("proj.weight")
        return quantize(value, *SMALL_FLOATS[mode], mode=mode) if chosen else value

    write_mlx(open_checkpoint(tiny_family("llama")), tmp_path / "m", transform=floats)
    packed = open_checkpoint(tmp_path / "m")
    write_huggingface(packed, tmp_path / "hf", dtype=None)
    dense = open_checkpoint(tmp_path / "hf")
    for name in packed.names():
        value, found = packed.read(name), dense.read(name)
        assert isinstance(found, np.ndarray)
        if isinstance(value, Packed):
            assert found.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(found.astype(np.float32), dequantize(value))
    tokens = tiny_models.tokens(tmp_path / "m")
    bounds.assert_near(logits(tmp_path / "m", tokens), logits(tmp_path / "hf", tokens), bounds.logits(tmp_path / "hf"))


def test_global_scales_stay_with_experts_and_make_matrices_dense(tiny_family: Family, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)

    def floats(name: str, value: np.ndarray | Packed) -> np.ndarray | Packed:
        if ".layers." not in name or not name.endswith("proj.weight"):
            return value
        packed = quantize(value, 4, 16, mode="nvfp4")
        largest = rng.random((*value.shape[:-2], 1, 1), np.float32).astype(ml_dtypes.bfloat16).astype(np.float32) + 1
        factors = np.ascontiguousarray(np.broadcast_to(largest / GLOBAL, (*value.shape[:-1], 1)))
        return replace(packed, factors=factors)

    write_mlx(open_checkpoint(tiny_family("qwen3_moe")), tmp_path / "a", transform=floats)
    stored = load_file(tmp_path / "a" / "model.safetensors")
    experts = [name for name in stored if name.endswith(".global_scale")]
    assert experts
    assert all("switch_mlp" in name and stored[name].shape == (8,) for name in experts)
    assert stored["model.layers.0.self_attn.q_proj.weight"].dtype == np.float32
    write_mlx(open_checkpoint(tmp_path / "a"), tmp_path / "b")
    again = load_file(tmp_path / "b" / "model.safetensors")
    for name, value in stored.items():
        np.testing.assert_array_equal(again[name], value)
    tokens = tiny_models.tokens(tmp_path / "a")
    found = [logits(tmp_path / "a", tokens, backend) for backend in ("numpy", "mlx", "torch")]
    for other in found[1:]:
        bounds.assert_near(other, found[0], bounds.logits(tmp_path / "a"))


def test_a_global_scale_is_found_again() -> None:
    rng = np.random.default_rng(1)
    scales = (rng.random(4096, np.float32) * 10).astype(ml_dtypes.bfloat16).astype(np.float32)
    scales[0] = 0
    np.testing.assert_array_equal(global_scales((scales / GLOBAL)[:, None, None]), scales)
    any_scales = rng.random(4096, np.float32)
    factors = any_scales / GLOBAL
    np.testing.assert_array_equal(global_scales(factors[:, None, None]) / GLOBAL, factors)
