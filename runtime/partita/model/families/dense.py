"""Families of dense decoders that came later, from a Hugging Face config to `ModelConfig`: EXAONE 4, Seed-OSS, Granite
SWA, GLM-4, ERNIE 4.5, Hunyuan, Ministral 3 and Cohere 2.

Not here: the families that most others descend from (`parse`), those with experts (`moe`). The invariant is that of
`model/families/parse.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ..config import LayerConfig, ModelConfig, RopeConfig
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
    rope,
    table,
    window,
)
from ..weights import Names

POST_NORMS = Names(
    attention_norm=None,
    attention_post_norm="layers.{i}.post_attention_layernorm",
    mlp_norm=None,
    mlp_post_norm="layers.{i}.post_feedforward_layernorm",
)
GLM4_NAMES = Names(
    attention_post_norm="layers.{i}.post_self_attn_layernorm",
    mlp_post_norm="layers.{i}.post_mlp_layernorm",
    gate_up="gate_up_proj",
)
HUNYUAN_NAMES = Names(q_norm="query_layernorm", k_norm="key_layernorm")
COHERE_NAMES = Names(mlp_norm=None)


def exaone4(config: Config) -> ModelConfig:
    """Exaone4ForCausalLM: norms behind attention and MLP, as OLMo 2; where some layers slide, the global ones do not
    rotate (arXiv 2507.11407)."""
    turned, count = rope(config), layer_count(config)
    default = [FULL] * count
    if config.get("sliding_window") is not None and config.get("layer_types") is None:
        default = _pattern(config, count)
    types = layer_types(config, default)
    layers = layers_by_type(config, types, turned)
    if config.get("sliding_window") is not None:
        layers = tuple(replace(each, rope=None) if each.window is None else each for each in layers)
    return decoder(config, "exaone4", layers, reads=("sliding_window",), qk_norm="head")


def _pattern(config: Config, count: int) -> list[str]:
    """sliding_window_pattern: a period whose last layer is global, or its letters, "LLLG"; the last layer is global."""
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        types = [FULL if pattern[i % len(pattern)] == "G" else SLIDING for i in range(count)]
        return [*types[:-1], FULL]
    period = integer(config, "sliding_window_pattern")
    return [FULL if (i + 1) % period == 0 else SLIDING for i in range(count)]


def seed_oss(config: Config) -> ModelConfig:
    """SeedOssForCausalLM: a Llama whose queries, keys and values have biases, and whose output has one of its own."""
    layers = (LayerConfig(None, rope(config)),) * layer_count(config)
    return decoder(
        config,
        "seed_oss",
        layers,
        attention_bias=flag(config, "attention_bias", True),
        attention_out_bias=flag(config, "attention_out_bias"),
        mlp_bias=flag(config, "mlp_bias"),
    )


def granite(config: Config) -> ModelConfig:
    """GraniteForCausalLM: Granite 3.x, a Llama with four multipliers."""
    return _granite(config, "granite", (LayerConfig(None, rope(config)),) * layer_count(config))


def granite_swa(config: Config) -> ModelConfig:
    """GraniteSWAForCausalLM: a Granite with short windows, sink logits, and a rope base for each layer (0: none)."""
    count = layer_count(config)
    types = layer_types(config, [FULL if i % 4 == 0 else SLIDING for i in range(count)])
    turned = rope(config)
    bases: Any = config.get("layer_rope_theta")
    if bases is None:
        bases = [turned.theta] * count
    if not is_list(bases) or len(bases) != count:
        raise CheckpointError(f"config.json: layer_rope_theta must be a list of {count} numbers, got {str(bases)[:60]}")
    layers = tuple(
        replace(
            layer,
            rope=None if base == 0 else replace(turned, theta=number({"layer_rope_theta": base}, "layer_rope_theta")),
        )
        for layer, base in zip(layers_by_type(config, types, turned), bases, strict=True)
    )
    return _granite(config, "granite_swa", layers, reads=("sliding_window", "layer_rope_theta"), sink_logits=True)


def _granite(
    config: Config, model_type: str, layers: tuple[LayerConfig, ...], reads: tuple[str, ...] = (), **fields: Any
) -> ModelConfig:
    multipliers = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
    attention, embedding, residual, logits = (number(config, key) for key in multipliers)
    return decoder(
        config,
        model_type,
        layers,
        reads=(*multipliers, *reads),
        attention_scale=attention,
        embedding_scale=embedding,
        residual_scale=residual,
        logit_scale=1 / logits,
        **biases(config),
        **fields,
    )


def glm4(config: Config) -> ModelConfig:
    """Glm4ForCausalLM: GLM-4-0414. Norms on both sides of attention and MLP; half of each head rotates, in pairs of
    neighbours."""
    turned = rope({"partial_rotary_factor": 0.5, **config}, neighbours=True)
    layers = (LayerConfig(None, turned),) * layer_count(config)
    return decoder(config, "glm4", layers, attention_bias=flag(config, "attention_bias", True))


def ernie4_5(config: Config) -> ModelConfig:
    """Ernie4_5ForCausalLM: a Llama that rotates pairs of neighbours; use_bias means every projection."""
    layers = (LayerConfig(None, rope(config, neighbours=True)),) * layer_count(config)
    bias = flag(config, "use_bias")
    return decoder(
        config,
        "ernie4_5",
        layers,
        reads=("use_bias",),
        tied=True,
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=bias,
    )


def hunyuan(config: Config) -> ModelConfig:
    """HunYuanDenseV1ForCausalLM: queries and keys are normed after rotation; "dynamic" rope with an `alpha` is a larger
    base, the same for every length."""
    bias = flag(config, "attention_bias")
    if config.get("use_qk_norm") is False:
        raise UnsupportedModel("config.json: use_qk_norm false is not supported for hunyuan_v1_dense")
    return decoder(
        config,
        "hunyuan_v1_dense",
        (LayerConfig(None, rope(_with_alpha(config))),) * layer_count(config),
        reads=("use_qk_norm",),
        qk_norm="rotated",
        attention_bias=bias,
        attention_out_bias=bias,
    )


def _with_alpha(config: Config) -> Config:
    """The config with "dynamic" and `alpha` said as a rope base."""
    for key in ("rope_parameters", "rope_scaling"):
        parameters = table(config, key)
        if parameters.get("rope_type", parameters.get("type")) != "dynamic" or not parameters.get("alpha"):
            continue
        dims = integer(config, "head_dim")
        if dims <= 2:
            raise CheckpointError(f"config.json: head_dim must be > 2 with a dynamic rope, got {dims}")
        base = number(parameters if parameters.get("rope_theta") is not None else config, "rope_theta")
        stretched = base * number(parameters, "alpha") ** (dims / (dims - 2))
        plain = {"rope_type": "default", "rope_theta": stretched}
        return {**config, "rope_parameters": plain, "rope_scaling": None}
    return config


def ministral3(config: Config) -> ModelConfig:
    """Ministral3ForCausalLM: Ministral 3 and Devstral 2. A Mistral with yarn whose queries grow with their position."""
    plain, growth, original = dict(config), 0.0, 0
    for key in ("rope_parameters", "rope_scaling"):
        parameters = table(config, key)
        if parameters.get("llama_4_scaling_beta") is None:
            continue
        growth = number(parameters, "llama_4_scaling_beta")
        original = integer(parameters, "original_max_position_embeddings")
        plain[key] = {name: value for name, value in parameters.items() if name != "llama_4_scaling_beta"}
    turned = rope(plain)
    if growth:
        turned = replace(turned, query_growth=growth, original_max_positions=original)
    layers = (LayerConfig(window(config), turned),) * layer_count(config)
    return decoder(config, "ministral3", layers, reads=("sliding_window",), **biases(config))


def cohere2(config: Config) -> ModelConfig:
    """Cohere2ForCausalLM: Command R7B, Command A. Attention and MLP read one layer norm and are added together; sliding
    layers rotate pairs of neighbours, the global ones do not rotate."""
    count = layer_count(config)
    period = 4 if config.get("sliding_window_pattern") is None else integer(config, "sliding_window_pattern")
    types = layer_types(config, [FULL if (i + 1) % period == 0 else SLIDING for i in range(count)])
    turned: RopeConfig = rope(config, neighbours=True)
    layers = tuple(
        replace(layer, rope=None) if kind == FULL else layer
        for kind, layer in zip(types, layers_by_type(config, types, turned), strict=True)
    )
    bias = flag(config, "attention_bias")
    return decoder(
        config,
        "cohere2",
        layers,
        reads=("sliding_window", "logit_scale"),
        eps_key="layer_norm_eps",
        tied=True,
        norm_centred=True,
        parallel=True,
        logit_scale=number(config, "logit_scale"),
        attention_bias=bias,
        attention_out_bias=bias,
    )
