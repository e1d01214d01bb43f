"""Families in which some blocks keep a state: the gated delta rule, short convolutions."""

from __future__ import annotations

from typing import Any

from .common import DEFAULT_ROPE, DIVIDED, SAID, WINDOW

_DELTA = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_QUARTER = {"rope_parameters": {**DEFAULT_ROPE, "partial_rotary_factor": 0.25}}
_SHARED = {
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 40,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
_CONVOLVED = {
    "layer_types": ["conv", "full_attention"] * 2,
    "rope_parameters": DEFAULT_ROPE,
    "norm_eps": 1e-5,
    "conv_L_cache": 3,
    "block_auto_adjust_ff_dim": False,
}
_CONVOLVED_3 = {
    "num_hidden_layers": 5,
    "layer_types": ["conv", "sliding_attention", "full_attention", "conv", "sliding_attention"],
    "sliding_window": WINDOW,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.5},
        "sliding_attention": DEFAULT_ROPE,
    },
    "norm_eps": 1e-5,
    "conv_L_cache": 7,
}
_CONVOLVED_EXPERTS = {
    **{key: value for key, value in _CONVOLVED.items() if key != "block_auto_adjust_ff_dim"},
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_5": {
        "model_type": "qwen3_5_text",
        **SAID,
        **_DELTA,
        "rope_parameters": {**_QUARTER["rope_parameters"], "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        "tie_word_embeddings": True,
    },
    "qwen3_5-alike": {  # as many key heads as value heads, of one size; every other layer attends
        "model_type": "qwen3_5_text",
        **SAID,
        **_DELTA,
        **_QUARTER,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 4,
        "linear_conv_kernel_dim": 3,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "qwen3_5-recurrent": {  # no layer attends: a cache without rings
        "model_type": "qwen3_5_text",
        **SAID,
        **_DELTA,
        **_QUARTER,
        "layer_types": ["linear_attention"] * 4,
    },
    "qwen3_5_moe": {"model_type": "qwen3_5_moe_text", **SAID, **_DELTA, **_QUARTER, **_SHARED},
    "qwen3_5_moe-one": {
        "model_type": "qwen3_5_moe_text",
        **SAID,
        **_DELTA,
        **_QUARTER,
        **_SHARED,
        "linear_num_key_heads": 1,
        "num_experts_per_tok": 1,
    },
    "qwen3_next": {
        "model_type": "qwen3_next",
        **SAID,
        **_DELTA,
        **_QUARTER,
        **_SHARED,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
    "qwen3_next-plain": {
        "model_type": "qwen3_next",
        **SAID,
        **_DELTA,
        **_QUARTER,
        **_SHARED,
        "linear_num_key_heads": 4,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
    },
    "olmo_hybrid": {
        "model_type": "olmo_hybrid",
        **DIVIDED,
        **_DELTA,
        "linear_num_key_heads": 4,
        "rope_parameters": DEFAULT_ROPE,
    },
    "olmo_hybrid-still": {  # without positions, and without values that turn over
        "model_type": "olmo_hybrid",
        **DIVIDED,
        **_DELTA,
        "linear_allow_neg_eigval": False,
        "rope_parameters": None,
    },
    "lfm2": {"model_type": "lfm2", **DIVIDED, **_CONVOLVED, "tie_word_embeddings": True},
    "lfm2-biased": {  # a longer kernel, biases, a width that follows from another, and a head of its own
        "model_type": "lfm2",
        **DIVIDED,
        **_CONVOLVED,
        "conv_bias": True,
        "conv_L_cache": 4,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.5,
        "block_multiple_of": 16,
        "tie_word_embeddings": False,
    },
    "lfm2_moe": {
        "model_type": "lfm2_moe",
        **DIVIDED,
        **_CONVOLVED_EXPERTS,
        "num_dense_layers": 1,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "tie_word_embeddings": True,
    },
    "lfm3": {
        "model_type": "lfm3",
        **SAID,
        **_CONVOLVED_3,
        "tie_word_embeddings": True,
    },
    "lfm3-biased": {  # without the gate, with biases and a head of its own
        "model_type": "lfm3",
        **SAID,
        **_CONVOLVED_3,
        "conv_L_cache": 4,
        "conv_bias": True,
        "attention_bias": True,
        "use_attention_gate": False,
        "tie_word_embeddings": False,
    },
    "lfm2_moe-plain": {  # experts chosen by their scores and weighed by them, in all layers
        "model_type": "lfm2_moe",
        **DIVIDED,
        **_CONVOLVED_EXPERTS,
        "conv_bias": True,
        "num_dense_layers": 0,
        "use_expert_bias": False,
        "norm_topk_prob": False,
        "tie_word_embeddings": True,
    },
}
