"""Laguna, from a Hugging Face config to `ModelConfig`: layers with different numbers of heads, whose outputs are gated,
before experts that a sigmoid chooses.

Not here: how a checkpoint keeps experts (`checkpoint/experts.py`). The invariant is that of `model/families/parse.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ..config import ExpertsConfig, GateConfig, LayerConfig, ModelConfig
from ..config_fields import (
    FULL,
    SLIDING,
    Config,
    decoder,
    flag,
    integer,
    is_list,
    layer_count,
    layer_types,
    layers_by_type,
    optional_integer,
    optional_number,
    rope,
)
from ..weights import Names
from . import moe

NAMES = Names(attention_gate="g_proj", choice_bias="experts.e_score_correction_bias")
_READS = (
    "gating",
    "moe_apply_router_weight_on_input",
    "moe_routed_scaling_factor",
    "moe_router_logit_softcapping",
    "num_attention_heads_per_layer",
    "num_experts",
    "num_local_experts",
    "shared_expert_intermediate_size",
    "sliding_window",
)
_GATES = {True: "head", "per-head": "head", "per-element": "element"}


def laguna(config: Config) -> ModelConfig:
    """LagunaForCausalLM: Laguna XS. A rope for each kind of layer, of which the global one may turn a part of a head;
    the first layer is dense, if nothing else is said."""
    integer(config, "head_dim")  # not hidden_size / heads in this family
    sparse = moe.sparse_by_name(config, ["dense"] + ["sparse"] * (layer_count(config) - 1))
    attention = flag(config, "attention_bias")
    return decoder(
        config,
        "laguna",
        tuple(replace(layer, experts=has) for layer, has in zip(_layers(config), sparse, strict=True)),
        reads=_READS,
        qk_norm="head",
        attention_gate=_gate(config),
        attention_bias=attention,
        attention_out_bias=attention,
        experts=_experts(config) if any(sparse) else None,
    )


def _layers(config: Config) -> tuple[LayerConfig, ...]:
    types = layer_types(config, [FULL] * layer_count(config))
    ropes = {kind: rope(config, layer_type=kind) for kind in dict.fromkeys(types)}
    layers = layers_by_type(config, types, ropes.get(FULL, ropes[types[0]]), ropes.get(SLIDING))
    heads: Any = config.get("num_attention_heads_per_layer")
    if heads is None:
        return layers
    if not is_list(heads) or len(heads) != len(layers):
        said = f"a list of {len(layers)} integers"
        raise CheckpointError(f"config.json: num_attention_heads_per_layer must be {said}, got {str(heads)[:60]}")
    key = "num_attention_heads_per_layer"
    return tuple(replace(layer, heads=integer({key: own}, key)) for layer, own in zip(layers, heads, strict=True))


def _gate(config: Config) -> GateConfig:
    """gating: true, which published files have, is "per-head"."""
    said = config.get("gating", True)
    if not isinstance(said, bool | str) or said not in _GATES:
        raise UnsupportedModel(
            f"config.json: gating {said!r} is not supported; supported: true, 'per-head', 'per-element'"
        )
    return GateConfig("softplus", "head" if _GATES[said] == "head" else "element", own=True)


def _experts(config: Config) -> ExpertsConfig:
    if flag(config, "moe_apply_router_weight_on_input"):
        raise UnsupportedModel("config.json: moe_apply_router_weight_on_input true is not supported")
    score = config.get("moe_router_score_func", "sigmoid")
    if score != "sigmoid":
        raise UnsupportedModel(f"config.json: moe_router_score_func {score!r} is not supported; supported: sigmoid")
    cap, scale = config.get("moe_router_logit_softcapping"), optional_number(config, "moe_routed_scaling_factor")
    return ExpertsConfig(
        moe.experts(config),
        moe.active(config),
        integer(config, "moe_intermediate_size"),
        normalize=True,
        score="sigmoid",
        choice_bias=True,
        scale=1.0 if scale is None else scale,
        softcap=optional_number(config, "moe_router_logit_softcapping") if cap else None,
        shared_size=optional_integer(config, "shared_expert_intermediate_size") or 0,
    )
