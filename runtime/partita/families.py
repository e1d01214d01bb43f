"""Families of models as data: a Hugging Face config to `ModelConfig`, and where each weight lives in a checkpoint.

A family is one small function and one table of names over the one decoder in `model.py`; no family has code of its own
there. A value of a field read here that is not implemented is an error naming it, and so is a field that is known to
change a family's mathematics and is not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import LayerConfig, ModelConfig, RopeConfig
from .errors import CheckpointError, UnsupportedModel

Config = Mapping[str, Any]
MAX_LAYERS = 4096


@dataclass(frozen=True)
class Names:
    """Tensor names, with `{i}` for the layer. None: the family has no such tensor."""

    prefix: str = "model."
    embedding: str = "embed_tokens"
    norm: str = "norm"
    head: str = "lm_head"
    attention_norm: str = "layers.{i}.input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str = "layers.{i}.post_attention_layernorm"
    mlp_post_norm: str | None = None
    attention: str = "layers.{i}.self_attn"
    mlp: str = "layers.{i}.mlp"


@dataclass(frozen=True)
class Family:
    parse: Callable[[Config], ModelConfig]
    names: Names = Names()


def family(config: Config) -> Family:
    """The family that a config's `model_type` names. Raises UnsupportedModel, listing those there are."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(f"model_type {model_type!r} is not supported: this version plays {known}")
    return FAMILIES[model_type]


def parse(config: Config) -> ModelConfig:
    """Hugging Face `config.json` to a validated `ModelConfig`.

    Raises UnsupportedModel for mathematics that is not implemented, CheckpointError for a missing or malformed field.
    """
    parsed = family(config).parse(config)
    if parsed.num_heads % parsed.num_kv_heads:
        raise CheckpointError(
            f"config.json: {parsed.num_heads} attention heads do not divide over {parsed.num_kv_heads} key-value heads"
        )
    return parsed


