"""GGUF in: layers with the gated delta rule, whose heads, decays and convolutions a file keeps in its own way.

What files have is made here as llama.cpp's converter makes it of a published model: by reshaping, not by row numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from partita.checkpoint.gguf.arrangement import grouped_heads
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.quantization import Packed, Stored, dequantize

Type = gguf.GGMLQuantizationType
KEYS, VALUES, KEY, TAPS, WIDTH, VOCABULARY = 2, 6, 32, 4, 64, 32
RECURRENT = "model.layers.0.linear_attn"
"""Six value heads of two key heads: their order is not the one that undoes it."""


class Hybrid:
    """A model of one recurrent layer and one that attends, as published (`tensors`) and as a file (`stored`)."""

    architecture, layers = "qwen35", 2

    def __init__(self, value: int = KEY, heads: int = VALUES) -> None:
        rng = np.random.default_rng(5)
        self.heads, self.size = heads, heads * value
        shapes = {
            "in_proj_qkv.weight": (2 * KEYS * KEY + self.size, WIDTH),
            "in_proj_z.weight": (self.size, WIDTH),
            "in_proj_b.weight": (heads, WIDTH),
            "in_proj_a.weight": (heads, WIDTH),
            "conv1d.weight": (2 * KEYS * KEY + self.size, 1, TAPS),
            "dt_bias": (heads,),
            "A_log": (heads,),
            "norm.weight": (value,),
            "out_proj.weight": (WIDTH, self.size),
        }
        self.tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        self.others = {
            "token_embd.weight": (VOCABULARY, WIDTH),
            "output_norm.weight": (WIDTH,),
            "blk.0.attn_norm.weight": (WIDTH,),
            "blk.0.post_attention_norm.weight": (WIDTH,),
            "blk.1.attn_q.weight": (2 * WIDTH, WIDTH),
            "blk.1.attn_q_norm.weight": (WIDTH // 2,),
        }
        self.stored = self.converted() | {
            name: rng.standard_normal(shape).astype(np.float32) for name, shape in self.others.items()
        }

    def tiled(self, x: np.ndarray, axis: int) -> np.ndarray:
        """Value heads along an axis, of each key head's first those of all key heads, then the second."""
        parts = (*x.shape[:axis], KEYS, self.heads // KEYS, -1, *x.shape[axis + 1 :])
        return x.reshape(parts).swapaxes(axis, axis + 1).reshape(x.shape)

    def behind(self, x: np.ndarray) -> np.ndarray:
        first = 2 * KEYS * KEY
        return np.concatenate([x[:first], self.tiled(x[first:], 0)])

    def converted(self) -> dict[str, np.ndarray]:
        own = self.tensors
        return {
            "blk.0.attn_qkv.weight": self.behind(own["in_proj_qkv.weight"]),
            "blk.0.attn_gate.weight": self.tiled(own["in_proj_z.weight"], 0),
            "blk.0.ssm_beta.weight": self.tiled(own["in_proj_b.weight"], 0),
            "blk.0.ssm_alpha.weight": self.tiled(own["in_proj_a.weight"], 0),
            "blk.0.ssm_conv1d.weight": self.behind(own["conv1d.weight"][:, 0]),
            "blk.0.ssm_dt.bias": self.tiled(own["dt_bias"], 0),
            "blk.0.ssm_a": -np.exp(self.tiled(own["A_log"], 0)),
            "blk.0.ssm_norm.weight": own["norm.weight"],
            "blk.0.ssm_out.weight": self.tiled(own["out_proj.weight"], 1),
        }

    def keys(self) -> dict[str, Any]:
        return {
            "block_count": self.layers,
            "context_length": 64,
            "embedding_length": WIDTH,
            "feed_forward_length": 96,
            "attention.head_count": 2,
            "attention.head_count_kv": 1,
            "ssm.conv_kernel": TAPS,
            "ssm.state_size": KEY,
            "ssm.group_count": KEYS,
            "ssm.time_step_rank": self.heads,
            "ssm.inner_size": self.size,
            "full_attention_interval": 2,
            "rope.dimension_count": 8,
        }

    def write(self, path: Path, types: dict[str, Type] | None = None, more: dict[str, int] | None = None) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in {**self.keys(), **(more or {})}.items():
            writer.add_uint32(f"{self.architecture}.{key}", value)
        writer.add_float32(f"{self.architecture}.attention.layer_norm_rms_epsilon", 1e-6)
        writer.add_float32(f"{self.architecture}.rope.freq_base", 10000.0)
        writer.add_token_list(["a", "b"])
        for name, value in self.stored.items():
            kind = (types or {}).get(name)
            packed = value if kind is None or value.dtype == np.uint8 else gguf.quantize(value, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


class Next(Hybrid):
    """Qwen3-Next: heads as published, and matrices of which rows go by key heads."""

    architecture = "qwen3next"

    def tiled(self, x: np.ndarray, axis: int) -> np.ndarray:
        return x

    def by_key_heads(self, *parts: np.ndarray) -> np.ndarray:
        return np.concatenate([part.reshape(KEYS, -1, WIDTH) for part in parts], axis=1).reshape(-1, WIDTH)

    def converted(self) -> dict[str, np.ndarray]:
        found = super().converted()
        found["blk.0.ssm_ba.weight"] = self.by_key_heads(
            found.pop("blk.0.ssm_beta.weight"), found.pop("blk.0.ssm_alpha.weight")
        )
        return found

    def keys(self) -> dict[str, Any]:
        experts = {"count": 4, "used_count": 2, "feed_forward_length": 32, "shared_feed_forward_length": 48}
        return super().keys() | {f"expert_{key}": value for key, value in experts.items()}


class OldNext(Next):
    """The same as it was first converted."""

    def converted(self) -> dict[str, np.ndarray]:
        found = super().converted()
        del found["blk.0.attn_qkv.weight"], found["blk.0.attn_gate.weight"]
        q, k, v = np.split(self.tensors["in_proj_qkv.weight"], [KEYS * KEY, 2 * KEYS * KEY])
        return found | {"blk.0.ssm_in.weight": self.by_key_heads(q, k, v, self.tensors["in_proj_z.weight"])}


@pytest.mark.parametrize("model", [Hybrid, Next, OldNext])
def test_every_tensor_is_as_published(model: type[Hybrid], tmp_path: Path) -> None:
    source = model()
    checkpoint = open_checkpoint(source.write(tmp_path / "m.gguf"))
    names = {name.removeprefix(f"{RECURRENT}.") for name in checkpoint.names() if name.startswith(RECURRENT)}
    assert names == set(source.tensors)
    for name, value in source.tensors.items():
        read = checkpoint.read(f"{RECURRENT}.{name}")
        assert isinstance(read, np.ndarray)
        assert checkpoint.shape(f"{RECURRENT}.{name}") == read.shape == value.shape
        if name == "A_log":  # a float32 of exp, and the logarithm of that
            np.testing.assert_allclose(read, value, rtol=0, atol=4 * 2.0**-24)
        else:
            np.testing.assert_array_equal(read, value)
    assert checkpoint.norms_include_one


def test_the_order_written_out() -> None:
    assert grouped_heads(2, 6).tolist() == [0, 2, 4, 1, 3, 5]
    assert grouped_heads(4, 4).tolist() == [0, 1, 2, 3]


def test_what_the_config_says(tmp_path: Path) -> None:
    config = open_checkpoint(Hybrid(16).write(tmp_path / "m.gguf")).config
    said = {
        "model_type": "qwen3_5_text",
        "architectures": ["Qwen3_5ForCausalLM"],
        "num_hidden_layers": 2,
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 16,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000.0,
        "attention_bias": False,
    }
    assert {key: config.get(key) for key in said} == said
    assert not {"linear_value_size", "rope_parameters"} & set(config)


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0, Type.Q5_1])
def test_rows_of_integers_come_in_order(kind: Type, tmp_path: Path) -> None:
    source = Hybrid()
    parts = ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_out")
    checkpoint = open_checkpoint(source.write(tmp_path / "m.gguf", {f"blk.0.{part}.weight": kind for part in parts}))
    for name in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"):
        value = source.tensors[f"{name}.weight"]
        packed = checkpoint.read(f"{RECURRENT}.{name}.weight")
        assert isinstance(packed, Packed)  # heads of 32 are whole groups
        expected = gguf.dequantize(gguf.quantize(value, kind), kind)
        np.testing.assert_array_equal(dequantize(packed), expected)
        stored = checkpoint.read_stored(f"{RECURRENT}.{name}.weight")
        assert isinstance(stored, Stored)
        assert (stored.type, stored.shape) == (kind.name, value.shape)
        repacked = stored.repacked(32)
        assert isinstance(repacked, Packed)
        np.testing.assert_array_equal(dequantize(repacked), expected)
        assert np.array_equal(stored.rows(0, len(value)).reshape(-1), gguf.quantize(value, kind).reshape(-1))


