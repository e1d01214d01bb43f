"""Families of models as data: a Hugging Face config to `ModelConfig`, and where each weight lives in a checkpoint.

A family is one small function and one table of names over the one decoder in `model/decoder.py`; no family has code of
its own there. How a field is read and when it is refused is `model/config_fields.py`'s; families with experts are in
`moe.py`, later dense ones in `dense.py`, those that remember by a state in `recurrent.py`, by the last few tokens in
`short_conv.py`, models that see as well in `wrappers.py`. Invariant: a field that changes a family's mathematics is
read, or refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ..config import LayerConfig, ModelConfig
from ..config_fields import (
    FULL,
    SLIDING,
    Config,
    biases,
    decoder,
    flag,
    integer,
    is_list,
    layer_count,
    layer_types,
    layers_by_type,
    number,
    optional_number,
    refuse,
    rope,
    window,
)
from ..weights import Names
from . import dense, gemma4, laguna, muse_glimmer, recurrent, short_conv
from .moe import gpt_oss, mellum, qwen3_moe
from .wrappers import WRAPPERS, text_config


@dataclass(frozen=True)
class Family:
    parse: Callable[[Config], ModelConfig]
    names: Names = field(default_factory=Names)


def family(config: Config) -> Family:
    """The family that a config's `model_type` names, of a wrapper its text decoder's. Raises UnsupportedModel, listing
    those there are."""
    model_type = text_config(config).get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted({*FAMILIES, *WRAPPERS}))
        raise UnsupportedModel(f"model_type {model_type!r} is not supported; supported: {known}")
    return FAMILIES[model_type]


def parse(config: Config) -> ModelConfig:
    """Hugging Face `config.json` to a validated `ModelConfig`.

    Raises UnsupportedModel for mathematics that is not implemented, CheckpointError for a missing or malformed field.
    """
    parsed = family(config).parse(text_config(config))
    of_layers = ((parsed.heads_of(i), parsed.kv_heads_of(i)) for i in range(parsed.num_layers))
    for heads, kv_heads in ((parsed.num_heads, parsed.num_kv_heads), *of_layers):
        if heads % kv_heads:
            raise CheckpointError(f"config.json: {heads} attention heads do not divide over {kv_heads} key-value heads")
    return parsed


def _llama(config: Config) -> ModelConfig:
    """LlamaForCausalLM: Llama 2 and 3.x, SmolLM2, TinyLlama."""
    if set(layer_types(config, [FULL] * layer_count(config))) != {FULL}:
        raise UnsupportedModel("config.json: layer_types with sliding layers is not supported for llama")
    layers = (LayerConfig(None, rope(config)),) * layer_count(config)
    return decoder(config, "llama", layers, **biases(config))


def _mistral(config: Config) -> ModelConfig:
    """MistralForCausalLM and MinistralForCausalLM: every layer slides, or those that layer_types names, or none."""
    types = layer_types(config, [FULL if config.get("sliding_window") is None else SLIDING] * layer_count(config))
    layers = layers_by_type(config, types, rope(config))
    return decoder(config, "mistral", layers, reads=("sliding_window",), **biases(config))


def _smollm3(config: Config) -> ModelConfig:
    """SmolLM3ForCausalLM: one layer in four does not rotate (NoPE)."""
    count, turned = layer_count(config), rope(config)
    rotates = config.get("no_rope_layers")
    if rotates is None:  # the name says the opposite of the value: 1 is a layer with rope
        interval = integer(config, "no_rope_layer_interval")
        rotates = [int((i + 1) % interval != 0) for i in range(count)]
    if not is_list(rotates) or len(rotates) < count or any(value not in (0, 1) for value in rotates):
        raise CheckpointError(f"config.json: no_rope_layers must say 0 or 1 for each of {count} layers")
    slides = flag(config, "use_sliding_window")
    types = [SLIDING if slides and config.get("sliding_window") and not rotates[i] else FULL for i in range(count)]
    types = _switched_types(config, types)
    layers = tuple(
        LayerConfig(layer.window, turned if rotates[i] else None)
        for i, layer in enumerate(layers_by_type(config, types, turned))
    )
    reads = ("no_rope_layers", *_SLIDING_READS)
    return decoder(config, "smollm3", layers, reads=reads, tied=True, **biases(config))


def _qwen_layers(config: Config) -> tuple[LayerConfig, ...]:
    """Qwen2's and Qwen3's: layers from max_window_layers on slide, where use_sliding_window says so."""
    count = layer_count(config)
    types = [FULL] * count
    if flag(config, "use_sliding_window") and config.get("sliding_window") is not None:
        first = config.get("max_window_layers")
        if "layer_types" not in config and (not isinstance(first, int) or isinstance(first, bool) or first < 0):
            raise CheckpointError(f"config.json: max_window_layers must be an integer >= 0, got {first!r}")
        types = [SLIDING if isinstance(first, int) and i >= first else FULL for i in range(count)]
    return layers_by_type(config, _switched_types(config, types), rope(config))


_SLIDING_READS = ("sliding_window", "use_sliding_window")


def _switched_types(config: Config, default: list[str]) -> list[str]:
    """The types of layers where `use_sliding_window` says whether any may slide."""
    types = layer_types(config, default)
    if SLIDING in types and not flag(config, "use_sliding_window"):
        raise CheckpointError("config.json: layer_types names sliding layers and use_sliding_window is not true")
    return types


def _qwen2(config: Config) -> ModelConfig:
    """Qwen2ForCausalLM: Qwen2 and 2.5. Queries, keys and values have biases, whatever the config says."""
    return decoder(config, "qwen2", _qwen_layers(config), reads=_SLIDING_READS, attention_bias=True)


def _qwen3(config: Config) -> ModelConfig:
    """Qwen3ForCausalLM."""
    integer(config, "head_dim")  # not hidden_size / heads in this family
    return decoder(config, "qwen3", _qwen_layers(config), reads=_SLIDING_READS, qk_norm="head", **biases(config))


def _gemma2(config: Config) -> ModelConfig:
    """Gemma2ForCausalLM: every other layer slides; scores and logits are soft-capped."""
    types = layer_types(config, [SLIDING if i % 2 == 0 else FULL for i in range(layer_count(config))])
    return _gemma(config, "gemma2", layers_by_type(config, types, rope(config)), qk_norm="none")


def _gemma3(config: Config) -> ModelConfig:
    """Gemma3ForCausalLM: text decoder of Gemma 3, five sliding layers to each global one."""
    types = None
    if config.get("layer_types") is None:
        key = "sliding_window_pattern" if "sliding_window_pattern" in config else "_sliding_window_pattern"
        if config.get(key) is None:
            raise CheckpointError("config.json: neither layer_types nor sliding_window_pattern says which layers slide")
        pattern = integer(config, key)
        types = [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(layer_count(config))]
    local = rope(config, layer_type=SLIDING, theta="rope_local_base_freq", scaled=False)
    layers = layers_by_type(config, layer_types(config, types), rope(config, layer_type=FULL), local)
    return _gemma(config, "gemma3_text", layers, qk_norm="head")


def _gemma(config: Config, model_type: str, layers: tuple[LayerConfig, ...], **fields: Any) -> ModelConfig:
    """What the Gemmas share."""
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModel("config.json: use_bidirectional_attention is not supported; supported: causal decoders")
    integer(config, "head_dim")  # not hidden_size / heads in this family
    reads = ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
    return decoder(
        config,
        model_type,
        layers,
        reads=(*reads, "sliding_window", "rope_local_base_freq"),
        activation_key="hidden_activation",
        tied=True,  # the family's default, which its files leave out
        attention_scale=number(config, "query_pre_attn_scalar") ** -0.5,
        norm_adds_one=True,
        embedding_scale=math.sqrt(integer(config, "hidden_size")),
        attention_softcap=optional_number(config, "attn_logit_softcapping"),
        logit_softcap=optional_number(config, "final_logit_softcapping"),
        **{**biases(config), **fields},
    )


def _phi3(config: Config) -> ModelConfig:
    """Phi3ForCausalLM: Phi-3, 3.5, 4 and 4-mini. Projections of one input come as one matrix."""
    refuse(config, ("attention_bias", "mlp_bias"))
    layers = (LayerConfig(window(config), rope(config)),) * layer_count(config)
    return decoder(config, "phi3", layers, reads=("sliding_window",))


def _olmo2(config: Config) -> ModelConfig:
    """Olmo2ForCausalLM: norms after attention and MLP only, and over all heads of queries and of keys at once."""
    layers = (LayerConfig(None, rope(config)),) * layer_count(config)
    return decoder(config, "olmo2", layers, qk_norm="full", **biases(config))


def _olmo3(config: Config) -> ModelConfig:
    """Olmo3ForCausalLM: Olmo 2 with three sliding layers to each global one; scaled rope in the global ones only."""
    types = layer_types(config, [FULL if (i + 1) % 4 == 0 else SLIDING for i in range(layer_count(config))])
    local = rope(config, layer_type=SLIDING, scaled=False)
    layers = layers_by_type(config, types, rope(config, layer_type=FULL), local)
    return decoder(config, "olmo3", layers, reads=("sliding_window",), qk_norm="full", **biases(config))


_GEMMA_NAMES = Names(
    attention_post_norm="layers.{i}.post_attention_layernorm",
    mlp_norm="layers.{i}.pre_feedforward_layernorm",
    mlp_post_norm="layers.{i}.post_feedforward_layernorm",
)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(_llama),
    "mistral": Family(_mistral),
    "ministral": Family(_mistral),
    "smollm3": Family(_smollm3),
    "qwen2": Family(_qwen2),
    "qwen3": Family(_qwen3),
    "gemma2": Family(_gemma2, _GEMMA_NAMES),
    "gemma3_text": Family(_gemma3, _GEMMA_NAMES),
    "gemma4_text": Family(gemma4.gemma4, gemma4.NAMES),
    "phi3": Family(_phi3, Names(qkv="qkv_proj", gate_up="gate_up_proj")),
    "olmo2": Family(_olmo2, dense.POST_NORMS),
    "olmo3": Family(_olmo3, dense.POST_NORMS),
    "granite": Family(dense.granite),
    "granite_swa": Family(dense.granite_swa),
    "exaone4": Family(dense.exaone4, dense.POST_NORMS),
    "seed_oss": Family(dense.seed_oss),
    "glm4": Family(dense.glm4, dense.GLM4_NAMES),
    "ernie4_5": Family(dense.ernie4_5),
    "hunyuan_v1_dense": Family(dense.hunyuan, dense.HUNYUAN_NAMES),
    "ministral3": Family(dense.ministral3),
    "cohere2": Family(dense.cohere2, dense.COHERE_NAMES),
    "qwen3_moe": Family(qwen3_moe),
    "mellum": Family(mellum),
    "gpt_oss": Family(gpt_oss, Names(router="router")),
    "laguna": Family(laguna.laguna, laguna.NAMES),
    "muse_glimmer_text": Family(muse_glimmer.muse_glimmer, muse_glimmer.NAMES),
    "qwen3_5_text": Family(recurrent.qwen3_5),
    "qwen3_5_moe_text": Family(recurrent.qwen3_5_moe),
    "qwen3_next": Family(recurrent.qwen3_next, recurrent.NEXT_NAMES),
    "olmo_hybrid": Family(recurrent.olmo_hybrid, recurrent.OLMO_HYBRID_NAMES),
    "lfm2": Family(short_conv.lfm2, short_conv.LFM2_NAMES),
    "lfm2_moe": Family(short_conv.lfm2_moe, short_conv.LFM2_NAMES),
    "lfm3": Family(short_conv.lfm3, short_conv.LFM3_NAMES),
}
