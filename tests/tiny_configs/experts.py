"""Families with experts and attention in every block."""

from __future__ import annotations

from typing import Any

from .common import DEFAULT_ROPE, SAID, SLIDING_AND_FULL, WINDOW, YARN

_LAGUNA: dict[str, Any] = {
    "model_type": "laguna",
    **SAID,
    **SLIDING_AND_FULL,
    "rope_parameters": {
        "full_attention": {**YARN, "partial_rotary_factor": 0.5},
        "sliding_attention": {**DEFAULT_ROPE, "partial_rotary_factor": 1.0},
    },
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 40,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **SAID,
        "rope_parameters": DEFAULT_ROPE,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [2],
    },
    "qwen3_moe-period": {
        "model_type": "qwen3_moe",
        **SAID,
        "rope_parameters": DEFAULT_ROPE,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
    },
    "mellum": {
        "model_type": "mellum",
        **SAID,
        **SLIDING_AND_FULL,
        "rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT_ROPE},
        "moe_intermediate_size": 32,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "laguna": {
        **_LAGUNA,
        "num_attention_heads_per_layer": [4, 6, 2, 6],
        "gating": True,
        "moe_routed_scaling_factor": 2.5,
    },
    "laguna-elements": {  # a gate for each number, no layer dense by default, capped scores of experts, heads of 24
        **_LAGUNA,
        "hidden_size": 96,
        "head_dim": 24,
        "num_attention_heads_per_layer": [6, 4, 4, 2],
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        "mlp_layer_types": ["sparse", "dense", "sparse", "sparse"],
        "gating": "per-element",
        "moe_router_logit_softcapping": 1.5,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        **SAID,
        **SLIDING_AND_FULL,
        "intermediate_size": 64,
        "rope_parameters": {**YARN, "truncate": False},
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    "gpt_oss-truncated": {  # what readers make of it that know no truncate
        "model_type": "gpt_oss",
        **SAID,
        **SLIDING_AND_FULL,
        "intermediate_size": 64,
        "rope_parameters": {**YARN, "truncate": True},
        "num_local_experts": 4,
        "num_experts_per_tok": 4,
    },
}