def random_blocks(kind: Type, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, values) of blocks of 256, which the gguf package reads and does not write."""
    rng, nbytes = np.random.default_rng(9), gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (rows * columns // 256, nbytes), np.uint8)
    at = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}[kind]
    for start in at:
        blocks[:, start : start + 2] = rng.uniform(0.01, 0.02, (len(blocks), 1)).astype("<f2").view(np.uint8)
    raw = blocks.reshape(rows, -1)
    return raw, gguf.dequantize(raw, kind)


@pytest.mark.parametrize(("kind", "group"), [(Type.Q4_K, 32), (Type.Q5_K, 32), (Type.Q6_K, 16)])
def test_columns_of_heads_that_share_a_block(kind: Type, group: int, tmp_path: Path) -> None:
    """Eight heads of 32 are one block of 256: their integers are sorted once they have scales of their own."""
    source = Hybrid(heads=8)
    raw, values = random_blocks(kind, WIDTH, source.size)
    source.stored["blk.0.ssm_out.weight"] = raw
    checkpoint = open_checkpoint(source.write(tmp_path / "m.gguf", {"blk.0.ssm_out.weight": kind}))
    name = f"{RECURRENT}.out_proj.weight"
    grouped = values.reshape(WIDTH, 4, 2, KEY).swapaxes(1, 2).reshape(WIDTH, -1)
    stored = checkpoint.read_stored(name)
    assert isinstance(stored, Stored)
    assert stored.type not in Type.__members__  # no backend takes its bytes for a type's that it knows
    packed = stored.repacked(group)
    assert isinstance(packed, Packed)
    assert packed.group_size == group
    np.testing.assert_array_equal(dequantize(packed), grouped)
    value = checkpoint.read(name)
    assert isinstance(value, np.ndarray if group < 32 else Packed)
    np.testing.assert_array_equal(dequantize(value) if isinstance(value, Packed) else value, grouped)


def test_heads_that_are_no_whole_groups_become_dense(tmp_path: Path) -> None:
    """Two heads of 16 share a scale, and belong apart."""
    source = Hybrid(value=16)
    checkpoint = open_checkpoint(source.write(tmp_path / "m.gguf", {"blk.0.ssm_out.weight": Type.Q8_0}))
    name = f"{RECURRENT}.out_proj.weight"
    stored = gguf.quantize(source.stored["blk.0.ssm_out.weight"], Type.Q8_0)
    expected = gguf.dequantize(stored, Type.Q8_0).reshape(WIDTH, 3, 2, 16).swapaxes(1, 2).reshape(WIDTH, -1)
    np.testing.assert_array_equal(checkpoint.read(name), expected)
    read = checkpoint.read_stored(name)
    assert isinstance(read, Stored)
    np.testing.assert_array_equal(read.repacked(32), expected)


@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH)])
def test_the_gate_of_a_shared_expert_is_a_row(shape: tuple[int, ...], tmp_path: Path) -> None:
    source = Next()
    value = np.arange(WIDTH, dtype=np.float32).reshape(shape)
    source.stored["blk.0.ffn_gate_inp_shexp.weight"] = value
    checkpoint = open_checkpoint(source.write(tmp_path / "m.gguf"))
    name = "model.layers.0.mlp.shared_expert_gate.weight"
    assert checkpoint.shape(name) == (1, WIDTH)
    np.testing.assert_array_equal(checkpoint.read(name), value.reshape(1, WIDTH))


def test_blocks_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    source = Hybrid()
    source.stored["blk.2.nextn.eh_proj.weight"] = np.ones((WIDTH, 2 * WIDTH), np.float32)
    source.stored["blk.2.attn_q.weight"] = np.ones((2 * WIDTH, WIDTH), np.float32)
    checkpoint = open_checkpoint(source.write(tmp_path / "m.gguf", more={"block_count": 3, "nextn_predict_layers": 1}))
    assert checkpoint.config["num_hidden_layers"] == 2
    assert not [name for name in checkpoint.names() if "layers.2." in name]


@pytest.mark.parametrize(
    ("change", "keys", "what"),
    [
        ({"blk.0.attn_gate.weight": (160, WIDTH)}, {}, "attn_gate.weight has 160 rows, its heads have 192"),
        ({"blk.0.attn_qkv.weight": (300, WIDTH)}, {}, "attn_qkv.weight has 300 rows, its heads have 320"),
        ({"blk.0.ssm_out.weight": (WIDTH, 160)}, {}, "ssm_out.weight has 160 columns, its heads have 192"),
        ({"blk.0.ssm_a": (6,)}, {}, "ssm_a: what decays by it would grow"),
        ({}, {"ssm.group_count": 4}, "6 value heads, 192 wide together, do not go with 4 key heads"),
        ({}, {"ssm.time_step_rank": 0}, "0 value heads"),
        ({}, {"ssm.inner_size": 190}, "190 wide"),
        ({}, {"nextn_predict_layers": 2}, "nextn_predict_layers says 2 of 2 layers"),
    ],
)
def test_what_is_damaged(change: dict[str, tuple[int, ...]], keys: dict[str, int], what: str, tmp_path: Path) -> None:
    source = Hybrid()
    source.stored |= {name: np.ones(shape, np.float32) for name, shape in change.items()}
    path = source.write(tmp_path / "m.gguf", more=keys)
    with pytest.raises(CheckpointError, match=rf"m\.gguf.*{what}"):
        read_all(path)


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for name in checkpoint.names():
        checkpoint.read(name)


def test_rows_by_key_heads_that_are_too_few(tmp_path: Path) -> None:
    source = Next()
    source.stored["blk.0.ssm_ba.weight"] = np.ones((8, WIDTH), np.float32)
    checkpoint = open_checkpoint(source.write(tmp_path / "m.gguf"))
    with pytest.raises(CheckpointError, match=r"ssm_ba\.weight has 8 rows, its heads have 12"):
        checkpoint.read(f"{RECURRENT}.in_proj_a.weight")


@pytest.mark.parametrize(
    "name", ["blk.0.ssm_a.weight", "blk.0.ssm_dt.weight", "blk.0.ssm_d", "blk.0.ffn_gate_exps.weight"]
)
def test_a_tensor_without_a_place(name: str, tmp_path: Path) -> None:
    source = Hybrid()
    source.stored[name] = np.ones(VALUES, np.float32)
    with pytest.raises(UnsupportedModel, match=f"tensor '{name}' has no place"):
        open_checkpoint(source.write(tmp_path / "m.gguf"))
