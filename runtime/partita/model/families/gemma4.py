"""Gemma 4's text decoders, from a Hugging Face config to `ModelConfig`: those whose layers are told of each token (E2B,
E4B), dense ones (12B, 31B), and those with experts beside a dense MLP (26B-A4B).

The invariant is that of `model/families/parse.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ...errors import CheckpointError, UnsupportedModel
from ..config import ExpertsConfig, LayerConfig, ModelConfig, PerLayerConfig, RopeConfig
from ..config_fields import (
    FULL,
    SLIDING,
    Config,
    decoder,
    flag,
    integer,
    layer_count,
    layer_types,
    layers_by_type,
    optional_integer,
    optional_number,
    rope,
    table,
)
from ..weights import Names

NAMES = Names(
    attention_post_norm="layers.{i}.post_attention_layernorm",
    mlp_norm="layers.{i}.pre_feedforward_layernorm",
    mlp_post_norm="layers.{i}.post_feedforward_layernorm",
)
_READS = (
    "final_logit_softcapping",
    "hidden_size_per_layer_input",
    "num_experts",
    "num_kv_shared_layers",
    "sliding_window",
)


def gemma4(config: Config) -> ModelConfig:
    """Gemma4ForCausalLM: layers of two shapes; scores are not scaled; values are normed without a weight; the last
    layers read the keys and values of the last one of their kind before them."""
    if config.get("use_bidirectional_attention") == "all":
        raise UnsupportedModel("config.json: use_bidirectional_attention is not supported; supported: causal decoders")
    config = {**config, "use_bidirectional_attention": None}  # "vision": of pictures alone
    attention = flag(config, "attention_bias")
    width = optional_integer(config, "hidden_size_per_layer_input") if config.get("hidden_size_per_layer_input") else 0
    sparse = flag(config, "enable_moe_block")
    return decoder(
        config,
        "gemma4_text",
        tuple(replace(layer, experts=sparse) for layer in _layers(config)),
        reads=_READS,
        activation_key="hidden_activation",
        tied=True,
        attention_scale=1.0,
        qk_norm="head",
        value_norm=True,
        attention_bias=attention,
        attention_out_bias=attention,
        embedding_scale=math.sqrt(integer(config, "hidden_size")),
        logit_softcap=optional_number(config, "final_logit_softcapping"),
        per_layer=PerLayerConfig(width, integer(config, "vocab_size_per_layer_input")) if width else None,
        layer_scalar=True,
        experts=_experts(config) if sparse else None,
    )


def _experts(config: Config) -> ExpertsConfig:
    count, active = integer(config, "num_experts"), integer(config, "top_k_experts")
    if active > count:
        raise CheckpointError(f"config.json: top_k_experts {active} is more than there are, {count}")
    return ExpertsConfig(count, active, integer(config, "moe_intermediate_size"), normalize=True, beside=True)


def _layers(config: Config) -> tuple[LayerConfig, ...]:
    count = layer_count(config)
    types = layer_types(config, [SLIDING if (i + 1) % 6 else FULL for i in range(count)])
    shared = optional_integer(config, "num_kv_shared_layers") if config.get("num_kv_shared_layers") else 0
    first, alike = count - (shared or 0), flag(config, "attention_k_eq_v")
    if missing := set(types) - set(types[: max(first, 0)]):
        raise CheckpointError(f"config.json: num_kv_shared_layers {shared} leaves no {min(missing)} layer to share")
    shapes = [_shape(config, i, kind) for i, kind in enumerate(types)]
    ropes = {kind: _rope(config, kind, shapes[types.index(kind)]["head_dim"]) for kind in dict.fromkeys(types)}
    layers = layers_by_type(config, types, ropes.get(FULL, ropes[types[0]]), ropes.get(SLIDING))
    wide = integer(config, "intermediate_size") * (2 if flag(config, "use_double_wide_mlp") else 1)
    return tuple(
        replace(
            layer,
            **shapes[i],
            keys_are_values=alike and types[i] == FULL,
            shares=None if i < first else first - 1 - types[:first][::-1].index(types[i]),
            intermediate_size=None if i < first else wide,
        )
        for i, layer in enumerate(layers)
    )


def _shape(config: Config, layer: int, kind: str) -> dict[str, int]:
    """head_dim and kv_heads of a layer: as saved by transformers, in `per_layer_config`, or as published, in fields of
    the global layers."""
    plain = {key: integer(config, key) for key in ("head_dim", "num_key_value_heads")}
    if config.get("per_layer_config") is not None:  # {} where all layers are alike
        own = table(config, "per_layer_config")
        said = table(own, str(layer) if str(layer) in own else kind)
        found = {**plain, **{key: integer(said, key) for key in plain if said.get(key) is not None}}
    else:
        found = plain if kind == SLIDING else _global(config, plain)
    return {"head_dim": found["head_dim"], "kv_heads": found["num_key_value_heads"]}


def _global(config: Config, plain: dict[str, int]) -> dict[str, int]:
    size = optional_integer(config, "global_head_dim") or 512
    heads = optional_integer(config, "num_global_key_value_heads") if flag(config, "attention_k_eq_v") else None
    return {"head_dim": size, "num_key_value_heads": heads or plain["num_key_value_heads"]}


def _rope(config: Config, kind: str, size: int) -> RopeConfig:
    parameters = dict(table(table(config, "rope_parameters"), kind))
    if not parameters:
        parameters = (
            {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
            if kind == FULL
            else {"rope_type": "default", "rope_theta": 1e4}
        )
    return rope({**config, "head_dim": size, "rope_parameters": {kind: parameters}}, layer_type=kind)
