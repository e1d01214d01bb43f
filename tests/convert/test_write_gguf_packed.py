"""GGUF out: integers and 4-bit floats that are kept as they are, and numbers that no block holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError
from partita.quantization import Packed, quantize_weight
from partita_convert.gguf.encode import exact_type
from partita_convert.gguf.write import KINDS, write_gguf
from partita_convert.write_folder import write_mlx

from .. import bounds, gguf_models, tiny_models
from .test_write_gguf import QUANTIZED, dense, logits


def packed_folder(source: Path, target: Path, bits: int, group_size: int, scales: str = "float16") -> Path:
    def transform(name: str, value: Any) -> Any:
        if value.ndim != 2 or value.shape[-1] % group_size:
            return value
        packed = quantize_weight(np.asarray(value, np.float32), bits, group_size)
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16) if scales == "bfloat16" else np.dtype(scales)
        return Packed(packed.weight, packed.scales.astype(dtype), packed.biases.astype(dtype), bits, group_size)

    write_mlx(open_checkpoint(source), target, transform=transform)
    return target


@pytest.mark.parametrize(
    ("bits", "group_size", "scales", "kind", "target"),
    [
        (4, 32, "float16", "Q4_0", "Q4_1"),
        (4, 64, "float16", "Q8_0", "Q4_1"),
        (4, 128, "bfloat16", "Q4_1", "Q4_1"),
        (2, 32, "float16", "Q4_0", "Q4_1"),
        (3, 64, "float16", "Q8_0", "Q4_1"),
        (5, 32, "float16", "Q5_0", "Q5_1"),
        (5, 32, "float16", "Q4_0", "Q4_0"),  # more bits than were asked for
        (4, 32, "float32", "Q8_0", "Q8_0"),  # scales that float16 does not hold
        (6, 32, "float16", "Q8_0", "Q8_0"),  # no block of six bits has a bias
        (8, 32, "float16", "Q8_0", "Q8_0"),  # nor one of eight
        (4, 32, "float16", "F16", "F16"),
    ],
)
def test_integers_of_mlx_folders(
    bits: int, group_size: int, scales: str, kind: str, target: str, families: Path, tmp_path: Path
) -> None:
    source = packed_folder(gguf_models.write("olmo2", families), tmp_path / "mlx", bits, group_size, scales)
    before = open_checkpoint(source)
    result = write_gguf(before, tmp_path / "m.gguf", kind=kind)
    after = open_checkpoint(tmp_path / "m.gguf")
    name = "model.layers.1.self_attn.q_proj.weight"
    (tensor,) = (tensor for tensor in result.tensors if tensor.name == name)
    assert tensor.source == f"{bits}-bit:{group_size}"
    assert tensor.target == after.stored_as(name) == target
    if target in ("Q4_1", "Q5_1"):
        assert tensor.error == 0.0
        np.testing.assert_array_equal(dense(after, name), dense(before, name))
    else:
        assert tensor.error is not None
        assert 0 < tensor.error < 0.12
        np.testing.assert_allclose(dense(after, name), dense(before, name), atol=0.1)


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_blocks_of_a_gguf_source_are_kept(name: str, kind: str, written: Callable[..., Path], tmp_path: Path) -> None:
    """Whatever is asked for, as long as it is not of fewer bits; rows of llama's q and k are permuted back."""
    source = written(name, kind)
    before = open_gguf(source)
    asked = {"Q8_0": ["Q8_0"], "Q5_1": ["Q8_0", "Q5_0"], "Q5_0": ["Q8_0", "Q5_1"]}.get(kind, ["Q8_0", "Q5_0", "Q4_0"])
    for other in asked:
        path = tmp_path / f"{other}.gguf"
        result = write_gguf(open_checkpoint(source), path, kind=other)
        assert all(tensor.error == 0.0 for tensor in result.tensors)
        after = open_gguf(path)
        for key, tensor in before.tensors.items():
            assert after.tensors[key].type == tensor.type
            np.testing.assert_array_equal(after.raw(key), before.raw(key), err_msg=f"{other} {key}")


