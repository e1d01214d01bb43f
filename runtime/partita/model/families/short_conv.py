"""Families most of whose layers are short convolutions, from a Hugging Face config to `ModelConfig`: LFM2 and 2.5.

Not here: the layers (`model/mixers/`). The invariant is that of `model/families/parse.py`.
"""

from __future__ import annotations

from ...errors import CheckpointError
from ..config import ConvConfig, LayerConfig, ModelConfig
from ..config_fields import (
    FULL,
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
)


def lfm2(config: Config) -> ModelConfig:
    """Lfm2ForCausalLM: LFM2 and LFM2.5."""
    conv = ConvConfig(integer(config, "hidden_size"), integer(config, "conv_L_cache"), flag(config, "conv_bias"))
    kinds = {FULL: LayerConfig(None, rope(config)), CONV: LayerConfig(None, None, mixer=conv)}
    return decoder(
        config,
        "lfm2",
        tuple(kinds[name] for name in _types(config)),
        reads=("block_ff_dim", "conv_L_cache", "conv_bias"),
        eps_key="norm_eps",
        tie_embeddings=flag(config, "tie_embedding", flag(config, "tie_word_embeddings", True)),
        intermediate_size=_width(config),
        activation="silu",
        qk_norm="head",
    )


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
