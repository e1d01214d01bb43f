"""Families most of whose layers remember by the gated delta rule, from a Hugging Face config to `ModelConfig`: Qwen3.5
(3.6 and 3.8 are the same), Qwen3-Next and Olmo Hybrid.

Not here: the layers (`model/mixers/`), how experts are kept (`checkpoint/experts.py`). The invariant is that of
`model/families/parse.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ..config import DeltaConfig, ExpertsConfig, GateConfig, LayerConfig, ModelConfig, RopeConfig
from ..config_fields import (
    FULL,
    LINEAR,
    Config,
    activation,
    biases,
    decoder,
    flag,
    integer,
    layer_count,
    layer_types,
    number,
    optional_integer,
    rope,
    table,
)
from ..weights import DeltaNames, LayerNorms, Names
from . import moe

OF_PICTURES = frozenset({"mrope_section", "mrope_interleaved"})
"""Each part of a picture has three positions; those of a text are equal."""
PARTIAL = 0.25  # of a head that rotates, where a config does not say it
NEXT_NAMES = Names(delta=DeltaNames(inputs=(("qkvz", "in_proj_qkvz"), ("ba", "in_proj_ba"))))
OLMO_HYBRID_NAMES = Names(
    attention_norm=None,
    attention_post_norm="layers.{i}.post_attention_layernorm",
    mlp_norm=None,
    mlp_post_norm="layers.{i}.post_feedforward_layernorm",
    delta=DeltaNames(
        inputs=(("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("z", "g_proj"), ("b", "b_proj"), ("a", "a_proj")),
        conv=(("conv_q", "q_conv1d"), ("conv_k", "k_conv1d"), ("conv_v", "v_conv1d")),
        norm="o_norm",
        out="o_proj",
        norms=LayerNorms("layers.{i}.attention_layer_norm", mlp_norm="layers.{i}.feedforward_layer_norm"),
    ),
)


def qwen3_5(config: Config) -> ModelConfig:
    """Qwen3_5ForCausalLM, the text decoder of Qwen3.5, 3.6 and 3.8."""
    return _qwen(config, "qwen3_5_text", _layers(config))


def qwen3_5_moe(config: Config) -> ModelConfig:
    """Qwen3_5MoeForCausalLM: every MLP is experts, whose weights come to one, and one that is shared."""
    layers = tuple(replace(layer, experts=True) for layer in _layers(config))
    return _qwen(
        config,
        "qwen3_5_moe_text",
        layers,
        reads=_MOE_READS,
        intermediate_size=integer(config, "moe_intermediate_size"),
        experts=_experts(config, normalize=True),
    )


def qwen3_next(config: Config) -> ModelConfig:
    """Qwen3NextForCausalLM: Qwen3-Next and Qwen3-Coder-Next. Layers may be dense by number or by period."""
    sparse = moe.sparse_layers(config)
    layers = tuple(replace(layer, experts=has) for layer, has in zip(_layers(config), sparse, strict=True))
    experts = _experts(config, normalize=flag(config, "norm_topk_prob", True)) if any(sparse) else None
    return _qwen(config, "qwen3_next", layers, reads=_MOE_READS, experts=experts)


def olmo_hybrid(config: Config) -> ModelConfig:
    """OlmoHybridForCausalLM: attention as in Olmo 2, which rotates where a base is given; a token may turn over what a
    key holds."""
    said = table(config, "rope_parameters").get("rope_theta") or config.get("rope_theta")
    turned, types = rope(config) if said else None, _types(config)
    turns_over = flag(config, "linear_allow_neg_eigval", True)
    delta = _delta(config, types, norm_eps=1e-5, beta_scale=2.0 if turns_over else 1.0)
    return decoder(
        config,
        "olmo_hybrid",
        _layers_of(types, turned, delta),
        reads=("linear_allow_neg_eigval",),
        qk_norm="full",
        **biases(config),
    )


_MOE_READS = ("num_experts", "shared_expert_intermediate_size")


def _qwen(
    config: Config, model_type: str, layers: tuple[LayerConfig, ...], *, reads: Sequence[str] = (), **fields: Any
) -> ModelConfig:
    """What they share: attention is gated, norms add one."""
    if not flag(config, "attn_output_gate", True):
        raise UnsupportedModel(f"config.json: attn_output_gate false is not supported for {config.get('model_type')}")
    integer(config, "head_dim")  # not hidden_size / heads in this family
    attention = flag(config, "attention_bias")
    return decoder(
        config,
        model_type,
        layers,
        reads=("attn_output_gate", *reads),
        norm_adds_one=True,
        qk_norm="head",
        attention_gate=GateConfig(),
        attention_bias=attention,
        attention_out_bias=attention,
        **fields,
    )


def _experts(config: Config, *, normalize: bool) -> ExpertsConfig:
    return ExpertsConfig(
        moe.experts(config),
        moe.active(config),
        integer(config, "moe_intermediate_size"),
        normalize=normalize,
        shared_size=integer(config, "shared_expert_intermediate_size"),
        shared_gate=True,
    )


def _layers(config: Config) -> tuple[LayerConfig, ...]:
    parameters = {k: v for k, v in table(config, "rope_parameters").items() if k not in OF_PICTURES}
    scaling = {k: v for k, v in table(config, "rope_scaling").items() if k not in OF_PICTURES}
    of_text = {"partial_rotary_factor": PARTIAL, **config, "rope_parameters": parameters, "rope_scaling": scaling}
    types = _types(config)
    return _layers_of(types, rope(of_text), _delta(config, types, norm_eps=number(config, "rms_norm_eps")))


def _types(config: Config) -> list[str]:
    """One layer in four attends, if nothing else is said."""
    period = optional_integer(config, "full_attention_interval") or 4
    default = [LINEAR if (i + 1) % period else FULL for i in range(layer_count(config))]
    return layer_types(config, default, known=(FULL, LINEAR))


def _layers_of(types: Sequence[str], turned: RopeConfig | None, delta: DeltaConfig | None) -> tuple[LayerConfig, ...]:
    kinds = {FULL: LayerConfig(None, turned), LINEAR: LayerConfig(None, None, mixer=delta)}
    return tuple(kinds[name] for name in types)


def _delta(config: Config, types: Sequence[str], *, norm_eps: float, beta_scale: float = 1.0) -> DeltaConfig | None:
    """Of the layers that are not attention; None where there are none."""
    if LINEAR not in types:
        return None
    if activation(config, "hidden_act") != "silu":
        raise UnsupportedModel(f"config.json: hidden_act {config['hidden_act']!r} is not supported for {LINEAR} layers")
    sizes = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    delta = DeltaConfig(*(integer(config, f"linear_{key}") for key in sizes), norm_eps=norm_eps, beta_scale=beta_scale)
    if delta.value_heads % delta.key_heads:
        raise CheckpointError(
            f"config.json: linear_num_value_heads {delta.value_heads} do not divide over linear_num_key_heads "
            f"{delta.key_heads}"
        )
    return delta
