"""4-bit floats: modules that compressed-tensors compresses, and modelopt's by its specification, code by code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.quantization import Packed, dequantize

from .test_fp8 import folder

OUT, SIZE = 24, 64
Tensors = dict[str, torch.Tensor]
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": None, "ignore": ["lm_head"]}


def compressed(kind: str) -> tuple[Tensors, dict[str, Any]]:
    """A module's tensors as the library writes them, and quantization_config."""
    nv, form = kind == "nvfp4", f"{kind}-pack-quantized"
    strategy = {"strategy": "tensor_group", "group_size": 16} if nv else {"strategy": "group", "group_size": 32}
    args = QuantizationArgs(num_bits=4, type="float", symmetric=True, **strategy)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    weight = torch.randn(OUT, SIZE, generator=torch.Generator().manual_seed(4))
    largest = weight.reshape(OUT, -1, args.group_size).abs().amax(-1)
    state = {"weight": weight}
    if nv:
        whole = 448 * 6 / weight.abs().max().reshape(1)
        state |= {"weight_global_scale": whole, "weight_scale": (largest / 6 * whole).to(torch.float8_e4m3fn).float()}
    else:
        state["weight_scale"] = 2.0 ** torch.ceil(torch.log2(largest / 6))
    stored = BaseCompressor.get_value_from_registry(form).compress(state, scheme)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=form, quantization_status="compressed")
    tensors = {f"a.{name}": value.contiguous() for name, value in stored.items()}
    return tensors, config.model_dump(mode="json") | {"quant_method": "compressed-tensors"}


def as_modelopt(kind: str) -> Tensors:
    tensors, _ = compressed(kind)
    found = {"a.weight": tensors["a.weight_packed"], "a.weight_scale": tensors["a.weight_scale"]}
    if kind == "nvfp4":
        found |= {"a.weight_scale_2": (1 / tensors["a.weight_global_scale"])[0], "a.input_scale": torch.tensor(0.5)}
    return found


def expected(kind: str) -> np.ndarray:
    tensors, _ = compressed(kind)
    values = unpack_fp4_from_uint8(tensors["a.weight_packed"], OUT, SIZE, torch.float32)
    if kind == "nvfp4":
        scale = tensors["a.weight_scale"].float() * (1 / tensors["a.weight_global_scale"])
    else:
        scale = 2.0 ** (tensors["a.weight_scale"].float() - 127)
    return (values * scale.repeat_interleave(SIZE // scale.shape[1], 1)).numpy()


def assert_exact(path: Path, kind: str) -> None:
    checkpoint = open_checkpoint(path)
    assert (checkpoint.names(), checkpoint.shape("a.weight")) == (("a.weight",), (OUT, SIZE))
    assert checkpoint.stored_as("a.weight") == kind.upper()
    value = checkpoint.read("a.weight")
    assert isinstance(value, Packed)
    assert value.mode == kind
    np.testing.assert_array_equal(value.weight.view(np.uint8), compressed(kind)[0]["a.weight_packed"])
    wanted = expected(kind)
    # with a factor: a code times a multiplier is exact, two products are rounded
    error = 2 * 2.0**-24 * np.abs(wanted).max() if kind == "nvfp4" else 0
    np.testing.assert_allclose(dequantize(value), wanted, rtol=0, atol=error)


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_compressed_tensors(tmp_path, kind):
    assert_exact(folder(tmp_path / "m", *compressed(kind)), kind)


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_modelopt(tmp_path, kind):
    block = MODELOPT | ({"quant_algo": "W4A8_MXFP4_FP8"} if kind == "mxfp4" else {})
    assert_exact(folder(tmp_path / "m", as_modelopt(kind), block), kind)


def settings(path: Path, **said: Any) -> None:
    quantization = {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
        "exclude_modules": ["lm_head"],
    }
    whole = {"producer": {"name": "modelopt"}, "quantization": quantization | said}
    (path / "hf_quant_config.json").write_text(json.dumps(whole))


def test_settings_in_a_file_of_their_own(tmp_path):
    tensors = as_modelopt("nvfp4") | {"a.k_scale": torch.tensor(1.0)}
    path = folder(tmp_path / "m", tensors)
    settings(path)
    assert_exact(path, "nvfp4")
    settings(path, quant_algo="W4A16_AWQ")
    with pytest.raises(UnsupportedModel, match="quant_algo 'W4A16_AWQ' are not read"):
        open_checkpoint(path)
    (path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json: there is no table of quantization"):
        open_checkpoint(path)


def test_modelopts_eight_bits(tmp_path):
    weight = torch.randn(8, 64).to(torch.float8_e4m3fn)
    tensors = {"a.weight": weight, "a.weight_scale": torch.tensor(0.25), "a.input_scale": torch.tensor(1.0)}
    path = folder(tmp_path / "m", tensors)
    settings(path, quant_algo="FP8")
    checkpoint = open_checkpoint(path)
    assert checkpoint.names() == ("a.weight",)
    np.testing.assert_array_equal(checkpoint.read("a.weight").astype(np.float32), (weight.float() / 4).numpy())


def test_stacked_experts(tmp_path):
    """One global scale for each."""
    parts = as_modelopt("nvfp4")
    stacked = {name: torch.stack([value, value]) for name, value in parts.items()}
    stacked["a.weight_scale_2"] = parts["a.weight_scale_2"] * torch.tensor([1.0, 2.0])
    value = open_checkpoint(folder(tmp_path / "m", stacked, MODELOPT)).read("a.weight")
    assert isinstance(value, Packed)
    found, one = (
        dequantize(value),
        dequantize(open_checkpoint(folder(tmp_path / "n", parts, MODELOPT)).read("a.weight")),
    )
    np.testing.assert_array_equal(found, np.stack([one, 2 * one]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_scale": None}, "a has 4-bit floats and no weight_scale"),
        ({"weight_scale": torch.ones(OUT, 4)}, "a weight_scale in F32"),
        ({"weight_scale": torch.ones(OUT, 5).to(torch.float8_e4m3fn)}, "do not go with weight_scale"),
        ({"weight_scale_2": None}, "need a weight_scale_2, one number; there is none"),
        ({"weight_scale_2": torch.ones(3)}, "need a weight_scale_2, one number"),
        ({"weight": torch.ones(OUT, dtype=torch.uint8)}, "do not go with|has 4-bit"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, words):
    tensors = as_modelopt("nvfp4") | {f"a.{name}": value for name, value in change.items()}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder(tmp_path / "m", tensors, MODELOPT))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_scale": torch.full((OUT, 4), torch.nan).to(torch.float8_e4m3fn)}, "scale is NaN"),
        ({"weight_scale_2": torch.tensor(torch.inf)}, "a global scale is not finite"),
    ],
)
def test_numbers_that_cannot_be(tmp_path, change, words):
    tensors = as_modelopt("nvfp4") | {f"a.{name}": value for name, value in change.items()}
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder(tmp_path / "m", tensors, MODELOPT)).read("a.weight")


def test_inputs_that_are_scaled_before(tmp_path):
    tensors = as_modelopt("nvfp4") | {"a.pre_quant_scale": torch.ones(SIZE)}
    with pytest.raises(UnsupportedModel, match="a has a pre_quant_scale for its inputs"):
        open_checkpoint(folder(tmp_path / "m", tensors, MODELOPT))
