"""The shapes of Gemma 4's layers, as published and as transformers saves them."""

from __future__ import annotations

from typing import Any

import pytest

from partita.model.families.parse import parse

GEMMA4: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
}


def shapes(**said: Any) -> list[tuple[int, int]]:
    """head_dim and kv_heads of each layer."""
    config = parse({**GEMMA4, **said})
    return [(layer.head_dim or 0, layer.kv_heads or 0) for layer in config.layers]


@pytest.mark.parametrize(
    ("said", "full"),
    [
        ({}, (512, 3)),
        ({"global_head_dim": 64}, (64, 3)),
        ({"global_head_dim": 64, "attention_k_eq_v": True, "num_global_key_value_heads": 1}, (64, 1)),
        ({"global_head_dim": 64, "num_global_key_value_heads": 1}, (64, 3)),  # of models whose keys are their values
        ({"per_layer_config": {"1": {"head_dim": 64}}}, (64, 3)),
        ({"per_layer_config": {"full_attention": {"head_dim": 64, "num_key_value_heads": 1}}}, (64, 1)),
        ({"per_layer_config": {}}, (32, 3)),  # what transformers saves where all layers are alike
    ],
)
def test_full_layers_have_a_shape_of_their_own(said: dict[str, Any], full: tuple[int, int]) -> None:
    assert shapes(**said) == [(32, 3), full]
