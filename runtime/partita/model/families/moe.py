"""Families whose MLPs are experts: Qwen3-MoE, Mellum 2 and gpt-oss, from a Hugging Face config to `ModelConfig`.

Not here: how a checkpoint keeps experts (`checkpoint/experts.py`). The invariant is that of `model/families/parse.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ..config import ExpertsConfig, LayerConfig, ModelConfig
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
    optional_number,
    rope,
    window,
)

_COUNTS = ("num_experts", "num_local_experts")
CLAMPED = {"swiglu_limit": 7.0, "swiglu_alpha": 1.702}
"""The numbers of the one clamped activation there is (`Backend.glu`)."""


def qwen3_moe(config: Config) -> ModelConfig:
    """Qwen3MoeForCausalLM: Qwen3-30B-A3B, 235B-A22B and Coder. Layers may be dense by number or by period."""
    integer(config, "head_dim")  # not hidden_size / heads in this family
    slides = flag(config, "use_sliding_window")
    layer = LayerConfig(window(config) if slides else None, rope(config))
    attention = flag(config, "attention_bias")
    return decoder(
        config,
        "qwen3_moe",
        tuple(replace(layer, experts=sparse) for sparse in sparse_layers(config)),
        reads=(*_COUNTS, "sliding_window", "use_sliding_window"),
        qk_norm="head",
        attention_bias=attention,
        attention_out_bias=attention,
        experts=ExpertsConfig(
            experts(config),
            active(config),
            integer(config, "moe_intermediate_size"),
            normalize=flag(config, "norm_topk_prob"),
        ),
    )


def sparse_layers(config: Config) -> list[bool]:
    """Which layers have experts: every decoder_sparse_step-th, but for those in mlp_only_layers."""
    step = integer(config, "decoder_sparse_step") if config.get("decoder_sparse_step") is not None else 1
    dense: Any = config.get("mlp_only_layers") or []
    if not is_list(dense) or any(type(i) is not int for i in dense):
        raise CheckpointError(f"config.json: mlp_only_layers must be a list of layer numbers, got {dense!r}")
    return [i not in dense and (i + 1) % step == 0 for i in range(layer_count(config))]


def mellum(config: Config) -> ModelConfig:
    """MellumForCausalLM: Mellum 2, a Qwen3-MoE some of whose layers slide, each kind with its own rope."""
    types = layer_types(config, [FULL] * layer_count(config))
    slides = rope(config, layer_type=SLIDING) if SLIDING in types else None
    layers = layers_by_type(config, types, rope(config, layer_type=FULL), slides)
    sparse = sparse_by_name(config, ["sparse"] * len(layers))
    return decoder(
        config,
        "mellum",
        tuple(replace(layer, experts=has) for layer, has in zip(layers, sparse, strict=True)),
        reads=(*_COUNTS, "sliding_window"),
        qk_norm="head",
        experts=ExpertsConfig(
            experts(config),
            active(config),
            integer(config, "moe_intermediate_size"),
            normalize=flag(config, "norm_topk_prob"),
        ),
        **biases(config),
    )


def sparse_by_name(config: Config, default: list[str]) -> list[bool]:
    """Which layers have experts, where mlp_layer_types says it. default: where it is left out."""
    count, kinds = layer_count(config), config.get("mlp_layer_types") or default
    if not is_list(kinds) or len(kinds) != count or any(kind not in ("dense", "sparse") for kind in kinds):
        said = f'"dense" or "sparse" for each of {count} layers'
        raise CheckpointError(f"config.json: mlp_layer_types must say {said}, got {str(kinds)[:60]}")
    return [kind == "sparse" for kind in kinds]


def gpt_oss(config: Config) -> ModelConfig:
    """GptOssForCausalLM: every other layer slides; each head has a sink logit; experts, routers and q, k, v, o have
    biases; the weights of the chosen experts are a softmax over their scores alone."""
    for key, value in CLAMPED.items():
        said = optional_number(config, key)
        if said is not None and said != value:
            raise UnsupportedModel(f"config.json: {key} {said} is not supported for gpt_oss: only {value} is")
    types = layer_types(config, [SLIDING if i % 2 == 0 else FULL for i in range(layer_count(config))])
    attention = flag(config, "attention_bias", True)
    layers = layers_by_type(config, types, rope(config))
    return decoder(
        config,
        "gpt_oss",
        tuple(replace(layer, experts=True) for layer in layers),
        reads=(*_COUNTS, "sliding_window"),
        activation="swiglu_clamped",
        attention_bias=attention,
        attention_out_bias=attention,
        sink_logits=True,
        experts=ExpertsConfig(
            experts(config),
            active(config),
            integer(config, "intermediate_size"),
            score="softmax_chosen",
            bias=True,
        ),
    )


def experts(config: Config) -> int:
    """Both names are in use, in one family: num_experts in published files, num_local_experts in transformers 5's."""
    said = {integer(config, key) for key in _COUNTS if config.get(key) is not None}
    if len(said) > 1:
        raise CheckpointError(f"config.json: num_experts and num_local_experts are {sorted(said)}")
    return said.pop() if said else integer(config, _COUNTS[0])


def active(config: Config) -> int:
    chosen = integer(config, "num_experts_per_tok")
    if chosen > experts(config):
        raise CheckpointError(f"config.json: num_experts_per_tok {chosen} is more than there are, {experts(config)}")
    return chosen
