"""Tiny random float32 models of every family, written as transformers writes them, and transformers' logits of them.

Everything that training would set is random here, norms and biases too, so that a part that is left out or applied
twice shows. Windows are shorter than the 96 tokens that tests feed. A name is a family, or one of its variants.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .conftest import write_tokenizer

TOKENS = 96
WINDOW = 40

# heads of 32 either way: four and two of them said by head_dim, or by a hidden size of 128 where a config has no such
# field. Key and value heads are two, so that an order of heads that is wrong shows.
_SAID = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
_DIVIDED = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
_COMMON = {
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "beta_fast": 16.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
_SLIDING_AND_FULL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}


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
    "llama": {"model_type": "llama", **_SAID, "rope_parameters": _LLAMA3, "tie_word_embeddings": True},
    "llama-biased": {
        "model_type": "llama",
        **_SAID,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama-yarn": {"model_type": "llama", **_SAID, "rope_parameters": _YARN},
    "mistral": {"model_type": "mistral", **_SAID, "rope_parameters": _DEFAULT_ROPE, "sliding_window": WINDOW},
    "mistral-full": {"model_type": "mistral", **_SAID, "rope_parameters": _DEFAULT_ROPE, "sliding_window": None},
    "smollm3": {
        "model_type": "smollm3",
        **_DIVIDED,
        "rope_parameters": _DEFAULT_ROPE,
        "no_rope_layer_interval": 2,
        "tie_word_embeddings": True,
    },
    "qwen2": {"model_type": "qwen2", **_DIVIDED, "rope_parameters": _DEFAULT_ROPE, "tie_word_embeddings": True},
    "qwen2-sliding": {
        "model_type": "qwen2",
        **_DIVIDED,
        "rope_parameters": _DEFAULT_ROPE,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 2,
    },
    "qwen3": {"model_type": "qwen3", **_SAID, "rope_parameters": _DEFAULT_ROPE, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        **_SAID,
        "rope_parameters": _DEFAULT_ROPE,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **_SAID,
        **_SLIDING_AND_FULL,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 8.0},
            "sliding_attention": _DEFAULT_ROPE,
        },
        "query_pre_attn_scalar": 24,
        "tie_word_embeddings": True,
    },
    "phi3": {"model_type": "phi3", **_phi(_DEFAULT_ROPE, sliding_window=WINDOW)},
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
    "olmo2": {"model_type": "olmo2", **_DIVIDED, "rope_parameters": _DEFAULT_ROPE},
    "olmo3": {
        "model_type": "olmo3",
        **_DIVIDED,
        **_SLIDING_AND_FULL,
        "rope_parameters": {"full_attention": _YARN, "sliding_attention": _DEFAULT_ROPE},
    },
    "granite": {
        "model_type": "granite",
        **_DIVIDED,
        "rope_parameters": _DEFAULT_ROPE,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "embedding_multiplier": 6.0,
        "logits_scaling": 3.0,
        "tie_word_embeddings": True,
    },
    "granite_swa": {
        "model_type": "granite_swa",
        **_DIVIDED,
        **_SLIDING_AND_FULL,
        "rope_parameters": _DEFAULT_ROPE,
        "layer_rope_theta": [10_000.0, 0, 50_000.0, 20_000.0],
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "embedding_multiplier": 6.0,
        "logits_scaling": 3.0,
        "tie_word_embeddings": True,
    },
    "exaone4": {"model_type": "exaone4", **_DIVIDED, **_SLIDING_AND_FULL, "rope_parameters": _DEFAULT_ROPE},
    "exaone4-full": {
        "model_type": "exaone4",
        **_DIVIDED,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": _LLAMA3,
    },
    "seed_oss": {
        "model_type": "seed_oss",
        **_SAID,
        "rope_parameters": _DEFAULT_ROPE,
        "attention_bias": True,
        "attention_out_bias": False,
    },
    "glm4": {
        "model_type": "glm4",
        **_SAID,
        "rope_parameters": {**_DEFAULT_ROPE, "partial_rotary_factor": 0.5},
        "attention_bias": True,
    },
    "ernie4_5": {"model_type": "ernie4_5", **_SAID, "rope_parameters": _DEFAULT_ROPE, "tie_word_embeddings": True},
    "ernie4_5-biased": {"model_type": "ernie4_5", **_SAID, "rope_parameters": _DEFAULT_ROPE, "use_bias": True},
    "hunyuan": {
        "model_type": "hunyuan_v1_dense",
        **_SAID,
        "rope_parameters": {**_DEFAULT_ROPE, "rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0},
        "tie_word_embeddings": True,
    },
    "ministral3": {
        "model_type": "ministral3",
        **_SAID,
        "rope_parameters": {
            **_YARN,
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
        **_DIVIDED,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "rope_parameters": _DEFAULT_ROPE,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.4,
        "tie_word_embeddings": True,
    },
}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **_SAID,
        "rope_parameters": _DEFAULT_ROPE,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [2],
    },
    "qwen3_moe-period": {
        "model_type": "qwen3_moe",
        **_SAID,
        "rope_parameters": _DEFAULT_ROPE,
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
        **_SAID,
        **_SLIDING_AND_FULL,
        "rope_parameters": {"full_attention": _YARN, "sliding_attention": _DEFAULT_ROPE},
        "moe_intermediate_size": 32,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        **_SAID,
        **_SLIDING_AND_FULL,
        "intermediate_size": 64,
        "rope_parameters": {**_YARN, "truncate": False},
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    "gpt_oss-truncated": {  # what readers make of it that know no truncate
        "model_type": "gpt_oss",
        **_SAID,
        **_SLIDING_AND_FULL,
        "intermediate_size": 64,
        "rope_parameters": {**_YARN, "truncate": True},
        "num_local_experts": 4,
        "num_experts_per_tok": 4,
    },
}
_DELTA = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_QUARTER = {"rope_parameters": {**_DEFAULT_ROPE, "partial_rotary_factor": 0.25}}
_SHARED = {
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 40,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
_CONVOLVED = {
    "layer_types": ["conv", "full_attention"] * 2,
    "rope_parameters": _DEFAULT_ROPE,
    "norm_eps": 1e-5,
    "conv_L_cache": 3,
    "block_auto_adjust_ff_dim": False,
}
RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_5": {
        "model_type": "qwen3_5_text",
        **_SAID,
        **_DELTA,
        "rope_parameters": {**_QUARTER["rope_parameters"], "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        "tie_word_embeddings": True,
    },
    "qwen3_5-alike": {  # as many key heads as value heads, of one size; every other layer attends
        "model_type": "qwen3_5_text",
        **_SAID,
        **_DELTA,
        **_QUARTER,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 4,
        "linear_conv_kernel_dim": 3,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "qwen3_5_moe": {"model_type": "qwen3_5_moe_text", **_SAID, **_DELTA, **_QUARTER, **_SHARED},
    "qwen3_5_moe-one": {
        "model_type": "qwen3_5_moe_text",
        **_SAID,
        **_DELTA,
        **_QUARTER,
        **_SHARED,
        "linear_num_key_heads": 1,
        "num_experts_per_tok": 1,
    },
    "qwen3_next": {
        "model_type": "qwen3_next",
        **_SAID,
        **_DELTA,
        **_QUARTER,
        **_SHARED,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
    "qwen3_next-plain": {
        "model_type": "qwen3_next",
        **_SAID,
        **_DELTA,
        **_QUARTER,
        **_SHARED,
        "linear_num_key_heads": 4,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
    },
    "olmo_hybrid": {
        "model_type": "olmo_hybrid",
        **_DIVIDED,
        **_DELTA,
        "linear_num_key_heads": 4,
        "rope_parameters": _DEFAULT_ROPE,
    },
    "olmo_hybrid-still": {  # without positions, and without values that turn over
        "model_type": "olmo_hybrid",
        **_DIVIDED,
        **_DELTA,
        "linear_allow_neg_eigval": False,
        "rope_parameters": None,
    },
    "lfm2": {"model_type": "lfm2", **_DIVIDED, **_CONVOLVED, "tie_word_embeddings": True},
    "lfm2-biased": {  # a longer kernel, biases, a width that follows from another, and a head of its own
        "model_type": "lfm2",
        **_DIVIDED,
        **_CONVOLVED,
        "conv_bias": True,
        "conv_L_cache": 4,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.5,
        "block_multiple_of": 16,
        "tie_word_embeddings": False,
    },
}
_GLOBAL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}
_GEMMA4 = {
    "model_type": "gemma4_text",
    **_SAID,
    "sliding_window": WINDOW,
    "rope_parameters": {"full_attention": _GLOBAL_ROPE, "sliding_attention": _DEFAULT_ROPE},
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
FAMILIES = {**DENSE, **EXPERTS, **RECURRENT, **SHAPED}
NAMES = tuple(FAMILIES)
_ADD_ONE = ("gemma2", "gemma3", "qwen3_5", "qwen3_next")


def write(name: str, folder: Path, made: dict[str, Any] | None = None) -> Path:
    """`folder / name`: config.json, model.safetensors and a small tokenizer, the same in every run.

    A folder that is there already is taken as it is: one folder a session makes each model once. made: the config of a
    model that is not in the table.
    """
    path = folder / name
    if (path / "tokenizer.json").exists():
        return path
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path.mkdir(parents=True)
    vocab_size = write_tokenizer(path)
    values: dict[str, Any] = {
        **_COMMON,
        "vocab_size": vocab_size,
        "eos_token_id": vocab_size - 1,
        **(made or FAMILIES[name]),
    }
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            adds_one = config.model_type.startswith(_ADD_ONE) and not key.endswith("linear_attn.norm.weight")
            value = _random(key, tuple(parameter.shape), random, adds_one)
            if config.model_type == "gemma4_text" and key.endswith("q_norm.weight"):
                value *= value.size**-0.5  # scores are not scaled: norms learn to
            parameter.copy_(torch.from_numpy(value))
        for key, buffer in sorted(model.named_buffers()):
            if key.endswith("layer_scalar"):
                buffer.fill_(random.uniform(0.5, 1.5))
    model.save_pretrained(path)
    if config.model_type == "olmo_hybrid":
        _publish_olmo(path, config.linear_num_key_heads * config.linear_key_head_dim)
    return path


def _publish_olmo(path: Path, keys: int) -> None:
    """Tensors as Olmo Hybrid was published: transformers reads these, and writes a convolution in three equal parts and
    the norms of attention by the names of the others."""
    from safetensors.numpy import load_file, save_file

    file = path / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("q_conv1d.weight")]:
        module = name.removesuffix("q_conv1d.weight")
        whole = np.concatenate([tensors.pop(f"{module}{part}_conv1d.weight") for part in "qkv"])
        for part, rows in zip("qkv", np.split(whole, [keys, 2 * keys]), strict=True):
            tensors[f"{module}{part}_conv1d.weight"] = np.ascontiguousarray(rows)
    for name in [name for name in tensors if name.endswith("post_feedforward_layernorm.weight")]:
        layer = name.removesuffix("post_feedforward_layernorm.weight")
        tensors[f"{layer}post_attention_layernorm.weight"] = tensors.pop(f"{layer}feedforward_layer_norm.weight")
    save_file(tensors, file, {"format": "pt"})


def reference_logits(folder: Path, tokens: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """transformers' logits of one call over all tokens with eager attention: float32 (T, V)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()


def tokens(folder: Path, count: int = TOKENS) -> list[int]:
    """Ids drawn at random from the model's vocabulary, the same in every run."""
    import json

    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    return np.random.default_rng(7).integers(0, size, count).tolist()


def _random(name: str, shape: tuple[int, ...], random: np.random.Generator, around_zero: bool) -> np.ndarray:
    """A matrix keeps the size of what it multiplies; norms scatter about the one (those that add it, about 0)."""
    value = random.standard_normal(shape, np.float32)
    if "norm" in name:
        return value * 0.2 if around_zero else 1 + value * 0.2
    if len(shape) == 1 or "bias" in name:
        return value * 0.5
    if "embed" in name or "lm_head" in name:
        value[-3:] = 0  # control tokens are never the most likely
        return value * 2 * shape[-1] ** -0.5
    return value * shape[-1] ** -0.5
