"""Matrices that backends take as a GGUF file has them: every type of block, to the numbers of the gguf package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import partita_backends
from partita.backend import Backend
from partita.checkpoint import experts
from partita.checkpoint.gguf import blocks as file_blocks
from partita.checkpoint.gguf.checkpoint import GgufCheckpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError
from partita.model.layers import MoE
from partita.model.load import load_decoder
from partita.quantization import Packed, Stored, StoredRows, dequantize
from partita_backends.kernels import blocks, ggml, words
from partita_backends.torch import cpu, weights

from .. import bounds
from ..runtime.checkpoint.gguf_files import Llama
from ..runtime.checkpoint.test_gguf_types import HALVES
from ..runtime.checkpoint.test_gguf_types import blocks as random_blocks

TYPES = (*file_blocks.AFFINE, *file_blocks.SMALL)
Type = gguf.GGMLQuantizationType


def rows_of(raw: np.ndarray, name: str, size: int, order: np.ndarray | None = None) -> StoredRows:
    def decode(part: np.ndarray, smallest_group: int) -> Any:
        return file_blocks.decode(part.reshape(-1), name, (len(part), size), "t", smallest_group)

    return StoredRows(raw, order, decode, lambda: None)


def stored(name: str, out: int, size: int) -> tuple[Stored, np.ndarray]:
    """Two matrices, one below the other, the second with its rows in another order; and what they stand for."""
    raw, order = random_blocks(name, out, size), np.random.default_rng(out).permutation(out)
    dense = gguf.dequantize(raw, Type[name])
    parts = rows_of(raw, name, size), rows_of(raw, name, size, order)
    return Stored(name, size, parts), np.concatenate([dense, dense[order]])


def test_every_affine_type_has_a_kernel() -> None:
    assert set(ggml._TYPES) == set(TYPES)


@pytest.mark.parametrize("size", [256, 1280])
@pytest.mark.parametrize("out", [5, 32, 77])
@pytest.mark.parametrize("name", TYPES)
def test_blocks_hold_what_the_file_does(name: str, out: int, size: int) -> None:
    weight, expected = stored(name, out, size)
    arranged = ggml.arrange(weight)
    np.testing.assert_array_equal(blocks.dense(arranged, 0, arranged.count), expected)
    chosen, found = np.asarray([2 * out - 1, 0, out]), np.empty((3, size), np.float32)
    blocks.rows(arranged, chosen, found)
    np.testing.assert_array_equal(found, expected[chosen])


@pytest.mark.parametrize("name", [name for name in TYPES if not name.endswith("K")])
def test_rows_of_an_odd_number_of_blocks(name: str) -> None:
    weight, expected = stored(name, 33, 32 * 3)
    arranged = ggml.arrange(weight)
    np.testing.assert_array_equal(blocks.dense(arranged, 0, arranged.count), expected)


def test_many_rows_go_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_STAGED", 1 << 12)  # no larger than a block
    weight, expected = stored("Q4_K", 100, 512)
    arranged = ggml.arrange(weight)
    np.testing.assert_array_equal(blocks.dense(arranged, 0, arranged.count), expected)


@pytest.mark.parametrize("name", TYPES)
def test_memory_is_the_file_s(name: str) -> None:
    raw = random_blocks(name, 64, 1024)
    arranged = ggml.arrange(Stored(name, 1024, (rows_of(raw, name, 1024),)))
    # where the file packs small scales in 4 or 6 bits there is a byte for each
    assert raw.nbytes <= arranged.nbytes <= 1.2 * raw.nbytes


@pytest.mark.parametrize("name", TYPES)
def test_every_backend_computes_with_the_same_numbers(ops: Backend, name: str) -> None:
    weight, expected = stored(name, 40, 512)
    prepared = ops.prepare(weight)
    tokens = ops.array(np.arange(80, dtype=np.int32)[None])
    found = ops.to_numpy(ops.embed(prepared, tokens))[0]
    if ops.name == "mlx":  # a multiplication and an addition may be one operation there
        bounds.assert_near(found, expected, bounds.gamma(2), np.abs(expected).max())
    else:
        np.testing.assert_array_equal(found, expected)
    x = np.random.default_rng(0).standard_normal((1, 3, 512)).astype(np.float32)
    size = (np.abs(x) @ np.abs(expected).T).max()
    y = ops.to_numpy(ops.linear(ops.array(x), prepared))
    bounds.assert_near(y, x.astype(np.float64) @ expected.T.astype(np.float64), bounds.drift(512 + 8), size)


@pytest.mark.parametrize("name", TYPES)
def test_torch_without_kernels_repacks_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_found", lambda: (None, "No module named 'numba'"))
    ops = partita_backends.load("torch", device="cpu", dtype="float32", threads=1)
    weight, expected = stored(name, 40, 512)
    prepared = ops.prepare(weight)
    assert isinstance(prepared, weights.Quantized)
    found = ops.to_numpy(ops.embed(prepared, ops.array(np.arange(80, dtype=np.int32)[None])))
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("name", TYPES)
def test_rounded_rows_give_the_products_of_the_dense_weight(name: str, rows: int) -> None:
    weight, dense = stored(name, 40, 512)
    ops = partita_backends.load("torch", device="cpu", threads=1)
    prepared = ops.prepare(weight)
    assert isinstance(prepared, cpu.Blocked)
    x = np.random.default_rng(rows).standard_normal((1, rows, 512)).astype(np.float32)
    step = np.repeat(np.abs(x.reshape(1, rows, -1, 16)).max(-1), 16, -1) / 127
    found = ops.to_numpy(ops.linear(ops.array(x), prepared))
    assert (np.abs(found - x @ dense.T) <= 0.51 * step @ np.abs(dense).T + 1e-6 * np.abs(x) @ np.abs(dense).T).all()
    alone = ops.to_numpy(ops.linear(ops.array(x[:, :1]), prepared))
    np.testing.assert_array_equal(alone[0, 0], found[0, 0])


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("name", TYPES)
def test_several_threads_give_the_same_bits(name: str, dtype: str) -> None:
    """Of a few rows, of many, and backward: every kernel there is, with scales in every form."""
    weight, dense = stored(name, 40, 512)
    x = np.random.default_rng(5).standard_normal((1, 40, 512)).astype(np.float32)
    grad = np.random.default_rng(6).standard_normal((40, len(dense))).astype(np.float32)
    found = []
    for threads in (1, 2):
        ops = partita_backends.load("torch", device="cpu", dtype=dtype, threads=threads)
        prepared = ops.prepare(weight)
        rows = [ops.to_numpy(ops.linear(ops.array(x[:, :count]), prepared)) for count in (1, 3, 40)]
        back = weights.multiply_back(torch.from_numpy(grad), prepared).numpy()
        found.append([*rows, back])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", TYPES)
def test_a_scale_that_is_not_finite_is_damage_everywhere(ops: Backend, name: str) -> None:
    if name in file_blocks.SMALL and ops.smallest_group > file_blocks.SMALL_GROUP:
        return  # made dense, by the gguf package: an infinite number is one
    for place in HALVES[name]:
        raw = random_blocks(name, 70, 512)
        raw[69, place : place + 2] = np.asarray([np.inf], np.float16).view(np.uint8)
        with pytest.raises(CheckpointError, match="t: a block's scale is not a finite number"):
            ops.prepare(Stored(name, 512, (rows_of(raw, name, 512),)))


@pytest.mark.parametrize("size", [4, 12, 16, 20, 48])
def test_rows_side_by_side(size: int) -> None:
    rows = np.random.default_rng(size).integers(0, 256, (96, size), dtype=np.uint8)
    lanes = np.zeros(7 + rows.size, np.uint8)
    words.turn(rows, lanes, 7)
    expected = rows.reshape(3, 32, size // 4, 4).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(lanes[7:], expected)
    assert not lanes[:7].any()


# From a file


class Wide(Llama):
    heads, kv_heads, head_dim, width, inner, layers = 4, 2, 64, 256, 512, 1


def model(path: Path, name: str, shape: Llama) -> GgufCheckpoint:
    """A file whose matrices are of one type, q and k permuted."""
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, shape.architecture)
    shape.keys(writer)
    for key, value in shape.tensors.items():
        if value.ndim == 1:
            writer.add_tensor(key, value)
        else:
            raw = random_blocks(name, value[..., 0].size, value.shape[-1])
            raw = raw[rng.permutation(len(raw))].reshape(*value.shape[:-1], -1)
            writer.add_tensor(key, raw, raw_dtype=Type[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_checkpoint(path)
    assert isinstance(found, GgufCheckpoint)
    return found


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "Q2_K", "Q3_K"])
def test_a_decoder_has_the_numbers_that_the_file_is_read_as(ops: Backend, tmp_path: Path, name: str) -> None:
    checkpoint = model(tmp_path / "m.gguf", name, Wide())
    decoder = load_decoder(ops, checkpoint)
    tokens = ops.array(np.arange(32, dtype=np.int32)[None])
    found = ops.to_numpy(ops.embed(decoder.embedding, tokens))[0]
    bounds.assert_near(found, _dense(checkpoint, "model.embed_tokens.weight"), bounds.gamma(2))
    x = np.random.default_rng(0).standard_normal((1, 2, 256)).astype(np.float32)
    attention = decoder.blocks[0].mixer
    qkv = np.concatenate([_dense(checkpoint, f"model.layers.0.self_attn.{part}_proj.weight") for part in "qkv"])
    y = np.concatenate([ops.to_numpy(part(ops, ops.array(x))) for part in attention.qkv.parts], -1)
    size = (np.abs(x) @ np.abs(qkv).T).max()
    bounds.assert_near(y, x.astype(np.float64) @ qkv.T.astype(np.float64), bounds.drift(256 + 8), size)


def _dense(checkpoint: GgufCheckpoint, name: str) -> np.ndarray:
    tensor = checkpoint.file.tensors[checkpoint.gguf_of[name]]
    value = gguf.dequantize(checkpoint.file.raw(tensor.name).reshape(tensor.shape[0], -1), Type[tensor.type])
    order = checkpoint._arrangement(name).rows
    return value if order is None else value[order]


class Experts(Wide):
    """Four of them, each of 512 inner numbers."""

    architecture = "qwen3moe"

    def layer_shapes(self, q: int, kv: int) -> dict[str, tuple[int, ...]]:
        shapes = {name: shape for name, shape in super().layer_shapes(q, kv).items() if name.startswith("attn")}
        norms = {"attn_q_norm": (self.head_dim,), "attn_k_norm": (self.head_dim,), "ffn_norm": (self.width,)}
        up, down = (4, self.inner, self.width), (4, self.width, self.inner)
        stacks = {"ffn_gate_exps": up, "ffn_up_exps": up, "ffn_down_exps": down, "ffn_gate_inp": (4, self.width)}
        return {**shapes, **norms, **stacks}

    def keys(self, writer: gguf.GGUFWriter) -> None:
        super().keys(writer)
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(self.inner)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q3_K"])
def test_experts_stay_packed_in_the_groups_that_a_backend_takes(tmp_path: Path, name: str) -> None:
    checkpoint = model(tmp_path / "m.gguf", name, Experts())
    stacks = experts.find(checkpoint)["model.layers.0.mlp"]
    found = stacks.weight("down_proj", 16)
    assert isinstance(found, Packed)
    assert (found.shape, found.group_size) == ((4, 256, 512), 32 if name == "Q4_K" else 16)
    tensor = checkpoint.file.tensors["blk.0.ffn_down_exps.weight"]
    expected = gguf.dequantize(checkpoint.file.raw(tensor.name).reshape(4 * 256, -1), Type[name]).reshape(4, 256, 512)
    np.testing.assert_array_equal(dequantize(found), expected)
    as_read = stacks.weight("down_proj")
    assert isinstance(as_read, Packed) == (name == "Q4_K")
    np.testing.assert_array_equal(dequantize(as_read) if isinstance(as_read, Packed) else as_read, expected)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_a_decoder_with_such_experts_computes(ops: Backend, tmp_path: Path, name: str) -> None:
    checkpoint = model(tmp_path / "m.gguf", name, Experts())
    mlp = load_decoder(ops, checkpoint).blocks[0].mlp
    assert isinstance(mlp, MoE)
    tensor = checkpoint.file.tensors["blk.0.ffn_gate_exps.weight"]
    dense = gguf.dequantize(checkpoint.file.raw(tensor.name).reshape(4 * 512, -1), Type[name]).reshape(4, 512, 256)
    x, index = (
        np.random.default_rng(0).standard_normal((1, 2, 1, 256)).astype(np.float32),
        np.asarray([[[3, 0], [1, 3]]]),
    )
    y = ops.to_numpy(ops.moe_linear(ops.array(x), mlp.gate.weight, ops.array(index.astype(np.int32))))
    expected = np.einsum("btei,btkoi->btko", x.astype(np.float64), dense[index])
    bounds.assert_near(y, expected, bounds.drift(256 + 8), (np.abs(x) @ np.abs(dense).max(0).T).max())


LOAD = """
import sys
from pathlib import Path
import partita_backends
from partita.checkpoint.open import open_checkpoint
from partita.model.layers import MoE
from partita.model.load import load_decoder

ops = partita_backends.load("torch", device="cpu", threads=1)
load_decoder(ops, open_checkpoint(Path(sys.argv[1])))  # kernels are compiled, or fetched
checkpoint = open_checkpoint(Path(sys.argv[2]))
ops.reset_peak()
before = ops.memory().active
decoder = load_decoder(ops, checkpoint)
print(ops.memory().active - before, ops.memory().peak - before)
"""


class Large(Wide):
    head_dim, width, inner, layers = 128, 512, 4096, 6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there pages of a file are given back")
@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
def test_loading_takes_the_file_s_size_once(tmp_path: Path, name: str) -> None:
    model(tmp_path / "small.gguf", name, Wide())
    size = model(tmp_path / "large.gguf", name, Large()).nbytes()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", LOAD, str(tmp_path / "small.gguf"), str(tmp_path / "large.gguf")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    after, peak = map(int, done.stdout.split())
    assert size > 20_000_000
    assert after < 1.25 * size  # the weights; of the file, the pages at the ends of tensors
    assert peak < 1.6 * size  # and one matrix of the file
