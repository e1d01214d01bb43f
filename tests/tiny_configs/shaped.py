"""Families whose blocks differ in shape."""

from __future__ import annotations

from typing import Any

from .common import DEFAULT_ROPE, SAID, WINDOW

_GLOBAL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}
_GEMMA4 = {
    "model_type": "gemma4_text",
    **SAID,
    "sliding_window": WINDOW,
    "rope_parameters": {"full_attention": _GLOBAL_ROPE, "sliding_attention": DEFAULT_ROPE},
    "global_head_dim": 64,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
SHAPED: dict[str, dict[str, Any]] = {
    "gemma4": {
        **_GEMMA4,
        "num_hidden_layers": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 512,
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": True,
    },
    "gemma4-experts": {
        **_GEMMA4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 3,
        "moe_intermediate_size": 32,
    },
}
