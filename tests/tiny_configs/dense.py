"""Families of one feed-forward layer a block and attention in all of them."""

from __future__ import annotations

from typing import Any

from .common import DEFAULT_ROPE, DIVIDED, LLAMA3, SAID, SLIDING_AND_FULL, WINDOW, YARN


def _longrope(dims: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0 + 0.02 * i for i in range(dims // 2)],
        "long_factor": [1.0 + 0.5 * i for i in range(dims // 2)],
    }


def _phi(rope: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Phi-3's heads of 96."""
    return {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2, "rope_parameters": rope, **more}


DENSE: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SAID, "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "llama-biased": {
        "model_type": "llama",
        **SAID,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama-yarn": {"model_type": "llama", **SAID, "rope_parameters": YARN},
    "mistral": {"model_type": "mistral", **SAID, "rope_parameters": DEFAULT_ROPE, "sliding_window": WINDOW},
    "mistral-full": {"model_type": "mistral", **SAID, "rope_parameters": DEFAULT_ROPE, "sliding_window": None},
    "smollm3": {
        "model_type": "smollm3",
        **DIVIDED,
        "rope_parameters": DEFAULT_ROPE,
        "no_rope_layer_interval": 2,
        "tie_word_embeddings": True,
    },
    "qwen2": {"model_type": "qwen2", **DIVIDED, "rope_parameters": DEFAULT_ROPE, "tie_word_embeddings": True},
    "qwen2-sliding": {
        "model_type": "qwen2",
        **DIVIDED,
        "rope_parameters": DEFAULT_ROPE,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 2,
    },
    "qwen3": {"model_type": "qwen3", **SAID, "rope_parameters": DEFAULT_ROPE, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        **SAID,
        "rope_parameters": DEFAULT_ROPE,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **SAID,
        **SLIDING_AND_FULL,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 8.0},
            "sliding_attention": DEFAULT_ROPE,
        },
        "query_pre_attn_scalar": 24,
        "tie_word_embeddings": True,
    },
    "phi3": {"model_type": "phi3", **_phi(DEFAULT_ROPE, sliding_window=WINDOW)},
    # transformers takes the factors by the length of the call: 96 tokens are longer than the original 64, so one call
    # of 96 uses the long ones at every position, and calls of up to 64 tokens the short ones.
    "phi3-longrope": {"model_type": "phi3", **_phi(_longrope(96), original_max_position_embeddings=64)},
    "phi4-mini": {
        "model_type": "phi3",
        **_phi(
            {**_longrope(72), "partial_rotary_factor": 0.75},
            original_max_position_embeddings=64,
            tie_word_embeddings=True,
        ),
    },
    "olmo2": {"model_type": "olmo2", **DIVIDED, "rope_parameters": DEFAULT_ROPE},
    "olmo3": {
        "model_type": "olmo3",
        **DIVIDED,
        **SLIDING_AND_FULL,
        "rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT_ROPE},
    },
    "muse_glimmer": {
        "model_type": "muse_glimmer_text",
        **SAID,
        "num_hidden_layers": 5,  # the first and the last do not slide
        "sliding_window": WINDOW,
        "rope_parameters": DEFAULT_ROPE,
        "qk_scale_factor": 3.0,
        "output_multiplier": 0.6,
        "post_norm_eps": 1e-3,
        "final_logit_softcapping": 5.0,
    },
    "muse_glimmer-odd": {  # layers that do not rotate are not those that see everything; three heads to each key's
        "model_type": "muse_glimmer_text",
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "intermediate_size": 80,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        "layer_rope_theta": [10_000.0, 0, 10_000.0, 0],
        "rope_parameters": {**LLAMA3, "factor": 4.0},
        "attention_bias": True,
        "qk_scale_factor": 2.0,
        "output_multiplier": 1.5,
        "final_logit_softcapping": 20.0,
        "tie_word_embeddings": True,
    },
    "granite": {
        "model_type": "granite",
        **DIVIDED,
        "rope_parameters": DEFAULT_ROPE,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "embedding_multiplier": 6.0,
        "logits_scaling": 3.0,
        "tie_word_embeddings": True,
    },
    "granite_swa": {
        "model_type": "granite_swa",
        **DIVIDED,
        **SLIDING_AND_FULL,
        "rope_parameters": DEFAULT_ROPE,
        "layer_rope_theta": [10_000.0, 0, 50_000.0, 20_000.0],
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "embedding_multiplier": 6.0,
        "logits_scaling": 3.0,
        "tie_word_embeddings": True,
    },
    "exaone4": {"model_type": "exaone4", **DIVIDED, **SLIDING_AND_FULL, "rope_parameters": DEFAULT_ROPE},
    "exaone4-full": {
        "model_type": "exaone4",
        **DIVIDED,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": LLAMA3,
    },
    "seed_oss": {
        "model_type": "seed_oss",
        **SAID,
        "rope_parameters": DEFAULT_ROPE,
        "attention_bias": True,
        "attention_out_bias": False,
    },
    "glm4": {
        "model_type": "glm4",
        **SAID,
        "rope_parameters": {**DEFAULT_ROPE, "partial_rotary_factor": 0.5},
        "attention_bias": True,
    },
    "ernie4_5": {"model_type": "ernie4_5", **SAID, "rope_parameters": DEFAULT_ROPE, "tie_word_embeddings": True},
    "ernie4_5-biased": {"model_type": "ernie4_5", **SAID, "rope_parameters": DEFAULT_ROPE, "use_bias": True},
    "hunyuan": {
        "model_type": "hunyuan_v1_dense",
        **SAID,
        "rope_parameters": {**DEFAULT_ROPE, "rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0},
        "tie_word_embeddings": True,
    },
    "ministral3": {
        "model_type": "ministral3",
        **SAID,
        "rope_parameters": {
            **YARN,
            "type": "yarn",
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.4,
        },
        "sliding_window": None,
    },
    "cohere2": {
        "model_type": "cohere2",
        **DIVIDED,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "rope_parameters": DEFAULT_ROPE,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.4,
        "tie_word_embeddings": True,
    },
}