def _llama(config: Config) -> ModelConfig:
    """LlamaForCausalLM: Llama 2 and 3.x, SmolLM2, TinyLlama."""
    _refuse(config, ("attention_multiplier", "residual_multiplier", "embedding_multiplier", "logits_scaling"))
    _refuse(config, ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window", "num_local_experts"))
    hidden, heads = _int(config, "hidden_size"), _int(config, "num_attention_heads")
    head_dim = _optional_int(config, "head_dim") or hidden // heads
    rope = _rope(config, head_dim)
    return ModelConfig(
        model_type="llama",
        vocab_size=_int(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_int(config, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=_optional_int(config, "num_key_value_heads") or heads,
        head_dim=head_dim,
        layers=(LayerConfig(window=None, rope=rope),) * _layers(config),
        max_positions=_int(config, "max_position_embeddings"),
        norm_eps=_float(config, "rms_norm_eps"),
        attention_scale=head_dim**-0.5,
        activation=_activation(config, "hidden_act"),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def _gemma3(config: Config) -> ModelConfig:
    """Gemma3ForCausalLM: text decoder of Gemma 3, five sliding layers to each global one."""
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModel(
            "config.json: use_bidirectional_attention is not supported: partita plays causal decoders"
        )
    if config.get("attention_bias"):
        raise UnsupportedModel("config.json: attention_bias is not supported for gemma3_text")
    hidden, head_dim = _int(config, "hidden_size"), _int(config, "head_dim")
    count = _layers(config)
    rope = _rope(config, head_dim, "full_attention")
    local = _rope(config, head_dim, "sliding_attention")
    kinds = {
        "full_attention": LayerConfig(window=None, rope=rope),
        "sliding_attention": LayerConfig(window=_int(config, "sliding_window"), rope=local),
    }
    return ModelConfig(
        model_type="gemma3_text",
        vocab_size=_int(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_int(config, "intermediate_size"),
        num_heads=_int(config, "num_attention_heads"),
        num_kv_heads=_int(config, "num_key_value_heads"),
        head_dim=head_dim,
        layers=tuple(kinds[name] for name in _layer_types(config, count, kinds)),
        max_positions=_int(config, "max_position_embeddings"),
        norm_eps=_float(config, "rms_norm_eps"),
        attention_scale=_float(config, "query_pre_attn_scalar") ** -0.5,
        activation=_activation(config, "hidden_activation"),
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),  # the family's default, which its files leave out
        norm_adds_one=True,
        embedding_scale=math.sqrt(hidden),
        qk_norm=True,
        post_norms=True,
        attention_softcap=_optional_float(config, "attn_logit_softcapping"),
        logit_softcap=_optional_float(config, "final_logit_softcapping"),
    )


def _gemma3_multimodal(config: Config) -> ModelConfig:
    """Gemma3ForConditionalGeneration, its language model alone."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise CheckpointError("config.json: model_type gemma3 has no text_config")
    return _gemma3({**_GEMMA3_TEXT_DEFAULTS, **text})


# Gemma 3's published multimodal configs leave out what equals transformers' Gemma3TextConfig defaults.
_GEMMA3_TEXT_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window_pattern": 6,
}

_GEMMA3_NAMES = Names(
    attention_post_norm="layers.{i}.post_attention_layernorm",
    mlp_norm="layers.{i}.pre_feedforward_layernorm",
    mlp_post_norm="layers.{i}.post_feedforward_layernorm",
)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(_llama),
    "gemma3_text": Family(_gemma3, _GEMMA3_NAMES),
    "gemma3": Family(_gemma3_multimodal, _GEMMA3_NAMES),
}


def _layer_types(config: Config, count: int, kinds: Mapping[str, LayerConfig]) -> list[str]:
    types = config.get("layer_types")
    if types is None:
        key = "sliding_window_pattern" if "sliding_window_pattern" in config else "_sliding_window_pattern"
        if config.get(key) is None:
            raise CheckpointError("config.json: neither layer_types nor sliding_window_pattern says which layers slide")
        pattern = _int(config, key)
        types = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(count)]
    if not isinstance(types, list):
        raise CheckpointError(f"config.json: layer_types must be a list, not {types!r}")
    if len(types) != count:
        raise CheckpointError(f"config.json: layer_types names {len(types)} layers, num_hidden_layers says {count}")
    for name in types:
        if not isinstance(name, str) or name not in kinds:
            raise UnsupportedModel(f"config.json: layer type {name!r} is not supported")
    return list(types)


def _rope(config: Config, head_dim: int, layer_type: str | None = None) -> RopeConfig:
    """Rope parameters, from `rope_parameters` (transformers 5; per layer type in some) or `rope_theta`/`rope_scaling`.

    A missing base is an error: a wrong one reads well for thousands of tokens and then collapses.
    """
    parameters = _table(config, "rope_parameters")
    if layer_type is not None and layer_type in parameters:
        parameters = _table(parameters, layer_type)
    elif layer_type is not None and "rope_theta" not in config:
        raise CheckpointError(f"config.json: rope_parameters has no {layer_type!r}")
    if "rope_theta" not in parameters:
        local = layer_type == "sliding_attention"
        scaling = {} if local else _table(config, "rope_scaling")  # scaling belongs to the global layers only
        parameters = {**scaling, "rope_theta": config.get("rope_local_base_freq" if local else "rope_theta")}
    theta = _float(parameters, "rope_theta")
    partial = {"partial_rotary_factor": config.get("partial_rotary_factor", 1.0), **parameters}
    dims = int(head_dim * min(_float(partial, "partial_rotary_factor"), 1.0)) // 2 * 2
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    match kind:
        case "default":
            return RopeConfig(theta, dims)
        case "linear":
            return RopeConfig(theta, dims, "linear", _float(parameters, "factor"))
        case "llama3":
            return RopeConfig(
                theta,
                dims,
                "llama3",
                _float(parameters, "factor"),
                _float(parameters, "low_freq_factor"),
                _float(parameters, "high_freq_factor"),
                _int(parameters, "original_max_position_embeddings"),
            )
        case "factors":
            return RopeConfig(theta, dims, "factors", factors=tuple(parameters["factors"]))
        case _:
            raise UnsupportedModel(f"config.json: rope_type {kind!r} is not supported")


_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def _activation(config: Config, key: str) -> str:
    name = config.get(key)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UnsupportedModel(f"config.json: {key} {name!r} is not supported")
    return _ACTIVATIONS[name]


def _int(config: Config, key: str) -> int:
    """Every integer of a config is a size or a count."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise CheckpointError(f"config.json: {key} must be an integer of at least 1, not {value!r}")
    return value


def _layers(config: Config) -> int:
    count = _int(config, "num_hidden_layers")
    if count > MAX_LAYERS:
        raise CheckpointError(f"config.json: num_hidden_layers must be at most {MAX_LAYERS}, not {count}")
    return count


def _float(config: Config, key: str) -> float:
    """Every number of a config is a scale, a base or a small addend: finite and above 0."""
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise CheckpointError(f"config.json: {key} must be a number above 0, not {value!r}")
    return float(value)


def _table(config: Config, key: str) -> Config:
    """A table within a config; an empty one where there is none."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {key} must be a table, not {value!r}")
    return value


def _refuse(config: Config, keys: Iterable[str]) -> None:
    """Raise UnsupportedModel for a field that would change the mathematics of this family."""
    for key in keys:
        if config.get(key):
            raise UnsupportedModel(
                f"config.json: {key} {config[key]!r} is not supported for {config.get('model_type')}"
            )


def _optional_int(config: Config, key: str) -> int | None:
    return None if config.get(key) is None else _int(config, key)


def _optional_float(config: Config, key: str) -> float | None:
    return None if config.get(key) is None else _float(config, key)
