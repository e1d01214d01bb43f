"""GGUF out: the gated delta rule and short convolutions, from every kind of folder; what becomes of integers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.names import adds_one
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.model.notes import notes
from partita.quantization import Packed, Stored, dequantize
from partita_convert.gguf.encode import Encoder
from partita_convert.gguf.write import kinds_of_mix, write_gguf
from partita_convert.layouts import as_huggingface, as_mlx, by_key_heads
from partita_convert.write_folder import write_huggingface, write_mlx

from .. import gguf_models, tiny_models
from .test_write_gguf import dense
from .test_write_gguf_packed import packed_folder

OUT = "model.layers.0.linear_attn.out_proj.weight"


def changed(source: Path, target: Path, change: Callable[[str, np.ndarray], np.ndarray], **more: np.ndarray) -> Path:
    """The same folder with other tensors."""
    shutil.copytree(source, target)
    tensors = {name: change(name, value) for name, value in load_file(source / "model.safetensors").items()}
    save_file({**tensors, **more}, target / "model.safetensors", {"format": "pt"})
    return target


def as_mlx_lm_has_it(name: str, value: np.ndarray) -> np.ndarray:
    if name.endswith("conv1d.weight"):
        return np.ascontiguousarray(value.swapaxes(1, 2))
    return value + np.float32(1) if adds_one(name) else value


@pytest.mark.parametrize("name", gguf_models.RECURRENT)
def test_the_types_of_small_parts(name: str, written: Callable[..., Path]) -> None:
    file = open_gguf(written(name, "Q4_0"))
    types = {key.partition(".")[2].partition(".")[2]: tensor.type for key, tensor in file.tensors.items()}
    floats = {"ssm_conv1d.weight", "ssm_a", "ssm_dt.bias", "ssm_norm.weight", "attn_norm.weight"}
    floats |= {"ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight"} & set(types)
    assert {types[key] for key in floats} == {"F32"}
    assert {types[key] for key in ("ssm_ba.weight", "ssm_alpha.weight", "ssm_beta.weight") if key in types} == {"Q8_0"}
    assert {types[key] for key in ("attn_qkv.weight", "attn_gate.weight", "ssm_out.weight")} == {"Q4_0"}
    shapes = {key: tensor.shape for key, tensor in file.tensors.items()}
    assert {len(shape) for key, shape in shapes.items() if "ssm_conv1d" in key} == {2}
    assert not [key for key, shape in shapes.items() if "ffn_gate_inp_shexp" in key and len(shape) > 1]


@pytest.mark.parametrize("name", ["lfm2", "lfm2_moe"])
def test_the_types_of_small_parts_beside_convolutions(name: str, written: Callable[..., Path]) -> None:
    file = open_gguf(written(name, "Q4_0"))
    types = {key.partition(".")[2].partition(".")[2]: tensor.type for key, tensor in file.tensors.items()}
    floats = {"shortconv.conv.weight", "attn_norm.weight", "attn_q_norm.weight"}
    floats |= {"ffn_gate_inp.weight", "exp_probs_b.bias"} & set(types)
    assert len(floats) == (3 if name == "lfm2" else 5)
    assert {types[key] for key in floats} == {"F32"}
    packed = {"shortconv.in_proj.weight", "shortconv.out_proj.weight", "attn_output.weight", "ffn_down.weight"}
    packed |= {"ffn_gate_exps.weight", "ffn_down_exps.weight"} & set(types)
    assert {types[key] for key in packed} == {"Q4_0"}
    assert file.tensors["blk.0.shortconv.conv.weight"].shape == (128, 3)
    assert file.metadata[f"{file.metadata['general.architecture']}.attention.head_count_kv"] == [0, 2, 0, 2]


def test_a_folder_of_mlx_lm_gives_the_same_file(families: Path, tmp_path: Path) -> None:
    """LFM2-MoE's dense MLP has other names there, and taps are the second axis; what is said of a matrix, by either
    name, is said of it."""
    source = open_checkpoint(gguf_models.write("lfm2_moe", families))
    write_mlx(source, tmp_path / "mlx")
    mlx = open_checkpoint(tmp_path / "mlx")
    plain, other = "model.layers.0.feed_forward.w2.weight", "model.layers.0.feed_forward.down_proj.weight"
    columns = np.random.default_rng(3).uniform(0.01, 100, source.shape(plain)[1]).astype(np.float32)
    files = []
    for checkpoint, name in ((source, plain), (mlx, other)):
        more = {"kind": "Q4_1", "columns": {name: columns}, "kinds": {name: "Q5_1"}}
        files.append(open_gguf(write_gguf(checkpoint, tmp_path / f"{len(files)}.gguf", **more).path))
    assert files[1].tensors["blk.0.ffn_down.weight"].type == "Q5_1"
    mixes = [kinds_of_mix(checkpoint, "Q4_K_M") for checkpoint in (source, mlx)]
    assert mixes[0][plain] == mixes[1][other]
    assert len(mixes[0]) == len(mixes[1])
    assert set(files[0].tensors) == set(files[1].tensors)
    for key, tensor in files[0].tensors.items():
        assert (files[1].tensors[key].shape, files[1].tensors[key].type) == (tensor.shape, tensor.type)
        np.testing.assert_array_equal(files[1].raw(key), files[0].raw(key), err_msg=key)


@pytest.mark.parametrize(("bits", "kind", "target"), [(4, "Q8_0", "Q4_1"), (5, "Q5_1", "Q5_1")])
@pytest.mark.parametrize("name", ["qwen3_5-tiled", "qwen3_next-grouped"])
def test_integers_stay_in_whatever_order(
    name: str, bits: int, kind: str, target: str, families: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(packed_folder(gguf_models.write(name, families), tmp_path / "mlx", bits, 32))
    result = write_gguf(source, tmp_path / "m.gguf", kind=kind)
    own = [tensor for tensor in result.tensors if "linear_attn.in_proj" in tensor.name or "out_proj" in tensor.name]
    assert len(own) >= 3 * 3
    assert {(tensor.target, tensor.error) for tensor in own} == {(target, 0.0)}
    back = by_key_heads(open_checkpoint(result.path))
    for tensor in own:
        np.testing.assert_array_equal(dense(back, tensor.name), dense(source, tensor.name))


def test_groups_of_two_heads_are_rounded_again(families: Path, tmp_path: Path) -> None:
    """Of 64 columns the heads of 32 go to different places."""
    source = open_checkpoint(packed_folder(gguf_models.write("qwen3_5-tiled", families), tmp_path / "mlx", 4, 64))
    result = write_gguf(source, tmp_path / "m.gguf", kind="Q8_0")
    errors = {tensor.name: (tensor.target, tensor.error) for tensor in result.tensors}
    target, error = errors[OUT]
    assert target == "Q8_0"
    assert error is not None
    assert 0 < error < 0.02
    assert errors["model.layers.0.linear_attn.in_proj_z.weight"] == ("Q4_1", 0.0)
    away = dense(open_checkpoint(result.path), OUT) - dense(source, OUT)
    assert np.sqrt(np.square(away).mean()) <= error * np.sqrt(np.square(dense(source, OUT)).mean()) * 1.001


def test_what_columns_matter_goes_with_them(families: Path, tmp_path: Path) -> None:
    source = open_checkpoint(gguf_models.write("qwen3_5-tiled", families))
    importance = np.random.default_rng(3).uniform(0.01, 100, source.shape(OUT)[1]).astype(np.float32)
    path = write_gguf(source, tmp_path / "m.gguf", kind="Q4_1", columns={OUT: importance}).path
    value, order = dense(source, OUT), np.arange(192).reshape(2, 3, 32).swapaxes(0, 1).reshape(-1)
    expected = Encoder(OUT, np.ascontiguousarray(value[:, order]), "Q4_1", None, 0.0, importance[order])
    raw = open_gguf(path).raw("blk.0.ssm_out.weight")
    np.testing.assert_array_equal(raw, np.concatenate([blocks.reshape(-1) for blocks in expected.blocks()]))


@pytest.mark.parametrize("name", ["qwen3_5-tiled", "qwen3_5_moe-tiled", "qwen3_next-grouped"])
def test_a_folder_of_mlx_lm_is_the_same_model(name: str, families: Path, tmp_path: Path) -> None:
    """Its norms hold the one, and taps of convolutions are the second axis."""
    source = gguf_models.write(name, families)
    mlx = open_checkpoint(changed(source, tmp_path / "mlx", as_mlx_lm_has_it))
    assert mlx.norms_include_one
    first = open_gguf(write_gguf(open_checkpoint(source), tmp_path / "first.gguf", kind="F32").path)
    second = open_gguf(write_gguf(mlx, tmp_path / "second.gguf", kind="F32").path)
    assert set(first.tensors) == set(second.tensors)
    for key, tensor in first.tensors.items():
        assert second.tensors[key].shape == tensor.shape
        np.testing.assert_array_equal(second.raw(key), first.raw(key), err_msg=key)
    write_huggingface(mlx, tmp_path / "back")
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "back")
    for key in ("conv1d.weight", "norm.weight"):
        key = f"model.layers.0.linear_attn.{key}"
        np.testing.assert_array_equal(dense(after, key), dense(before, key))
    np.testing.assert_allclose(
        dense(after, "model.norm.weight") + 1, dense(before, "model.norm.weight") + 1, rtol=2**-23
    )


def test_what_predicts_further_tokens_is_left_out(families: Path, tmp_path: Path) -> None:
    source = gguf_models.write("qwen3_5-tiled", families)
    more = {"mtp.fc.weight": np.ones((64, 128), np.float32), "mtp.norm.weight": np.ones(64, np.float32)}
    folder = changed(source, tmp_path / "m", lambda _, value: value, **more)
    path = write_gguf(open_checkpoint(folder), tmp_path / "m.gguf").path
    plain = write_gguf(open_checkpoint(source), tmp_path / "plain.gguf").path
    assert set(open_gguf(path).tensors) == set(open_gguf(plain).tensors)
    said = "m: 2 tensors that guess further tokens than the next (mtp) are not used"
    assert (notes(open_checkpoint(folder)), notes(open_checkpoint(path))) == ((said,), ())


def test_a_model_of_attention_alone(families: Path, tmp_path: Path) -> None:
    source = gguf_models.write("qwen3_5-alike", tmp_path / "models", {"layer_types": ["full_attention"] * 4})
    with pytest.raises(UnsupportedModel, match=r"qwen35 architecture has recurrent layers, this model none"):
        write_gguf(open_checkpoint(source), tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "rows", "what"),
    [
        ("qwen3_next-grouped", "in_proj_qkvz", "in_proj_qkvz.weight has 500 rows, its heads have 512"),
        ("qwen3_5-tiled", "in_proj_qkv", "in_proj_qkv.weight has 308 rows, its heads have 320"),
    ],
)
def test_rows_that_are_missing(name: str, rows: str, what: str, families: Path, tmp_path: Path) -> None:
    def cut(key: str, value: np.ndarray) -> np.ndarray:
        return value[:-12] if key.endswith(f"{rows}.weight") else value

    folder = changed(gguf_models.write(name, families), tmp_path / "m", cut)
    with pytest.raises(CheckpointError, match=what):
        write_gguf(open_checkpoint(folder), tmp_path / "m.gguf")


@pytest.mark.parametrize(("gates", "packed"), [("Q8_0", True), ("Q4_0", False)])
def test_qwen3_next_comes_back_as_it_was_published(gates: str, packed: bool, families: Path, tmp_path: Path) -> None:
    """Two matrices of a file are one in a folder, of integers where they have one format."""
    source = open_checkpoint(gguf_models.write("qwen3_next-grouped", families))
    path = write_gguf(source, tmp_path / "m.gguf", kind="Q8_0").path
    if gates != "Q8_0":
        path = rewritten(path, tmp_path / "mixed.gguf", gates)
    there = open_checkpoint(path)
    for form in (as_mlx(there), as_huggingface(there)):
        names = [name for name in form.names() if "layers.0.linear_attn" in name]
        assert names == [name for name in form.names() if name in source.names() and "layers.0.linear_attn" in name]
        assert {name.split(".")[4] for name in names} >= {"in_proj_qkvz", "in_proj_ba"}
        for part, integers in (("in_proj_qkvz", packed), ("in_proj_ba", True)):
            name = f"model.layers.0.linear_attn.{part}.weight"
            value = form.read(name)
            assert isinstance(value, Packed) is integers
            assert form.shape(name) == tuple(value.shape) == source.shape(name)
            found = dequantize(value) if isinstance(value, Packed) else value
            assert np.abs(found - dense(source, name)).max() < {"Q8_0": 0.01, "Q4_0": 0.1}[gates]
    assert form.stored_as("model.layers.0.linear_attn.in_proj_qkvz.weight") == ("Q8_0" if packed else "Q8_0 and Q4_0")
    write_mlx(there, tmp_path / "mlx")
    assert set(open_checkpoint(tmp_path / "mlx").names()) == set(as_mlx(there).names())


def rewritten(path: Path, target: Path, gates: str) -> Path:
    """The same file with gates of another type."""
    source = open_checkpoint(path)
    names = [name for name in source.names() if name.endswith("in_proj_z.weight")]
    return write_gguf(source, target, kind="Q8_0", kinds=dict.fromkeys(names, gates)).path


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("name", ["qwen3_5_moe-tiled", "qwen3_next-grouped"])
def test_gate_and_up_of_experts_in_one_tensor(
    name: str, kind: str, written: Callable[..., Path], tmp_path: Path
) -> None:
    """As llama.cpp's converter may write them."""
    plain = open_checkpoint(written(name, kind))
    fused = open_checkpoint(gguf_models.with_fused_experts(written(name, kind), tmp_path / "fused.gguf"))
    assert set(fused.names()) == set(plain.names())
    for key in plain.names():
        assert fused.shape(key) == plain.shape(key)
        np.testing.assert_array_equal(dense(fused, key), dense(plain, key))
        if isinstance(stored := fused.read_stored(key), Stored):
            own = plain.read_stored(key)
            assert isinstance(own, Stored)
            assert stored.shape == own.shape
            np.testing.assert_array_equal(stored.rows(0, own.shape[0]), own.rows(0, own.shape[0]))


@pytest.mark.parametrize("said", [[1, 2, 3, 4, 5], [1, -1], ["a"], "abc", [1.5, 2]])
def test_sections_of_rope_that_are_no_numbers(said: Any, families: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gguf_models.write("qwen3_5-tiled", families), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["mrope_section"] = said
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="mrope_section must be up to four numbers"):
        write_gguf(open_checkpoint(folder), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_sections_of_rope_are_those_of_the_config(families: Path, tmp_path: Path) -> None:
    source: dict[str, Any] = json.loads((tiny_models.write("qwen3_5", families) / "config.json").read_text())
    assert source["rope_parameters"]["mrope_section"] == [2, 1, 1]
    path = write_gguf(open_checkpoint(gguf_models.write("qwen3_5-tiled", families)), tmp_path / "m.gguf").path
    assert open_gguf(path).metadata["qwen35.rope.dimension_sections"] == [2, 1, 1, 0]
    assert open_checkpoint(path).config["rope_parameters"]["mrope_section"] == [2, 1, 1]
