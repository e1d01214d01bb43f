"""What an architecture's config.json says beyond a field for each key: one function an architecture, named after it.

Not here: the table that names them (`architectures`). Each takes a file's keys and the config as its fields, constants,
rope and pattern of layers give it, and returns the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ...files.bounded import is_list
from .keys import Keys

Config = dict[str, Any]
SLIDING, FULL, RECURRENT, CONV = "sliding_attention", "full_attention", "linear_attention", "conv"
GATING = {"softmax": 1, "sigmoid": 2, "softmax_chosen": 3}
"""What becomes of a router's outputs, by GGUF's numbers."""
MROPE_SECTION = [11, 11, 10]
"""Frequencies of time, height and width where a Qwen3.5 does not say them."""
_KINDS = ("value", "key")
EXAONE_LAYERS, _EXAONE_WINDOW = 64, 4096  # of the one EXAONE 4 that slides


def usual_attention_factor(factor: float, weight: float = 1.0) -> float:
    """Of yarn where nothing else is said. weight: Hugging Face's mscale."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _has_bias(keys: Keys, part: str) -> bool:
    return f"blk.0.{part}.bias" in keys.tensors


def _biases(keys: Keys, config: Config) -> Config:
    return config | {"attention_bias": _has_bias(keys, "attn_q"), "mlp_bias": _has_bias(keys, "ffn_up")}


def llama(keys: Keys, config: Config) -> Config:
    """Mistral is written as llama; a file may say its window, which llama.cpp does not read."""
    config = _biases(keys, config)
    window = keys.get("attention.sliding_window", int, 0)
    if 0 < window < config["max_position_embeddings"]:
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
    return config


def smollm3(keys: Keys, config: Config) -> Config:
    layers = config["num_hidden_layers"]
    return _biases(keys, config) | {
        "no_rope_layer_interval": 4,
        "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(layers)],
        "layer_types": [FULL] * layers,
    }


def granite(keys: Keys, config: Config) -> Config:
    if config["attention_multiplier"] is None:
        config["attention_multiplier"] = config["head_dim"] ** -0.5
    return _biases(keys, config)


def gemma(divided_at: int) -> Callable[[Keys, Config], Config]:
    """divided_at: the number of layers of the one model that scales queries by another number."""

    def extend(keys: Keys, config: Config) -> Config:
        scalar: float = config["head_dim"]
        if config["num_hidden_layers"] == divided_at:
            scalar = config["hidden_size"] / config["num_attention_heads"]
        scalar = int(scalar) if scalar == int(scalar) else scalar
        return config | {"query_pre_attn_scalar": scalar}

    return extend


def gemma4(keys: Keys, config: Config) -> Config:
    """Shapes of global layers beside those of sliding ones. The config has each global layer's, as transformers writes
    it: where keys are values, published fields would say their heads, and elsewhere they could not."""
    size, width, rotated, theta = (config.pop(f"local_{key}") for key in ("head_dim", "value_dim", "rotated", "theta"))
    if width != size or rotated not in (None, size) or "partial_rotary_factor" in config:
        raise UnsupportedModel(f"{keys.prefix}: heads of two widths, or turned in part, are not implemented")
    types, heads, shared = config["layer_types"], config["num_key_value_heads"], config["num_kv_shared_layers"]
    if not 0 <= shared < len(types):
        raise CheckpointError(f"{keys.prefix}.attention.shared_kv_layers says {shared} of {len(types)} layers")
    local = [n for n, kind in zip(heads, types, strict=True) if kind == SLIDING] or heads[:1]
    if any(n != local[0] for n in local):
        raise UnsupportedModel(f"{keys.prefix}.attention.head_count_kv differs between sliding layers")
    whole = [i for i, kind in enumerate(types) if kind == FULL]
    alike = {f"blk.{i}.attn_v.weight" not in keys.tensors for i in whole if i < len(types) - shared}
    if len(alike) > 1:
        raise UnsupportedModel(f"{keys.prefix}: global layers with values beside some without are not implemented")
    base, scaling = config.pop("rope_theta"), config.pop("rope_scaling")
    config |= {
        "per_layer_config": {str(i): {"head_dim": config["head_dim"], "num_key_value_heads": heads[i]} for i in whole},
        "attention_k_eq_v": alike == {True},
        "rope_parameters": {
            FULL: _whole_rope(scaling, base, config["head_dim"]),
            SLIDING: {"rope_type": "default", "rope_theta": theta},
        },
        "head_dim": size,
        "num_key_value_heads": local[0],
    }
    if config["hidden_size_per_layer_input"]:
        table = keys.tensors.get("per_layer_token_embd.weight")
        if table is None:
            raise CheckpointError("the file lacks the tensor per_layer_token_embd.weight")
        config["vocab_size_per_layer_input"] = table[0]
    return _widths(keys, config) | {"enable_moe_block": bool(config["num_experts"])}


