"""Weights in 8-bit floats: every published form against a plain computation in torch, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
CHANNELS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}


def folder(path: Path, tensors: dict[str, torch.Tensor], quantization: Any = None, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    more = {} if quantization is None else {"quantization_config": quantization}
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | more | config))
    save_file(tensors, path / "model.safetensors")
    return path


def weight(*shape: int, kind: torch.dtype = E4M3, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(20).to(kind)


def scales(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(9)).mul(0.01).add(1e-4).to(kind)


def read(path: Path, name: str = "a.weight") -> torch.Tensor:
    value = open_checkpoint(path).read(name)
    assert isinstance(value, np.ndarray)
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(value)


@pytest.mark.parametrize("shape", [(256, 384), (192, 130), (64, 64), (1, 129)])
def test_blocks_with_the_last_cut_off(tmp_path, shape):
    rows, columns = shape
    q, s = weight(*shape), scales(-(-rows // 128), -(-columns // 128))
    whole = s.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    path = folder(tmp_path / "m", {"a.weight": q, "a.weight_scale_inv": s, "n.weight": torch.ones(3)}, BLOCKS)
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.names()) == {"a.weight", "n.weight"}
    assert checkpoint.shape("a.weight") == shape
    assert checkpoint.stored_as("a.weight") == "F8_E4M3"
    torch.testing.assert_close(read(path), (q.float() * whole).to(torch.bfloat16), rtol=0, atol=0)


@pytest.mark.parametrize("scale_kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (48, 1), (48,)])
def test_one_scale_a_tensor_or_a_row(tmp_path, shape, scale_kind):
    q, s = weight(48, 40), scales(*shape, kind=scale_kind)
    expected = q.float() * (s.float()[:, None] if shape == (48,) else s.float())
    path = folder(tmp_path / "m", {"a.weight": q, "a.weight_scale": s, "a.input_scale": scales(1)}, CHANNELS)
    assert open_checkpoint(path).names() == ("a.weight",)
    torch.testing.assert_close(read(path), expected.to(torch.bfloat16), rtol=0, atol=0)


def test_stacked_experts(tmp_path):
    q, s = weight(3, 256, 128), scales(3, 2, 1)
    path = folder(tmp_path / "m", {"e.gate_up_proj": q, "e.gate_up_proj_scale_inv": s}, BLOCKS)
    expected = (q.float() * s.repeat_interleave(128, 1)).to(torch.bfloat16)
    assert open_checkpoint(path).names() == ("e.gate_up_proj",)
    torch.testing.assert_close(read(path, "e.gate_up_proj"), expected, rtol=0, atol=0)
    one = folder(tmp_path / "n", {"e.up": q, "e.up_scale": scales(3, 1, 1)}, CHANNELS)
    torch.testing.assert_close(read(one, "e.up"), (q.float() * scales(3, 1, 1)).to(torch.bfloat16), rtol=0, atol=0)


def test_as_transformers_dequantizes(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    q, s = weight(256, 128), scales(2, 1)
    expected = Fp8Dequantize(None)._dequantize_one(q, s, output_dtype=torch.bfloat16)
    path = folder(tmp_path / "m", {"a.weight": q, "a.weight_scale_inv": s}, BLOCKS)
    torch.testing.assert_close(read(path), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", torch.float32), ("float16", torch.float16)])
def test_the_dtype_that_the_config_names(tmp_path, dtype, kind):
    q, s = weight(32, 32), scales(1, 1)
    path = folder(tmp_path / "m", {"a.weight": q, "a.weight_scale_inv": s}, BLOCKS, torch_dtype=dtype)
    torch.testing.assert_close(read(path), (q.float() * s).to(kind), rtol=0, atol=0)


def test_values_without_scales_stand_for_themselves(tmp_path):
    path = folder(tmp_path / "m", {"a.weight": weight(8, 8), "b.weight": weight(8, 8, kind=E5M2)})
    torch.testing.assert_close(read(path), weight(8, 8).to(torch.bfloat16), rtol=0, atol=0)
    torch.testing.assert_close(read(path, "b.weight"), weight(8, 8, kind=E5M2).to(torch.bfloat16), rtol=0, atol=0)


def test_exponents_as_scales(tmp_path):
    s = torch.tensor([[0.25], [2.0]]).to(torch.float8_e8m0fnu)
    path = folder(tmp_path / "m", {"a.weight": weight(256, 128), "a.weight_scale_inv": s}, BLOCKS)
    expected = weight(256, 128).float() * torch.tensor([[0.25], [2.0]]).repeat_interleave(128, 0)
    torch.testing.assert_close(read(path), expected.to(torch.bfloat16), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.float8_e8m0fnu, torch.uint8])
@pytest.mark.parametrize("size", [[128, 128], [1, 32]])
def test_scales_that_are_powers_of_two(tmp_path, size, kind):
    """scale_fmt ue8m0, in each dtype that such scales come in."""
    high, wide = 256 // size[0], 128 // size[1]
    exponents = torch.randint(-9, 3, (high, wide), generator=torch.Generator().manual_seed(1))
    s = (exponents + 127).to(torch.uint8) if kind == torch.uint8 else (2.0**exponents).to(kind)
    block = BLOCKS | {"scale_fmt": "ue8m0", "weight_block_size": size}
    path = folder(tmp_path / "m", {"a.weight": weight(256, 128), "a.weight_scale_inv": s}, block)
    whole = (2.0**exponents).repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)
    torch.testing.assert_close(read(path), (weight(256, 128).float() * whole).to(torch.bfloat16), rtol=0, atol=0)


def test_microscaled_floats(tmp_path):
    """Modules that compressed-tensors writes in its mxfp8-quantized, and modelopt in the same way."""
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}}}
    exponents = torch.randint(110, 130, (16, 2), dtype=torch.uint8)
    tensors = {"a.weight": weight(16, 64), "a.weight_scale": exponents}
    whole = 2.0 ** (exponents.float() - 127).repeat_interleave(32, 1)
    said = {"quant_method": "compressed-tensors", "format": "mxfp8-quantized", "config_groups": groups}
    for block in (said, {"quant_method": "modelopt", "quant_algo": "MXFP8"}):
        path = folder(tmp_path / "m", tensors, block)
        torch.testing.assert_close(read(path), (weight(16, 64).float() * whole).to(torch.bfloat16), rtol=0, atol=0)


def test_a_large_tensor_is_read_in_parts(tmp_path, monkeypatch):
    from partita.checkpoint.schemes import fp8

    monkeypatch.setattr(fp8, "_ROWS", 128 * 64)
    q, s = weight(700, 64), scales(6, 1)
    path = folder(tmp_path / "m", {"a.weight": q, "a.weight_scale_inv": s}, BLOCKS)
    expected = (q.float() * s.repeat_interleave(128, 0)[:700]).to(torch.bfloat16)
    torch.testing.assert_close(read(path), expected, rtol=0, atol=0)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a.weight": weight(8, 8)}, "a.weight has no a.weight_scale_inv"),
        ({"a.weight": weight(256, 8), "a.weight_scale_inv": scales(3, 1)}, "does not go with scales of shape"),
        ({"a.weight": weight(2, 8, 8), "a.weight_scale_inv": scales(3, 1, 1)}, "does not go with scales"),
        ({"a.weight": weight(8, 8), "a.weight_scale": torch.ones(1, dtype=torch.uint8)}, "in U8, not floats"),
    ],
)
def test_scales_that_do_not_fit(tmp_path, tensors, words):
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder(tmp_path / "m", tensors, BLOCKS))


@pytest.mark.parametrize("size", [[128], "128", [0, 128], [128, 1.5]])
def test_a_block_that_is_none(tmp_path, size):
    with pytest.raises(CheckpointError, match="weight_block_size is"):
        open_checkpoint(folder(tmp_path / "m", {"a.weight": weight(8, 8)}, BLOCKS | {"weight_block_size": size}))


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "quanto", "bits": 4}, "'quanto'"),
        ({"quant_method": ["fp8"]}, "fp8"),
        (CHANNELS | {"transform_config": {"x": 1}}, "transform_config"),
        (
            CHANNELS
            | {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "symmetric": False}}}},
            "'float' in 4 bits are not read",
        ),
    ],
)
def test_other_forms_are_named(tmp_path, quantization, words):
    with pytest.raises(UnsupportedModel, match=words):
        open_checkpoint(folder(tmp_path / "m", {"a.weight": weight(8, 8)}, quantization))


@pytest.mark.parametrize("groups", [None, {}, {"group_0": None}, {"group_0": {"weights": None}}])
def test_groups_that_are_none(tmp_path, groups):
    with pytest.raises(CheckpointError, match="compressed-tensors has no"):
        open_checkpoint(folder(tmp_path / "m", {"a.weight": weight(8, 8)}, CHANNELS | {"config_groups": groups}))
