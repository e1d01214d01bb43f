"""Families most of whose layers are short convolutions, from a Hugging Face config to `ModelConfig`: LFM2 and
2.5, LFM2-MoE, and LFM3.

Not here: the layers (`model/mixers/`). The invariant is that of `model/families/parse.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ..config import ConvConfig, ExpertsConfig, GateConfig, LayerConfig, ModelConfig
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
    optional_number,
    rope,
)
from ..weights import Names
from . import moe

CONV = "conv"
LFM2_NAMES = Names(
    attention_norm="layers.{i}.operator_norm",
    mlp_norm="layers.{i}.ffn_norm",
    norm="embedding_norm",
    mlp="layers.{i}.feed_forward",
    q_norm="q_layernorm",
    k_norm="k_layernorm",
    out="out_proj",
    gate="w1",
    up="w3",
    down="w2",
    choice_bias="expert_bias",
)
LFM3_NAMES = replace(
    LFM2_NAMES,
    attention_post_norm="layers.{i}.post_operator_norm",
    mlp_post_norm="layers.{i}.post_ffn_norm",
    q_norm="q_norm",
    k_norm="k_norm",
    out="o_proj",
)
_CONV_READS = ("conv_L_cache", "conv_bias")


def lfm2(config: Config) -> ModelConfig:
    """Lfm2ForCausalLM: LFM2 and LFM2.5."""
    layers = tuple(_lfm2_layers(config))
    return _lfm2(config, "lfm2", layers, reads=("block_ff_dim",), intermediate_size=_width(config))


def lfm2_moe(config: Config) -> ModelConfig:
    """Lfm2MoeForCausalLM: LFM2-8B-A1B and others. The first layers are dense; a router scores each expert by itself,
    and a bias that is learned chooses, and does not weigh."""
    count, dense = layer_count(config), config.get("num_dense_layers")
    if type(dense) is not int or not 0 <= dense <= count:
        raise CheckpointError(f"config.json: num_dense_layers must be an integer from 0 to {count}, got {dense!r}")
    factor = optional_number(config, "routed_scaling_factor")
    return _lfm2(
        config,
        "lfm2_moe",
        tuple(replace(layer, experts=i >= dense) for i, layer in enumerate(_lfm2_layers(config))),
        reads=("num_dense_layers", "num_experts", "routed_scaling_factor", "use_expert_bias"),
        experts=ExpertsConfig(
            moe.experts(config),
            moe.active(config),
            integer(config, "moe_intermediate_size"),
            normalize=flag(config, "norm_topk_prob", True),
            normalize_eps=1e-6,
            score="sigmoid",
            choice_bias=flag(config, "use_expert_bias", True),
            scale=1.0 if factor is None else factor,
        )
        if dense < count
        else None,
    )


def lfm3(config: Config) -> ModelConfig:
    """Lfm3ForCausalLM: longer convolutions, layers that slide, each kind of attention with its own rope, one gate a
    head, norms before and after."""
    integer(config, "head_dim")  # not hidden_size / heads in this family
    if not flag(config, "use_sandwich_norm", True):
        raise UnsupportedModel("config.json: use_sandwich_norm false is not supported for lfm3")
    gated, attention = flag(config, "use_attention_gate", True), flag(config, "attention_bias")
    return decoder(
        config,
        "lfm3",
        _lfm3_layers(config),
        reads=(*_CONV_READS, "sliding_window", "use_attention_gate", "use_sandwich_norm"),
        eps_key="norm_eps",
        tied=True,
        activation="silu",
        qk_norm="head",
        attention_gate=GateConfig(each="head", own=True) if gated else None,
        attention_bias=attention,
        attention_out_bias=attention,
    )


def _lfm3_layers(config: Config) -> tuple[LayerConfig, ...]:
    """Of four layers two are convolutions, one attends to all and one slides, if nothing else is said."""
    usual = [FULL if i % 4 == 2 else CONV if i % 4 or not i else SLIDING for i in range(layer_count(config))]
    types = layer_types(config, usual, known=(FULL, SLIDING, CONV))
    kinds = {CONV: LayerConfig(None, None, mixer=_conv(config))}
    for kind, width in ((FULL, None), (SLIDING, integer(config, "sliding_window") if SLIDING in types else None)):
        if kind in types:
            kinds[kind] = LayerConfig(width, rope(config, layer_type=kind))
    return tuple(kinds[name] for name in types)


def _lfm2(
    config: Config, model_type: str, layers: tuple[LayerConfig, ...], *, reads: tuple[str, ...], **fields: Any
) -> ModelConfig:
    """What they share."""
    return decoder(
        config,
        model_type,
        layers,
        reads=(*_CONV_READS, *reads),
        eps_key="norm_eps",
        tie_embeddings=flag(config, "tie_embedding", flag(config, "tie_word_embeddings", True)),
        activation="silu",
        qk_norm="head",
        **fields,
    )


def _lfm2_layers(config: Config) -> list[LayerConfig]:
    kinds = {FULL: LayerConfig(None, rope(config)), CONV: LayerConfig(None, None, mixer=_conv(config))}
    return [kinds[name] for name in _types(config)]


def _conv(config: Config) -> ConvConfig:
    return ConvConfig(integer(config, "hidden_size"), integer(config, "conv_L_cache"), flag(config, "conv_bias"))


def _types(config: Config) -> list[str]:
    """By name, or in older files by the numbers of the layers that attend."""
    count, attend = layer_count(config), config.get("full_attn_idxs")
    if config.get("layer_types") is not None:
        return layer_types(config, known=(FULL, CONV))
    if not is_list(attend) or any(type(i) is not int or not 0 <= i < count for i in attend):
        raise CheckpointError(f"config.json: full_attn_idxs must list layers from 0 to {count - 1}, got {attend!r}")
    return [FULL if i in attend else CONV for i in range(count)]


def _width(config: Config) -> int:
    """Of the MLPs, of which files may say two thirds, times a factor, rounded up to a multiple, and not the width."""
    width = integer(config, "block_ff_dim" if config.get("block_ff_dim") is not None else "intermediate_size")
    if not flag(config, "block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    factor = optional_number(config, "block_ffn_dim_multiplier")
    if factor is None:
        return width
    multiple = integer(config, "block_multiple_of")
    return -(-int(factor * width) // multiple) * multiple
