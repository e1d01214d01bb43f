"""GGUF in: Gemma 4's layers, whose shapes differ, as the keys of a file say them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from partita.checkpoint.gguf.names import config_from, with_rope_tensors
from partita.errors import CheckpointError, PartitaError, UnsupportedModel
from partita.model.families.parse import parse

TYPES = ["sliding_attention", "full_attention"] * 2
KEYS: dict[str, Any] = {
    "embedding_length": 64,
    "feed_forward_length": [96, 96, 192, 192],
    "block_count": 4,
    "attention.head_count": 4,
    "attention.head_count_kv": [2, 1, 2, 1],
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.sliding_window": 40,
    "attention.sliding_window_pattern": [True, False] * 2,
    "attention.shared_kv_layers": 2,
    "context_length": 512,
    "embedding_length_per_layer_input": 16,
    "final_logit_softcapping": 30.0,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4,
    "rope.dimension_count": 64,
    "rope.dimension_count_swa": 32,
}
SHAPES = {
    "token_embd.weight": (50, 64),
    "per_layer_token_embd.weight": (50, 64),
    "rope_freqs.weight": (32,),
    **{f"blk.{i}.attn_q.weight": (256, 64) for i in range(4)},
    "blk.0.attn_v.weight": (64, 64),
}
FACTORS = np.array([1.0] * 8 + [1e30] * 24, np.float32)


def config(
    keys: dict[str, Any] | None = None, shapes: dict[str, Any] | None = None, factors: np.ndarray = FACTORS
) -> dict[str, Any]:
    """What is read of a file with other keys and tensors; None stands for one that is not there."""
    metadata = {f"gemma4.{key}": value for key, value in {**KEYS, **(keys or {})}.items() if value is not None}
    tensors = {name: shape for name, shape in {**SHAPES, **(shapes or {})}.items() if shape is not None}
    found = config_from({"general.architecture": "gemma4", **metadata}, tensors)
    return with_rope_tensors(found, {"rope_freqs.weight": factors}.__getitem__)


def test_shapes_of_layers() -> None:
    read = parse(config())
    assert [layer.window for layer in read.layers] == [40, None, 40, None]
    assert [read.head_dim_of(i) for i in range(4)] == [32, 64, 32, 64]
    assert [read.kv_heads_of(i) for i in range(4)] == [2, 1, 2, 1]
    assert [read.intermediate_size_of(i) for i in range(4)] == [96, 96, 192, 192]
    assert [layer.shares for layer in read.layers] == [None, None, 0, 1]
    assert [layer.keys_are_values for layer in read.layers] == [False, True, False, True]
    assert read.per_layer is not None
    assert (read.per_layer.size, read.per_layer.vocab_size) == (16, 50)
    whole, local = read.layers[1].rope, read.layers[0].rope
    assert whole is not None
    assert local is not None
    assert (local.theta, local.dims, local.scaling) == (1e4, 32, "default")
    assert (whole.theta, whole.factors) == (1e6, (1.0,) * 8 + (np.inf,) * 24)


def test_what_a_file_says_once_holds_for_every_layer() -> None:
    shapes = {"blk.1.attn_v.weight": (128, 64), "rope_freqs.weight": None, "per_layer_token_embd.weight": None}
    keys = {
        "feed_forward_length": 96,
        "attention.head_count_kv": 2,
        "attention.shared_kv_layers": None,
        "embedding_length_per_layer_input": 0,
    }
    read = parse(config(keys, shapes | {"blk.3.attn_v.weight": (128, 64)}))
    assert {read.kv_heads_of(i) for i in range(4)} == {2}
    assert {read.intermediate_size_of(i) for i in range(4)} == {96}
    assert not any(layer.keys_are_values or layer.shares is not None for layer in read.layers)
    assert read.per_layer is None
    whole = read.layers[1].rope
    assert whole is not None
    assert (whole.scaling, whole.dims) == ("default", 64)


def test_a_first_part_of_each_head_may_be_divided() -> None:
    whole = parse(config(factors=np.array([4.0] * 16 + [1e30] * 16, np.float32))).layers[1].rope
    assert whole is not None
    assert whole.factors == (4.0,) * 16 + (np.inf,) * 16


@pytest.mark.parametrize(
    ("keys", "shapes", "error", "what"),
    [
        ({"attention.head_count_kv": [2, 1, 2]}, {}, CheckpointError, "head_count_kv has 3 items for 4 layers"),
        ({"attention.head_count_kv": [2, 1, 1, 1]}, {}, UnsupportedModel, "differs between sliding layers"),
        ({"attention.head_count_kv": [2, -1, 2, 1]}, {}, CheckpointError, "head_count_kv is -1"),
        ({"attention.head_count": [4, 4, 4, 2]}, {}, UnsupportedModel, "head_count differs between layers"),
        ({"attention.key_length_swa": None}, {}, CheckpointError, "lacks gemma4.attention.key_length_swa"),
        ({"attention.value_length_swa": 16}, {}, UnsupportedModel, "heads of two widths"),
        ({"rope.dimension_count_swa": 16}, {}, UnsupportedModel, "turned in part"),
        ({"rope.dimension_count": 32}, {}, UnsupportedModel, "turned in part"),
        ({"attention.shared_kv_layers": 4}, {}, CheckpointError, "shared_kv_layers says 4 of 4 layers"),
        (
            {"attention.shared_kv_layers": 3, "feed_forward_length": 96},
            {},
            CheckpointError,
            "leaves no full_attention layer to share",
        ),
        ({"feed_forward_length": [96, 96, 192, 96]}, {}, UnsupportedModel, "feed_forward_length: these widths"),
        ({"feed_forward_length": [96, 48, 192, 192]}, {}, UnsupportedModel, "feed_forward_length: these widths"),
        ({}, {"per_layer_token_embd.weight": None}, CheckpointError, "lacks the tensor per_layer_token_embd"),
        (
            {"attention.shared_kv_layers": 0, "feed_forward_length": 96},
            {"blk.1.attn_v.weight": (128, 64)},
            UnsupportedModel,
            "global layers with values beside some without",
        ),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
            {"rope_freqs.weight": None},
            UnsupportedModel,
            "rope scaling 'linear' is not implemented for this architecture",
        ),
    ],
)
def test_keys_that_say_no_such_model(
    keys: dict[str, Any], shapes: dict[str, Any], error: type[PartitaError], what: str
) -> None:
    with pytest.raises(error, match=what):
        parse(config(keys, shapes))


@pytest.mark.parametrize(
    ("factors", "error", "what"),
    [
        ([1.0] * 8 + [2.0] * 24, UnsupportedModel, "other than of a first part"),
        ([1e30] * 32, UnsupportedModel, "other than of a first part"),
        ([1.0] * 4 + [1e30] * 4 + [1.0] * 24, UnsupportedModel, "other than of a first part"),
        ([1.0] * 8 + [1e30] * 8, CheckpointError, "16 divisors for heads of 64 dims"),
        ([1.0] * 8 + [0.0] * 24, CheckpointError, "not a short list of positive divisors"),
    ],
)
def test_divisors_that_are_not_of_a_part(factors: list[float], error: type[PartitaError], what: str) -> None:
    with pytest.raises(error, match=rf"rope_freqs\.weight.*{what}"):
        config(factors=np.array(factors, np.float32))
