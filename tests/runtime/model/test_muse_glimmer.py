"""Muse Glimmer's configs: which layers slide and rotate, norms, scales, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.errors import CheckpointError, PartitaError, UnsupportedModel
from partita.model.config import GateConfig
from partita.model.families.parse import parse

from .test_families import JUNK, LLAMA

MUSE: dict[str, Any] = {
    **{key: value for key, value in LLAMA.items() if key not in ("rope_theta", "hidden_act")},
    "model_type": "muse_glimmer_text",
    "num_hidden_layers": 8,
    "head_dim": 16,
    "hidden_activation": "silu",
    "sliding_window": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "qk_scale_factor": 3.87,
    "output_multiplier": 0.25,
    "post_norm_eps": 1e-8,
    "final_logit_softcapping": 20.0,
}
SLIDING, FULL = "sliding_attention", "full_attention"


def turns(config: dict[str, Any]) -> list[bool]:
    return [layer.rope is not None for layer in parse(config).layers]


def test_three_layers_slide_and_rotate_to_one_that_does_neither() -> None:
    config = parse(MUSE)
    assert [layer.window for layer in config.layers] == [128, 128, 128, None] * 2
    assert turns(MUSE) == [True, True, True, False] * 2
    shorter = {**MUSE, "num_hidden_layers": 5}
    assert [layer.window for layer in parse(shorter).layers] == [None, 128, 128, 128, None]
    assert turns(shorter) == [False, True, True, True, False]


def test_layers_may_be_named() -> None:
    said = {**MUSE, "num_hidden_layers": 3, "layer_types": [FULL, SLIDING, SLIDING]}
    assert [layer.window for layer in parse(said).layers] == [None, 128, 128]
    assert turns({**said, "layer_rope_theta": [500_000, 0, 500_000.0]}) == [True, False, True]


def test_its_norms_and_scales() -> None:
    config = parse(MUSE)
    assert config.attention_scale == 3.87 / 4
    assert (config.qk_norm, config.attention_gate) == ("unit", GateConfig("sigmoid", "element", own=True))
    assert (config.norm_adds_one, config.last_norm_plain, config.embedding_norm) == (True, True, True)
    assert (config.norm_eps, config.post_norm_eps) == (1e-5, 1e-8)
    assert (config.logit_scale, config.logit_softcap) == (0.25, 20.0)


def test_a_whole_has_its_text_in_a_table_or_beside_its_name() -> None:
    whole = {"model_type": "muse_glimmer", "text_config": MUSE, "vision_config": {"hidden_size": 8}}
    assert parse(whole) == parse(MUSE)
    assert parse({**MUSE, "model_type": "muse_glimmer"}) == parse(MUSE)
    assert parse({**whole, "tie_word_embeddings": True}).tie_embeddings


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"qk_scale_factor": None}, CheckpointError, "qk_scale_factor must be a number > 0, got None"),
        ({"output_multiplier": 0}, CheckpointError, "output_multiplier must be a number > 0, got 0"),
        ({"post_norm_eps": "x"}, CheckpointError, "post_norm_eps must be a number > 0"),
        ({"final_logit_softcapping": None}, CheckpointError, "final_logit_softcapping"),
        ({"head_dim": None}, CheckpointError, "head_dim"),
        ({"sliding_window": None}, CheckpointError, "sliding_window"),
        ({"hidden_activation": "relu"}, UnsupportedModel, "hidden_activation 'relu'"),
        ({"layer_rope_theta": [0.0]}, CheckpointError, "layer_rope_theta must be a list of 8 numbers"),
        ({"layer_rope_theta": [0] * 7 + [10_000.0]}, UnsupportedModel, "layer_rope_theta 10000.0 is not supported"),
        ({"layer_rope_theta": [0] * 7 + [True]}, UnsupportedModel, "layer_rope_theta True is not supported"),
        ({"layer_rope_theta": [[]] * 8}, UnsupportedModel, r"layer_rope_theta \[\] is not supported"),
        ({"layer_types": [FULL] * 3}, CheckpointError, "layer_types names 3 layers"),
        ({"rope_parameters": None}, CheckpointError, "rope_theta is missing"),
        ({"query_pre_attn_scalar": 8}, UnsupportedModel, "query_pre_attn_scalar"),
    ],
)
def test_what_is_refused(change: dict[str, Any], error: type[PartitaError], named: str) -> None:
    with pytest.raises(error, match=named) as raised:
        parse({**MUSE, **change})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["qk_scale_factor", "output_multiplier", "post_norm_eps", "gating"])
def test_other_families_refuse_what_is_its_own(key: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{key} 2.0 is not supported for llama"):
        parse({**LLAMA, key: 2.0})


@settings(max_examples=100)
@given(data=st.data())
def test_any_config_is_parsed_or_refused(data: st.DataObject) -> None:
    keys = [*MUSE, "layer_types", "layer_rope_theta", "attention_bias"]
    try:
        parse({**MUSE, **data.draw(st.dictionaries(st.sampled_from(keys), JUNK, min_size=1, max_size=3))})
    except PartitaError:
        return
