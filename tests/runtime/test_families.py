"""Configs of Hugging Face, old and new spellings, and the values that must be refused by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.config import RopeConfig
from partita.errors import CheckpointError, PartitaError, UnsupportedModel
from partita.families import parse
from partita.rope import inverse_frequencies

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
}
GEMMA: dict[str, Any] = {
    **{k: v for k, v in LLAMA.items() if k != "hidden_act"},
    "model_type": "gemma3_text",
    "head_dim": 32,
    "num_hidden_layers": 7,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 128,
    "sliding_window_pattern": 6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}


def test_llama() -> None:
    config = parse(LLAMA)
    assert config.head_dim == 16
    assert config.attention_scale == 0.25
    assert config.layers[0].window is None
    assert config.layers[0].rope == RopeConfig(10_000.0, 16)
    assert not config.tie_embeddings


def test_gemma_slides_five_layers_of_six_with_their_own_base() -> None:
    config = parse(GEMMA)
    assert [layer.window for layer in config.layers] == [128] * 5 + [None, 128]
    assert [layer.rope.theta for layer in config.layers] == [1e4] * 5 + [1e6, 1e4]
    assert config.embedding_scale == math.sqrt(64)
    assert config.attention_scale == 1 / 16
    assert config.norm_adds_one
    assert config.tie_embeddings


def test_rope_is_read_from_either_place() -> None:
    new = {k: v for k, v in LLAMA.items() if k != "rope_theta"}
    assert parse({**new, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}).layers[0].rope.theta == 5e5
    types = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    old = {**GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    new = {k: v for k, v in GEMMA.items() if k not in ("rope_theta", "rope_local_base_freq")}
    assert parse({**new, "rope_parameters": types}).layers == parse(old).layers  # scaling touches global layers only
    assert parse(old).layers[5].rope.scaling == "linear"
    assert parse(old).layers[0].rope.scaling == "default"


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"model_type": "mamba"}, UnsupportedModel, "mamba"),
        ({"model_type": None}, UnsupportedModel, "None"),
        ({"rope_theta": None}, CheckpointError, "rope_theta"),
        ({"rope_theta": -1}, CheckpointError, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attn_factor": 2.0}}, UnsupportedModel, "attn_factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedModel, "dynamic"),
        ({"hidden_act": "relu2"}, UnsupportedModel, "relu2"),
        ({"num_key_value_heads": 3}, CheckpointError, "3 key-value heads"),
        ({"num_hidden_layers": 0}, CheckpointError, "num_hidden_layers"),
        ({"hidden_size": "64"}, CheckpointError, "hidden_size"),
        ({"vocab_size": 0}, CheckpointError, "vocab_size"),
        ({"num_attention_heads": 0}, CheckpointError, "num_attention_heads"),
        ({"max_position_embeddings": 0}, CheckpointError, "max_position_embeddings"),
        ({"rope_theta": float("inf")}, CheckpointError, "rope_theta"),
        ({"rope_scaling": "x"}, CheckpointError, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, CheckpointError, "factor"),
        ({"partial_rotary_factor": "a"}, CheckpointError, "partial_rotary_factor"),
        ({"logits_scaling": 8.0}, UnsupportedModel, "logits_scaling"),
        ({"sliding_window": 64}, UnsupportedModel, "sliding_window"),
        ({**GEMMA, "sliding_window_pattern": 0}, CheckpointError, "sliding_window_pattern"),
        ({**GEMMA, "layer_types": 7}, CheckpointError, "layer_types"),
        ({"rms_norm_eps": None}, CheckpointError, "rms_norm_eps"),
        ({**GEMMA, "layer_types": ["full_attention"] * 3}, CheckpointError, "layer_types names 3"),
        ({**GEMMA, "layer_types": ["chunked_attention"] * 7}, UnsupportedModel, "chunked_attention"),
        ({**GEMMA, "sliding_window_pattern": None}, CheckpointError, "layer_types"),
        ({**GEMMA, "rope_local_base_freq": None}, CheckpointError, "rope_theta"),
        ({**GEMMA, "use_bidirectional_attention": True}, UnsupportedModel, "use_bidirectional_attention"),
    ],
)
def test_what_changes_the_mathematics_is_refused_by_name(
    change: dict[str, Any], error: type[PartitaError], named: str
) -> None:
    with pytest.raises(error, match=named):
        parse({**LLAMA, **change})


JUNK = st.sampled_from(
    [None, True, -1, 0, 0.5, float("nan"), float("inf"), 2**70, "x", "", [], [1], {}, {"rope_type": 1}]
)


@settings(max_examples=300)
@given(base=st.sampled_from([LLAMA, GEMMA]), data=st.data())
def test_any_config_is_parsed_or_refused(base: dict[str, Any], data: st.DataObject) -> None:
    keys = [*base, "rope_scaling", "rope_parameters", "layer_types", "partial_rotary_factor", "head_dim"]
    changed = data.draw(st.dictionaries(st.sampled_from(keys), JUNK, min_size=1, max_size=3))
    try:
        parsed = parse({**base, **changed})
    except PartitaError:
        return
    assert np.isfinite(inverse_frequencies(parsed.layers[0].rope)).all()


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_scaled_frequencies_equal_transformers(scaling: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = {**LLAMA, "rope_theta": 5e5, "head_dim": 64}
    theirs = LlamaConfig(**{**config, "rope_parameters": {"rope_theta": 5e5, **scaling}})
    expected, _ = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, "cpu")
    ours = inverse_frequencies(parse({**config, "rope_scaling": scaling}).layers[0].rope)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5)
