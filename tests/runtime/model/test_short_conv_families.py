"""Configs of LFM2, 2.5 and 3, dense and with experts: both spellings, and what is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from partita.errors import CheckpointError, UnsupportedModel
from partita.model.config import ConvConfig, ExpertsConfig, GateConfig, RopeConfig
from partita.model.families.parse import parse
from partita.model.rope import inverse_frequencies

LFM2: dict[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "conv_L_cache": 3,
    "conv_bias": False,
    "full_attn_idxs": [1, 3],
    "block_ff_dim": 96,
    "block_auto_adjust_ff_dim": False,
}
LFM2_MOE: dict[str, Any] = {
    **{key: value for key, value in LFM2.items() if not key.startswith("block")},
    "model_type": "lfm2_moe",
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_dense_layers": 2,
    "norm_topk_prob": True,
    "use_expert_bias": True,
    "routed_scaling_factor": 1.0,
}
PROPORTIONAL: dict[str, Any] = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5}
LFM3: dict[str, Any] = {
    **{key: value for key, value in LFM2.items() if not key.startswith(("block", "full_attn", "rope"))},
    "model_type": "lfm3",
    "num_hidden_layers": 6,
    "intermediate_size": 96,
    "head_dim": 32,
    "sliding_window": 128,
    "conv_L_cache": 7,
    "rope_parameters": {
        "full_attention": PROPORTIONAL,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
    "use_attention_gate": True,
    "use_sandwich_norm": True,
}
TYPES = ["conv", "full_attention", "conv", "full_attention"]


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize("config", [LFM2, LFM2_MOE], ids=["lfm2", "lfm2_moe"])
def test_layers_are_said_by_number_or_by_name(config: dict[str, Any]) -> None:
    parsed = parse(config)
    assert [layer.mixer for layer in parsed.layers] == [ConvConfig(64, 3), None] * 2
    assert [layer.rope is None for layer in parsed.layers] == [True, False] * 2
    assert parse({**without(config, "full_attn_idxs"), "layer_types": TYPES}) == parsed
    assert parse({**config, "layer_types": TYPES, "full_attn_idxs": None}) == parsed


@pytest.mark.parametrize(
    ("said", "width"),
    [
        ({"block_ff_dim": 96}, 96),
        ({"block_ff_dim": None, "intermediate_size": 80}, 80),
        ({"block_ff_dim": 96, "block_auto_adjust_ff_dim": True}, 64),
        ({"block_ff_dim": 96, "block_auto_adjust_ff_dim": None}, 64),
        ({"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.1, "block_multiple_of": 16}, 80),
    ],
)
def test_a_width_may_follow_from_another(said: dict[str, Any], width: int) -> None:
    assert parse({**LFM2, **said}).intermediate_size == width


def test_experts_stand_behind_dense_layers() -> None:
    config = parse({**LFM2_MOE, "routed_scaling_factor": 2.5})
    assert [layer.experts for layer in config.layers] == [False, False, True, True]
    assert config.experts == ExpertsConfig(
        8, 2, 32, normalize=True, normalize_eps=1e-6, score="sigmoid", choice_bias=True, scale=2.5
    )
    assert config.intermediate_size == 96
    plain = parse({**LFM2_MOE, "use_expert_bias": False, "norm_topk_prob": False, "num_dense_layers": 0}).experts
    assert plain == ExpertsConfig(8, 2, 32, normalize_eps=1e-6, score="sigmoid")
    assert parse({**LFM2_MOE, "num_dense_layers": 4}).experts is None


def test_lfm3_slides_attends_and_convolves() -> None:
    config = parse(LFM3)
    kinds = ["conv", "conv", "full_attention", "conv", "sliding_attention", "conv"]
    assert parse({**LFM3, "layer_types": kinds}) == config
    assert [layer.mixer for layer in config.layers] == [ConvConfig(64, 7) if kind == "conv" else None for kind in kinds]
    assert [layer.window for layer in config.layers] == [None] * 4 + [128, None]
    assert config.layers[4].rope == RopeConfig(1e4, 32)
    assert config.attention_gate == GateConfig("sigmoid", "head", own=True)
    assert parse({**LFM3, "use_attention_gate": False}).attention_gate is None
    assert (config.head_dim, config.qk_norm, config.tie_embeddings) == (32, "head", True)


def test_proportional_rope_turns_a_part_by_the_frequencies_of_the_whole() -> None:
    rope = parse(LFM3).layers[2].rope
    assert rope is not None
    assert rope.dims == 32
    found = inverse_frequencies(rope)
    np.testing.assert_allclose(found[:8], 1e6 ** (-np.arange(0, 16, 2) / 32))
    assert not found[8:].any()
    types = ["conv", "full_attention"] * 3
    for part, turned in ((None, 16), (1.0, 16), (0.25, 4), (0.2, 3)):
        parameters = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": part, "factor": 2.0}
        said = {"full_attention": {key: value for key, value in parameters.items() if value is not None}}
        rope = parse({**LFM3, "layer_types": types, "rope_parameters": said}).layers[1].rope
        assert rope is not None
        assert rope.factors == (2.0,) * turned + (np.inf,) * (16 - turned)


@pytest.mark.parametrize("name", ["tie_embedding", "tie_word_embeddings"])
def test_the_head_is_the_embedding_unless_a_file_says_otherwise(name: str) -> None:
    assert parse(LFM2).tie_embeddings
    assert not parse({**LFM2, name: False}).tie_embeddings


@pytest.mark.parametrize(
    ("config", "wrong", "field"),
    [
        (LFM2, {"conv_L_cache": None}, "conv_L_cache"),
        (LFM2, {"conv_L_cache": 0}, "conv_L_cache"),
        (LFM2, {"conv_L_cache": "3"}, "conv_L_cache"),
        (LFM2, {"conv_bias": 1}, "conv_bias"),
        (LFM2, {"full_attn_idxs": None}, "full_attn_idxs"),
        (LFM2, {"full_attn_idxs": [1, 4]}, "full_attn_idxs"),
        (LFM2, {"full_attn_idxs": [1, True]}, "full_attn_idxs"),
        (LFM2, {"full_attn_idxs": 3}, "full_attn_idxs"),
        (LFM2, {"layer_types": TYPES[:3]}, "layer_types"),
        (LFM2, {"layer_types": "conv"}, "layer_types"),
        (LFM2, {"block_ff_dim": -1}, "block_ff_dim"),
        (LFM2, {"block_ff_dim": None}, "intermediate_size"),
        (LFM2, {"block_auto_adjust_ff_dim": 1}, "block_auto_adjust_ff_dim"),
        (LFM2, {"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.1}, "block_multiple_of"),
        (LFM2, {"rope_theta": None}, "rope_theta"),
        (LFM2_MOE, {"conv_L_cache": None}, "conv_L_cache"),
        (LFM2_MOE, {"num_dense_layers": None}, "num_dense_layers"),
        (LFM2_MOE, {"num_dense_layers": 5}, "num_dense_layers"),
        (LFM2_MOE, {"num_dense_layers": True}, "num_dense_layers"),
        (LFM2_MOE, {"num_experts": None}, "num_experts"),
        (LFM2_MOE, {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        (LFM2_MOE, {"moe_intermediate_size": None}, "moe_intermediate_size"),
        (LFM2_MOE, {"routed_scaling_factor": 0}, "routed_scaling_factor"),
        (LFM2_MOE, {"use_expert_bias": "yes"}, "use_expert_bias"),
        (LFM3, {"conv_L_cache": None}, "conv_L_cache"),
        (LFM3, {"head_dim": None}, "head_dim"),
        (LFM3, {"sliding_window": None}, "sliding_window"),
        (LFM3, {"rope_parameters": None}, "rope_theta"),
        (LFM3, {"rope_parameters": {"full_attention": LFM3["rope_parameters"]["full_attention"]}}, "sliding_attention"),
        (LFM3, {"layer_types": ["conv"] * 5}, "layer_types"),
        (LFM3, {"use_attention_gate": "yes"}, "use_attention_gate"),
    ],
)
def test_what_is_missing_or_malformed_is_named(config: dict[str, Any], wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(CheckpointError, match=field):
        parse({**config, **wrong})


@pytest.mark.parametrize(
    ("config", "other", "field"),
    [
        (LFM2, {"layer_types": ["conv", "sliding_attention"] * 2}, "sliding_attention"),
        (LFM2, {"num_experts": 8}, "num_experts"),
        (LFM2, {"num_dense_layers": 2}, "num_dense_layers"),
        (LFM2, {"sliding_window": 128}, "sliding_window"),
        (LFM2_MOE, {"block_ff_dim": 96}, "block_ff_dim"),
        (LFM2, {"use_attention_gate": True}, "use_attention_gate"),
        (LFM3, {"use_sandwich_norm": False}, "use_sandwich_norm"),
        (LFM3, {"num_experts": 8}, "num_experts"),
        (LFM3, {"layer_types": ["conv", "linear_attention"] * 3}, "linear_attention"),
        (LFM3, {"rope_parameters": {"full_attention": {**PROPORTIONAL, "alpha": 2.0}}}, "alpha"),
        (LFM2_MOE, {"shared_expert_intermediate_size": 32}, "shared_expert_intermediate_size"),
        ({**LFM2, "model_type": "llama", "intermediate_size": 96}, {}, "block_ff_dim"),
        ({**without(LFM2_MOE, "num_experts"), "model_type": "llama"}, {}, "conv_L_cache"),
    ],
)
def test_mathematics_of_others_is_refused(config: dict[str, Any], other: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedModel, match=field):
        parse({**config, "rms_norm_eps": 1e-5, "hidden_act": "silu", **other})
