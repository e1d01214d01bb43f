"""Laguna's configs: heads of each layer, gates, experts, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.errors import CheckpointError, PartitaError, UnsupportedModel
from partita.model.config import ExpertsConfig, GateConfig
from partita.model.families.parse import parse

from .test_families import JUNK, LLAMA

ROPE: dict[str, Any] = {
    "full_attention": {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
}
LAGUNA: dict[str, Any] = {
    **{key: value for key, value in LLAMA.items() if key != "rope_theta"},
    "model_type": "laguna",
    "num_hidden_layers": 4,
    "head_dim": 32,
    "sliding_window": 128,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "rope_parameters": ROPE,
    "num_attention_heads_per_layer": [4, 6, 4, 6],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "moe_routed_scaling_factor": 2.5,
}


def test_layers_have_heads_windows_and_rotations_of_their_own() -> None:
    config = parse(LAGUNA)
    assert [config.heads_of(i) for i in range(4)] == [4, 6, 4, 6]
    assert [layer.window for layer in config.layers] == [None, 128, None, 128]
    assert [(layer.rope.theta, layer.rope.dims) for layer in config.layers if layer.rope] == [(5e5, 16), (1e4, 32)] * 2
    assert [config.kv_heads_of(i) for i in range(4)] == [2] * 4
    assert [config.heads_of(i) for i in range(4)] == [4, 6, 4, 6]


def test_the_first_layer_is_dense_and_the_others_have_experts_and_one_that_is_shared() -> None:
    config = parse(LAGUNA)
    assert [layer.experts for layer in config.layers] == [False, True, True, True]
    expected = ExpertsConfig(8, 2, 32, normalize=True, score="sigmoid", choice_bias=True, scale=2.5, shared_size=48)
    assert config.experts == expected
    named = parse({**LAGUNA, "mlp_layer_types": ["sparse", "dense", "dense", "sparse"]})
    assert [layer.experts for layer in named.layers] == [True, False, False, True]
    capped = parse({**LAGUNA, "moe_router_logit_softcapping": 2.0}).experts
    assert capped is not None
    assert capped.softcap == 2.0
    assert parse({**LAGUNA, "mlp_layer_types": ["dense"] * 4}).experts is None


def test_what_is_left_out() -> None:
    left = {key: value for key, value in LAGUNA.items() if key not in ("layer_types", "num_attention_heads_per_layer")}
    config = parse({**left, "rope_parameters": {"full_attention": ROPE["full_attention"]}})
    assert [layer.window for layer in config.layers] == [None] * 4
    assert [config.heads_of(i) for i in range(4)] == [4] * 4
    assert config.attention_gate == GateConfig("softplus", "head", own=True)


@pytest.mark.parametrize(("said", "each"), [(True, "head"), ("per-head", "head"), ("per-element", "element")])
def test_gates(said: Any, each: Any) -> None:
    assert parse({**LAGUNA, "gating": said}).attention_gate == GateConfig("softplus", each, own=True)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"gating": False}, UnsupportedModel, "gating False is not supported; supported: true, 'per-head'"),
        ({"gating": "per-layer"}, UnsupportedModel, "gating 'per-layer'"),
        ({"gating": [1]}, UnsupportedModel, r"gating \[1\]"),
        ({"num_attention_heads_per_layer": [4, 6]}, CheckpointError, "per_layer must be a list of 4 integers"),
        ({"num_attention_heads_per_layer": 4}, CheckpointError, "per_layer must be a list of 4 integers, got 4"),
        ({"num_attention_heads_per_layer": [4, 6, 0, 6]}, CheckpointError, "per_layer must be an integer >= 1, got 0"),
        ({"num_attention_heads_per_layer": [4, 5, 4, 6]}, CheckpointError, "5 attention heads do not divide over 2"),
        ({"mlp_layer_types": ["dense"]}, CheckpointError, "mlp_layer_types must say .* for each of 4 layers"),
        ({"mlp_layer_types": ["dense", "moe"] * 2}, CheckpointError, "mlp_layer_types"),
        ({"moe_apply_router_weight_on_input": True}, UnsupportedModel, "moe_apply_router_weight_on_input"),
        ({"moe_router_score_func": "sqrtsoftplus"}, UnsupportedModel, "moe_router_score_func 'sqrtsoftplus'"),
        ({"moe_router_logit_softcapping": -1.0}, CheckpointError, "moe_router_logit_softcapping"),
        ({"moe_routed_scaling_factor": 0}, CheckpointError, "moe_routed_scaling_factor"),
        ({"num_experts_per_tok": 9}, CheckpointError, "num_experts_per_tok 9 is more than there are, 8"),
        ({"qkv_bias": True}, UnsupportedModel, "qkv_bias"),
        ({"head_dim": None}, CheckpointError, "head_dim"),
        ({"sliding_window": None}, CheckpointError, "sliding_window"),
        ({"rope_parameters": None}, CheckpointError, "rope_theta is missing"),
        ({"rope_parameters": {"full_attention": ROPE["full_attention"]}}, CheckpointError, "sliding_attention"),
        ({"layer_types": ["full_attention"] * 3}, CheckpointError, "layer_types names 3"),
    ],
)
def test_what_is_refused(change: dict[str, Any], error: type[PartitaError], named: str) -> None:
    with pytest.raises(error, match=named) as raised:
        parse({**LAGUNA, **change})
    assert "\n" not in str(raised.value)


@settings(max_examples=100)
@given(data=st.data())
def test_any_config_is_parsed_or_refused(data: st.DataObject) -> None:
    keys = [*LAGUNA, "gating", "mlp_layer_types", "moe_router_logit_softcapping", "moe_router_score_func"]
    try:
        parse({**LAGUNA, **data.draw(st.dictionaries(st.sampled_from(keys), JUNK, min_size=1, max_size=3))})
    except PartitaError:
        return