def _whole_rope(scaling: Config | None, theta: float, size: int) -> Config:
    """Of global layers, whose heads are so wide; the tensor's divisors are not known yet."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    if "tensor" not in scaling:
        raise UnsupportedModel(f"rope scaling {scaling['rope_type']!r} is not implemented for this architecture")
    return {"rope_type": "proportional", "rope_theta": theta, "tensor": scaling["tensor"], "dims": size}


def _widths(keys: Keys, config: Config) -> Config:
    """Layers that share keys and values may be twice as wide as the others."""
    widths, first = config["intermediate_size"], config["num_hidden_layers"] - config["num_kv_shared_layers"]
    plain, wide = set(widths[:first]), set(widths[first:])
    if len(plain) > 1 or wide not in (set(), plain, {2 * width for width in plain}):
        raise UnsupportedModel(f"{keys.prefix}.feed_forward_length: these widths of layers are not implemented")
    return config | {"intermediate_size": widths[0], "use_double_wide_mlp": wide not in (set(), plain)}


def phi3(keys: Keys, config: Config) -> Config:
    """A window of 0 stands for none."""
    return config | {"sliding_window": config["sliding_window"] or None}


def olmo2(keys: Keys, config: Config) -> Config:
    window = keys.get("attention.sliding_window", int, 0)
    if not window:
        return {key: value for key, value in config.items() if key != "layer_types"}
    theta = config["rope_theta"]
    scaled = config["rope_scaling"] or {"rope_type": "default"}
    parameters = {FULL: {**scaled, "rope_theta": theta}, SLIDING: {"rope_type": "default", "rope_theta": theta}}
    return config | {
        "model_type": "olmo3",
        "architectures": ["Olmo3ForCausalLM"],
        "sliding_window": window,
        "rope_parameters": parameters,  # the older fields alone are read as another base by transformers
    }


def gpt_oss(keys: Keys, config: Config) -> Config:
    scaling: Config = config["rope_scaling"] or {}
    if scaling.get("rope_type") == "yarn":
        config["rope_scaling"] = scaling | {"truncate": False}
    return config


def exaone4(keys: Keys, config: Config) -> Config:
    """A window of 0 stands for none. A file may say a window for a model that llama.cpp does not slide."""
    if config["sliding_window"] is None and config["num_hidden_layers"] == EXAONE_LAYERS:
        config["sliding_window"] = _EXAONE_WINDOW
    if not config["sliding_window"]:
        return config | {"sliding_window": None, "layer_types": [FULL] * config["num_hidden_layers"]}
    return config


def qkv_biases(keys: Keys, config: Config) -> Config:
    return config | {"attention_bias": _has_bias(keys, "attn_q")}


def glm4(keys: Keys, config: Config) -> Config:
    """A config that does not say how much of a head rotates means half of it, a file all of it."""
    sections = keys.metadata.get(f"{keys.prefix}.rope.dimension_sections")
    if any(sections if is_list(sections) else (sections,)):
        raise UnsupportedModel(f"{keys.prefix}: rotation in sections, of a model that sees, is not implemented")
    return qkv_biases(keys, {"partial_rotary_factor": 1.0, **config})


def mistral3(keys: Keys, config: Config) -> Config:
    growth, multiplier = config.pop("temperature_scale"), config.pop("yarn_log_multiplier")
    scaling: Config = config["rope_scaling"] or {}
    if scaling.get("rope_type") != "yarn":
        if growth:
            raise CheckpointError("attention.temperature_scale needs the original context of yarn")
        return _biases(keys, config) | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    if multiplier:
        scaling = scaling | {"mscale": 1.0, "mscale_all_dim": multiplier}
    if multiplier and "attention_factor" in scaling:  # which hides both from Hugging Face's readers
        scaling["attention_factor"] /= usual_attention_factor(scaling["factor"], multiplier)
    if growth:
        scaling = scaling | {"llama_4_scaling_beta": growth}
    parameters = {**scaling, "rope_theta": config["rope_theta"]}
    return _biases(keys, config) | {"rope_scaling": None, "rope_parameters": parameters}


def cohere2(keys: Keys, config: Config) -> Config:
    config["layer_norm_eps"] = config.pop("rms_norm_eps")
    return config


def gated_delta(keys: Keys, config: Config) -> Config:
    """Layers that remember by the gated delta rule, but for the last of each period, or as a list says it; heads of
    values, of which a file says how wide they are together."""
    size, heads, of_keys = config.pop("linear_value_size"), *(config[f"linear_num_{kind}_heads"] for kind in _KINDS)
    if not heads or not of_keys or heads % of_keys or size % heads:
        raise CheckpointError(
            f"{keys.prefix}.ssm: {heads} value heads, {size} wide together, do not go with {of_keys} key heads"
        )
    return {"partial_rotary_factor": 1.0, **config} | {
        "linear_value_head_dim": size // heads,
        "layer_types": [RECURRENT if each else FULL for each in _recurrent(keys, config["num_hidden_layers"])],
    }


def _recurrent(keys: Keys, layers: int) -> list[bool]:
    said = keys.metadata.get(f"{keys.prefix}.attention.recurrent_layers")
    if said is None:
        period = keys.get("full_attention_interval", int, 4)
        return [period == 0 or (i + 1) % period != 0 for i in range(layers)]
    if not is_list(said) or len(said) < layers:
        raise CheckpointError(f"{keys.prefix}.attention.recurrent_layers does not say it of each of {layers} layers")
    return [bool(each) for each in said[:layers]]


def qwen35(keys: Keys, config: Config) -> Config:
    """The sections of rope concern pictures; they are said where they are not Qwen's usual ones."""
    config = gated_delta(keys, config)
    sections = keys.metadata.get(f"{keys.prefix}.rope.dimension_sections")
    sections = [*sections[:3]] if is_list(sections) else MROPE_SECTION
    if sections == MROPE_SECTION:
        return config
    said = {**(config["rope_scaling"] or {"rope_type": "default"}), "rope_theta": config["rope_theta"]}
    said |= {"mrope_section": sections, "mrope_interleaved": True}
    return config | {"rope_parameters": said | {"partial_rotary_factor": config["partial_rotary_factor"]}}


def qwen35moe(keys: Keys, config: Config) -> Config:
    """No MLP is dense, though a file may say how wide it would be."""
    return {key: value for key, value in qwen35(keys, config).items() if key != "intermediate_size"}


def short_conv(keys: Keys, config: Config) -> Config:
    """Layers without key-value heads are short convolutions."""
    if 0 < config.pop("sliding_window") < config["max_position_embeddings"]:
        raise UnsupportedModel(f"{keys.prefix}.attention.sliding_window is not implemented in this architecture")
    heads = config["num_key_value_heads"]
    if len(attend := set(heads) - {0}) != 1:
        raise UnsupportedModel(
            f"{keys.prefix}.attention.head_count_kv: layers that attend with {sorted(attend)} heads are not implemented"
        )
    config["norm_eps"] = config.pop("rms_norm_eps")
    return config | {"num_key_value_heads": max(attend), "layer_types": [FULL if count else CONV for count in heads]}


def short_conv_moe(keys: Keys, config: Config) -> Config:
    if (said := config.pop("gating")) != GATING["sigmoid"]:
        raise UnsupportedModel(f"{keys.prefix}.expert_gating_func {said} is not implemented in this architecture")
    return short_conv(keys, config)
