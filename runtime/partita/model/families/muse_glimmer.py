"""Muse Glimmer's text decoder, from a Hugging Face config to `ModelConfig`: three sliding layers that rotate to each
global one that does not, queries and keys of one length, a gate on every number that attention gives.

The invariant is that of `model/families/parse.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ..config import GateConfig, ModelConfig, RopeConfig
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
    number,
    rope,
)
from ..weights import Names

NAMES = Names(
    attention_post_norm="layers.{i}.post_attention_layernorm",
    mlp_norm="layers.{i}.pre_feedforward_layernorm",
    mlp_post_norm="layers.{i}.post_feedforward_layernorm",
)
_READS = (
    "final_logit_softcapping",
    "layer_rope_theta",
    "output_multiplier",
    "post_norm_eps",
    "qk_scale_factor",
    "sliding_window",
)


def muse_glimmer(config: Config) -> ModelConfig:
    """The text decoder of MuseGlimmerForConditionalGeneration. What queries are multiplied by behind their norm is a
    part of the scale of scores: a rotation changes no length."""
    size = integer(config, "head_dim")  # not hidden_size / heads in this family
    count, turned = layer_count(config), rope(config)
    types = layer_types(config, [SLIDING if (count - 1 - i) % 4 else FULL for i in range(count)])
    rotates = _rotates(config, turned)
    attention = flag(config, "attention_bias")
    return decoder(
        config,
        "muse_glimmer_text",
        tuple(
            layer if turns else replace(layer, rope=None)
            for layer, turns in zip(layers_by_type(config, types, turned), rotates, strict=True)
        ),
        reads=_READS,
        activation_key="hidden_activation",
        attention_scale=number(config, "qk_scale_factor") * size**-0.5,
        qk_norm="unit",
        attention_gate=GateConfig(own=True),
        attention_bias=attention,
        attention_out_bias=attention,
        norm_adds_one=True,
        last_norm_plain=True,
        post_norm_eps=number(config, "post_norm_eps"),
        embedding_norm=True,
        logit_scale=number(config, "output_multiplier"),
        logit_softcap=number(config, "final_logit_softcapping"),
    )


def _rotates(config: Config, turned: RopeConfig) -> list[bool]:
    """layer_rope_theta: 0 for a layer that does not rotate, else the base, which is one for all. Where it is left out,
    every fourth layer does not, counted from the last."""
    count, bases = layer_count(config), config.get("layer_rope_theta")
    if bases is None:
        return [(count - 1 - i) % 4 != 0 for i in range(count)]
    if not is_list(bases) or len(bases) != count:
        raise CheckpointError(f"config.json: layer_rope_theta must be a list of {count} numbers, got {str(bases)[:60]}")
    other: list[Any] = [base for base in bases if isinstance(base, bool) or base not in (0, turned.theta)]
    if other:
        raise UnsupportedModel(
            f"config.json: layer_rope_theta {other[0]!r} is not supported for muse_glimmer_text; supported: 0, or the "
            f"base of rope_parameters, {turned.theta:g}"
        )
    return [base != 0 for base in bases]
