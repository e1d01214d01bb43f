"""Families with experts and attention in every block."""

from __future__ import annotations

from typing import Any

from .common import DEFAULT_ROPE, SAID, SLIDING_AND_FULL, WINDOW, YARN

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
