"""Experts in the names of mlx-lm and of transformers: the same numbers both ways, judged by transformers' logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.names import Index
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError
from partita.model.load import load_decoder
from partita.quantization import Packed, dequantize, quantize_weight
from partita_convert.convert import Request, convert
from partita_convert.layouts import as_huggingface, as_mlx
from partita_convert.write_folder import write_huggingface, write_mlx

from .. import bounds, tiny_models

Family = Callable[[str], Path]
EXPERTS = ["qwen3_moe", "gpt_oss", "lfm2_moe", "laguna"]
OLD = {
    "qwen3_moe": "layers.0.mlp.experts.0.gate_proj.weight",
    "gpt_oss": "layers.0.mlp.experts.gate_up_proj",
    "lfm2_moe": "layers.1.feed_forward.experts.0.w1.weight",
    "laguna": "layers.1.mlp.experts.0.gate_proj.weight",
}


def logits(folder: Path, tokens: list[int]) -> np.ndarray:
    ops = partita_backends.load("numpy")
    model = load_decoder(ops, open_checkpoint(folder))
    cache = Cache(ops, plan(model.config, KVFormat.parse("32")))
    return ops.to_numpy(model(ops, ops.array(np.array([tokens], np.int32)), cache, every=True))[0]


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    found = {}
    for name in checkpoint.names():
        value = checkpoint.read(name)
        assert checkpoint.shape(name) == tuple(value.shape)
        found[name] = dequantize(value) if isinstance(value, Packed) else value
    return found


def eight_bits(name: str, value: np.ndarray | Packed) -> np.ndarray | Packed:
    if isinstance(value, Packed) or value.ndim < 2 or not name.endswith(".weight") or value.shape[-1] % 32:
        return value
    return value if value.shape[-1] % 32 else quantize_weight(value, 8, 32)  # taps of convolutions


def published(source: Path, target: Path) -> Path:
    """gpt-oss in bfloat16, with random 4-bit floats for experts."""
    rng = np.random.default_rng(2)
    tensors = {}
    for name, value in load_file(source / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            count, size, rows = value.shape
            tensors[f"{name}_blocks"] = rng.integers(0, 256, (count, rows, size // 32, 16), np.uint8)
            tensors[f"{name}_scales"] = rng.integers(121, 126, (count, rows, size // 32), np.uint8)
        else:
            tensors[name] = value.astype(ml_dtypes.bfloat16)
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    said = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    (target / "config.json").write_text(json.dumps(config | said))
    return target


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3"])
def test_a_model_without_experts_is_returned_as_it_is(tiny_family: Family, name: str) -> None:
    checkpoint = open_checkpoint(tiny_family(name))
    assert as_mlx(checkpoint) is checkpoint
    assert as_huggingface(checkpoint) is checkpoint


@pytest.mark.parametrize("name", EXPERTS)
def test_there_and_back_is_the_same_bit_for_bit(tiny_family: Family, name: str) -> None:
    checkpoint = open_checkpoint(tiny_family(name))
    assert as_huggingface(checkpoint) is checkpoint  # transformers wrote it
    mlx = as_mlx(checkpoint)
    assert as_mlx(mlx) is mlx
    assert mlx.fingerprint() == checkpoint.fingerprint()
    back = values(as_huggingface(mlx))
    expected = values(checkpoint)
    assert set(back) == set(expected)
    for key, value in expected.items():
        assert back[key].dtype == value.dtype
        np.testing.assert_array_equal(back[key], value)


def test_names_are_what_mlx_lm_and_transformers_look_for(tiny_family: Family) -> None:
    names = set(as_mlx(open_checkpoint(tiny_family("qwen3_moe"))).names())
    assert "model.layers.0.mlp.switch_mlp.gate_proj.weight" in names
    assert "model.layers.0.mlp.gate.weight" in names
    assert "model.layers.2.mlp.gate_proj.weight" in names  # a dense layer
    assert not any(".experts." in name for name in names)
    names = set(as_mlx(open_checkpoint(tiny_family("gpt_oss"))).names())
    assert {f"model.layers.1.mlp.experts.down_proj.{part}" for part in ("weight", "bias")} <= names
    assert not any("gate_up_proj" in name for name in names)
    names = set(as_mlx(open_checkpoint(tiny_family("lfm2_moe"))).names())
    assert "model.layers.1.feed_forward.switch_mlp.up_proj.weight" in names
    assert {"model.layers.1.feed_forward.gate.weight", "model.layers.1.feed_forward.expert_bias"} <= names
    assert {f"model.layers.0.feed_forward.{part}_proj.weight" for part in ("gate", "up", "down")} <= names
    assert not any(".experts." in name or ".w1." in name for name in names)
    names = set(as_mlx(open_checkpoint(tiny_family("laguna"))).names())
    router = {f"model.layers.1.mlp.gate.{part}" for part in ("proj.weight", "e_score_correction_bias")}
    assert {*router, "model.layers.1.mlp.shared_expert.up_proj.weight"} <= names
    assert not any(".experts." in name for name in names)


def test_new_names_stand_where_the_old_ones_stood(tiny_family: Family) -> None:
    """Writers keep a layer together, so a reader of one layer opens one file."""
    names = as_mlx(open_checkpoint(tiny_family("qwen3_moe"))).names()
    layers = [name.split(".")[2] for name in names if name.startswith("model.layers.")]
    assert layers == sorted(layers)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", EXPERTS)
def test_a_name_of_the_old_form_is_gone(tiny_family: Family, name: str) -> None:
    mlx = as_mlx(open_checkpoint(tiny_family(name)))
    for ask in (mlx.read, mlx.shape, mlx.stored_as):
        with pytest.raises(CheckpointError, match="no tensor"):
            ask(f"model.{OLD[name]}")


@pytest.mark.parametrize("name", EXPERTS)
def test_written_folders_give_the_same_logits(tiny_family: Family, tmp_path: Path, name: str) -> None:
    """Dense and packed, to mlx-lm's form and from it back to transformers', which is the judge."""
    source = tiny_family(name)
    tokens = tiny_models.tokens(source)
    expected = tiny_models.reference_logits(source, tokens)
    write_mlx(open_checkpoint(source), tmp_path / "mlx")
    bounds.assert_near(logits(tmp_path / "mlx", tokens), expected, bounds.logits(source))
    written = write_huggingface(open_checkpoint(tmp_path / "mlx"), tmp_path / "hf")
    np.testing.assert_array_equal(tiny_models.reference_logits(tmp_path / "hf", tokens), expected)
    assert {tensor.error for tensor in written.tensors} == {0.0}

    write_mlx(open_checkpoint(source), tmp_path / "packed", transform=eight_bits)
    ours = logits(tmp_path / "packed", tokens)
    write_huggingface(open_checkpoint(tmp_path / "packed"), tmp_path / "dense")
    bounds.assert_near(tiny_models.reference_logits(tmp_path / "dense", tokens), ours, bounds.logits(source))
    assert np.abs(ours - expected).max() > 1e-3


def test_an_adapter_knows_a_dense_mlp_by_both_its_names(tiny_family: Family) -> None:
    published = open_checkpoint(tiny_family("lfm2_moe"))
    mlx = as_mlx(published)
    for number, projection in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        names = [f"model.layers.0.feed_forward.{part}.weight" for part in (number, projection)]
        for name in names:
            assert Index(published.names()).find(name) == names[0]
            assert Index(mlx.names()).find(name) == names[1]
        np.testing.assert_array_equal(mlx.read(names[1]), published.read(names[0]))


def test_what_chooses_experts_is_not_rounded(tiny_family: Family, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_family("lfm2_moe"))
    name = "model.layers.1.feed_forward.expert_bias"
    write_huggingface(source, tmp_path / "hf", dtype="bfloat16")
    convert(source, tmp_path / "mlx", Request(quantize="8:32", dtype="bfloat16"))
    for folder in ("hf", "mlx"):
        written = open_checkpoint(tmp_path / folder)
        np.testing.assert_array_equal(written.read(name), source.read(name))
        assert written.stored_as(name) == "F32"
        assert written.stored_as("model.embedding_norm.weight") == "BF16"


def test_packed_stacks_keep_their_integers_expert_by_expert(tiny_family: Family, tmp_path: Path) -> None:
    write_mlx(open_checkpoint(tiny_family("qwen3_moe")), tmp_path / "m", transform=eight_bits)
    stacks = open_checkpoint(tmp_path / "m")
    single = as_huggingface(stacks)
    stack = stacks.read("model.layers.0.mlp.switch_mlp.up_proj.weight")
    assert isinstance(stack, Packed)
    for expert in (3, 0, 7, 7):  # in any order
        name = f"model.layers.0.mlp.experts.{expert}.up_proj.weight"
        one = single.read(name)
        assert isinstance(one, Packed)
        assert single.stored_as(name) == "8-bit:32"
        np.testing.assert_array_equal(one.weight, stack.weight[expert])


def test_4_bit_floats_stay_exact(tiny_family: Family, tmp_path: Path) -> None:
    """Published gpt-oss: as they are for mlx-lm; bfloat16, its own dequantization, for transformers."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    source = published(tiny_family("gpt_oss"), tmp_path / "m")
    tokens = tiny_models.tokens(source)
    written = write_mlx(open_checkpoint(source), tmp_path / "mlx")
    formats = {tensor.name: (tensor.source, tensor.target, tensor.error) for tensor in written.tensors}
    assert formats["model.layers.0.mlp.experts.up_proj.weight"] == ("MXFP4", "MXFP4", 0.0)
    assert formats["model.layers.0.mlp.experts.up_proj.bias"] == ("BF16", "bfloat16", 0.0)
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    np.testing.assert_array_equal(logits(tmp_path / "mlx", tokens), logits(source, tokens))

    write_huggingface(open_checkpoint(source), tmp_path / "hf", dtype=None)
    found, stored = load_file(tmp_path / "hf" / "model.safetensors"), load_file(source / "model.safetensors")
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    for name, blocks in stored.items():
        if name.endswith("_blocks"):
            scales = torch.from_numpy(stored[name.replace("_blocks", "_scales")])
            theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), scales, dtype=torch.float32).numpy()
            ours = found.pop(name.removesuffix("_blocks"))
            assert ours.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(ours.astype(np.float32), theirs)
        elif not name.endswith("_scales"):
            np.testing.assert_array_equal(found.pop(name), stored[name])
    assert not found
    ours = logits(source, tokens)
    bounds.assert_near(tiny_models.reference_logits(tmp_path / "hf", tokens), ours, bounds.logits(source))


def test_configs_name_the_experts_for_both_readers(tiny_family: Family, tmp_path: Path) -> None:
    write_mlx(open_checkpoint(tiny_family("qwen3_moe")), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["num_experts"] == config["num_local_experts"] == 8
    assert config["decoder_sparse_step"] == 1
    assert config["mlp_only_layers"] == [2]
    assert config["norm_topk_prob"] is True