def test_4_bit_floats_are_kept(families: Path, tmp_path: Path) -> None:
    """Experts of gpt-oss, as published and as GGUF has them."""
    from safetensors.numpy import save_file

    source = gguf_models.write("gpt_oss", families)
    tensors = load_file(source / "model.safetensors")
    random = np.random.default_rng(3)
    for i in range(4):
        for name, rows in (("gate_up_proj", 128), ("down_proj", 64)):
            tensors.pop(key := f"model.layers.{i}.mlp.experts.{name}")
            tensors[f"{key}_blocks"] = random.integers(0, 256, (6, rows, 2, 16)).astype(np.uint8)
            tensors[f"{key}_scales"] = random.integers(118, 124, (6, rows, 2)).astype(np.uint8)
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (packed / file).write_text((source / file).read_text())
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    result = write_gguf(open_checkpoint(packed), tmp_path / "m.gguf", kind="Q4_0")
    experts = [tensor for tensor in result.tensors if tensor.name.endswith("weight") and "switch_mlp" in tensor.name]
    assert len(experts) == 12
    assert {(tensor.target, tensor.error) for tensor in experts} == {("MXFP4", 0.0)}
    tokens = tiny_models.tokens(source)
    dense_again = write_gguf(open_checkpoint(packed), tmp_path / "d.gguf", kind="F32").path
    bounds.assert_near(logits(dense_again, tokens), logits(packed, tokens), bounds.logits(source))
    again = write_gguf(open_checkpoint(tmp_path / "m.gguf"), tmp_path / "n.gguf", kind="Q4_0").path
    before, after = open_gguf(tmp_path / "m.gguf"), open_gguf(again)
    for key in before.tensors:
        np.testing.assert_array_equal(after.raw(key), before.raw(key))


def test_a_mode_that_is_not_affine_has_no_block() -> None:
    packed = quantize_weight(np.ones((2, 64), np.float32), 4, 32)
    packed = replace(packed, scales=packed.scales.astype(np.float16), biases=packed.biases.astype(np.float16))
    assert exact_type(packed) is not None
    assert exact_type(replace(packed, mode="nvfp4", biases=None)) is None


def test_what_no_block_can_hold(families: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    source = gguf_models.write("llama-yarn", families)
    tensors = load_file(source / "model.safetensors")
    for i in range(4):  # an inner size of 80, which is no whole number of blocks
        tensors[f"model.layers.{i}.mlp.down_proj.weight"] = tensors[f"model.layers.{i}.mlp.down_proj.weight"][:, :80]
        for part in ("gate_proj", "up_proj"):
            key = f"model.layers.{i}.mlp.{part}.weight"
            tensors[key] = tensors[key][:80]
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"] * 1e6
    odd = tmp_path / "odd"
    odd.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (odd / file).write_text((source / file).read_text())
    config = json.loads((source / "config.json").read_text()) | {"intermediate_size": 80}
    (odd / "config.json").write_text(json.dumps(config))
    save_file(tensors, odd / "model.safetensors", metadata={"format": "pt"})
    result = write_gguf(open_checkpoint(odd), tmp_path / "m.gguf", kind="Q4_0")
    targets = {tensor.name: tensor.target for tensor in result.tensors}
    assert targets["model.layers.0.mlp.down_proj.weight"] == "F32"  # beyond float16
    assert targets["model.layers.1.mlp.down_proj.weight"] == "F16"
    assert targets["model.layers.1.mlp.up_proj.weight"] == "Q4_0"


def test_numbers_that_are_not_finite_are_refused(families: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    source = gguf_models.write("llama", families)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = np.nan
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bad / file).write_text((source / file).read_text())
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    for kind in KINDS:
        with pytest.raises(DataError, match=r"model\.layers\.2\.mlp\.up_proj\.weight.*not finite"):
            write_gguf(open_checkpoint(bad), tmp_path / "m.gguf", kind=kind)
    assert not list(tmp_path.glob("*.gguf")) + list(tmp_path.glob(".*"))
