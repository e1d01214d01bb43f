"""Fields of a Hugging Face config, read and checked: what the families' parse functions are made of.

Not here: what a family is (`model/families/parse.py`). Invariant: a value that is missing, malformed or changes the
mathematics in a way that is not implemented raises an error that names the field; nothing is guessed, least of all a
rope base.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard, cast

from ..errors import CheckpointError, UnsupportedModel
from .config import LayerConfig, ModelConfig, RopeConfig

Config = Mapping[str, Any]
MAX_LAYERS = 4096
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}

# Fields that change the mathematics of some family: each one reads its own, and refuses the others.
_MATHEMATICS = (
    "attention_chunk_size",
    "attention_multiplier",
    "attn_output_gate",
    "attn_logit_softcapping",
    "block_ff_dim",
    "clip_qkv",
    "conv_L_cache",
    "conv_bias",
    "embedding_multiplier",
    "final_logit_softcapping",
    "first_k_dense_replace",
    "gating",
    "hidden_size_per_layer_input",
    "layer_rope_theta",
    "linear_allow_neg_eigval",
    "logit_scale",
    "logits_scaling",
    "moe_apply_router_weight_on_input",
    "moe_routed_scaling_factor",
    "moe_router_logit_softcapping",
    "n_routed_experts",
    "no_rope_layers",
    "num_attention_heads_per_layer",
    "num_dense_layers",
    "num_experts",
    "num_kv_shared_layers",
    "num_local_experts",
    "n_shared_experts",
    "output_multiplier",
    "post_norm_eps",
    "qk_layernorm",
    "qk_scale_factor",
    "qkv_bias",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "routed_scaling_factor",
    "rope_local_base_freq",
    "shared_expert_intermediate_size",
    "sliding_window",
    "use_bias",
    "use_attention_gate",
    "use_bidirectional_attention",
    "use_expert_bias",
    "use_mrope",
    "use_qk_norm",
    "use_sandwich_norm",
    "use_sliding_window",
)

_ROPE_FIELDS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "factors": frozenset({"factors", "tensor"}),
    "yarn": frozenset(
        {"factor", "attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate", "finetuned"}
    ),
    "longrope": frozenset({"factor", "attention_factor", "short_factor", "long_factor"}),
    "proportional": frozenset({"factor"}),
}
_ROPE_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}


def integer(config: Config, key: str) -> int:
    """Every integer of a config is a size or a count."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise CheckpointError(f"config.json: {key} must be an integer >= 1, got {value!r}")
    return value


def number(config: Config, key: str) -> float:
    """Every number of a config is a scale, a base or a small addend: finite and above 0."""
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e38:
        raise CheckpointError(f"config.json: {key} must be a number > 0, got {value!r}")
    return float(value)


def optional_integer(config: Config, key: str) -> int | None:
    return None if config.get(key) is None else integer(config, key)


def optional_number(config: Config, key: str) -> float | None:
    return None if config.get(key) is None else number(config, key)


def flag(config: Config, key: str, default: bool = False) -> bool:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} must be true or false, got {value!r}")
    return value


def table(config: Config, key: str) -> Config:
    """A table within a config; an empty one where there is none."""
    value = config.get(key)
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {key} must be a table, got {value!r}")
    return cast(Config, value)


def numbers(config: Config, key: str, count: int) -> tuple[float, ...]:
    """A list of `count` numbers, each finite and above 0."""
    value = config.get(key)
    if not _is_sequence(value) or len(value) != count:
        raise CheckpointError(f"config.json: {key} must be a list of {count} numbers, got {str(value)[:60]}")
    return tuple(number({key: item}, key) for item in value)


def is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def activation(config: Config, key: str) -> str:
    name = config.get(key)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UnsupportedModel(f"config.json: {key} {name!r} is not supported")
    return _ACTIVATIONS[name]


def refuse(config: Config, keys: Iterable[str]) -> None:
    """Raise UnsupportedModel for a field that would change the mathematics of this family."""
    for key in keys:
        if config.get(key):
            raise UnsupportedModel(
                f"config.json: {key} {config[key]!r} is not supported for {config.get('model_type')}"
            )


def biases(config: Config) -> dict[str, Any]:
    """The fields of Llama and most others: attention_bias means all four projections."""
    attention = flag(config, "attention_bias")
    return {"attention_bias": attention, "attention_out_bias": attention, "mlp_bias": flag(config, "mlp_bias")}


def head_dim(config: Config) -> int:
    """The config's own, or the hidden size over the heads."""
    said = optional_integer(config, "head_dim")
    if said is not None:
        return said
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    if hidden < heads:
        raise CheckpointError(f"config.json: hidden_size {hidden} is less than num_attention_heads {heads}")
    return hidden // heads


def decoder(
    config: Config,
    model_type: str,
    layers: tuple[LayerConfig, ...],
    *,
    reads: Iterable[str] = (),
    activation_key: str = "hidden_act",
    eps_key: str = "rms_norm_eps",
    tied: bool = False,
    **fields: Any,
) -> ModelConfig:
    """A decoder from the fields that every family has, and this family's own.

    reads: fields of `_MATHEMATICS` that the family has read; any other that is set is refused. tied: what the family's
    files mean where they leave tie_word_embeddings out. fields: of `ModelConfig`, overriding the common ones.
    """
    refuse(config, sorted(set(_MATHEMATICS) - set(reads)))
    longest = _trained_maximum(config, layers)
    heads = integer(config, "num_attention_heads")
    common: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": integer(config, "vocab_size"),
        "hidden_size": integer(config, "hidden_size"),
        "intermediate_size": 0 if "intermediate_size" in fields else integer(config, "intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": optional_integer(config, "num_key_value_heads") or heads,
        "head_dim": head_dim(config),
        "layers": tuple(
            replace(layer, window=None) if layer.window is not None and layer.window >= longest else layer
            for layer in layers
        ),
        "max_positions": longest,
        "norm_eps": number(config, eps_key),
        "attention_scale": head_dim(config) ** -0.5,
        "activation": "" if "activation" in fields else activation(config, activation_key),
        "tie_embeddings": flag(config, "tie_word_embeddings", tied),
    }
    return ModelConfig(**{**common, **fields})


def _trained_maximum(config: Config, layers: Sequence[LayerConfig]) -> int:
    """max_position_embeddings; where yarn was switched on by hand, that is often still the length before."""
    yarn = {layer.rope for layer in layers if layer.rope is not None and layer.rope.scaling == "yarn"}
    extended = (int(min(rope.factor * rope.original_max_positions, 2**31 - 1)) for rope in yarn)
    return max(integer(config, "max_position_embeddings"), *extended, 1)


def layer_count(config: Config) -> int:
    count = integer(config, "num_hidden_layers")
    if count > MAX_LAYERS:
        raise CheckpointError(f"config.json: num_hidden_layers must be <= {MAX_LAYERS}, got {count}")
    return count


def layer_types(
    config: Config, default: Sequence[str] | None = None, *, known: Sequence[str] = (FULL, SLIDING)
) -> list[str]:
    """What every layer is, of the `known` kinds. default: what the family's older files mean."""
    count, types = layer_count(config), config.get("layer_types")
    if types is None:
        types = default
    if types is None:
        raise CheckpointError("config.json: layer_types does not say which layers slide")
    if not is_list(types):
        raise CheckpointError(f"config.json: layer_types must be a list, got {types!r}")
    if len(types) != count:
        raise CheckpointError(f"config.json: layer_types names {len(types)} layers, num_hidden_layers says {count}")
    for name in types:
        if not isinstance(name, str) or name not in known:
            raise UnsupportedModel(f"config.json: layer type {name!r} is not supported")
    return list(types)


def window(config: Config) -> int | None:
    """sliding_window; None for full attention, which `decoder` makes of a window as long as the trained maximum."""
    return optional_integer(config, "sliding_window")


def layers_by_type(
    config: Config, types: Sequence[str], rope: RopeConfig, sliding_rope: RopeConfig | None = None
) -> tuple[LayerConfig, ...]:
    """Layers of two kinds, by name. sliding_rope: the sliding layers' own, if they have one."""
    if SLIDING in types:
        integer(config, "sliding_window")
    kinds = {FULL: LayerConfig(None, rope), SLIDING: LayerConfig(window(config), sliding_rope or rope)}
    return tuple(kinds[name] for name in types)


def rope(
    config: Config,
    *,
    layer_type: str | None = None,
    theta: str = "rope_theta",
    scaled: bool = True,
    neighbours: bool = False,
) -> RopeConfig:
    """Rope parameters, from `rope_parameters` (transformers 5; per layer type in some) or `rope_theta`/`rope_scaling`.

    layer_type: for families whose `rope_parameters` differ by it. theta: the older field of this kind's base. scaled:
    whether the older `rope_scaling` belongs to this kind. neighbours: whether pairs of neighbours rotate. A missing
    base is an error: a wrong one reads well for thousands of tokens and then collapses.
    """
    parameters = _rope_table(config, layer_type, theta, scaled)
    kind = _rope_kind(config, parameters)
    refuse(
        {**parameters, "model_type": f"rope_type {kind!r}"}, sorted(set(parameters) - _ROPE_FIELDS[kind] - _ROPE_COMMON)
    )
    base = number(parameters, "rope_theta")
    partial = {"partial_rotary_factor": config.get("partial_rotary_factor") or 1.0, **parameters}
    dims = int(head_dim(config) * min(number(partial, "partial_rotary_factor"), 1.0)) // 2 * 2
    if dims == 0:
        raise CheckpointError("config.json: partial_rotary_factor leaves no dimension to rotate")
    return replace(_scaled(config, parameters, kind, base, dims), neighbours=neighbours)


def _scaled(config: Config, parameters: Config, kind: str, base: float, dims: int) -> RopeConfig:
    match kind:
        case "default":
            return RopeConfig(base, dims)
        case "linear":
            return RopeConfig(base, dims, kind, number(parameters, "factor"))
        case "llama3":
            return RopeConfig(
                base,
                dims,
                kind,
                number(parameters, "factor"),
                number(parameters, "low_freq_factor"),
                number(parameters, "high_freq_factor"),
                integer(parameters, "original_max_position_embeddings"),
            )
        case "factors":
            return RopeConfig(base, dims, kind, factors=numbers(parameters, "factors", dims // 2))
        case "yarn":
            return _yarn(config, parameters, base, dims)
        case "proportional":  # frequencies are those of whole heads, of which the first part turns
            size, factor = head_dim(config), optional_number(parameters, "factor") or 1.0
            still = (math.inf,) * (size // 2 - dims // 2)
            return RopeConfig(base, size, "factors", factors=(factor,) * (dims // 2) + still)
        case _:
            return _longrope(config, parameters, base, dims)


def _rope_table(config: Config, layer_type: str | None, theta: str, scaled: bool) -> Config:
    """One flat table with rope_theta and whatever scaling there is."""
    parameters = table(config, "rope_parameters")
    scaling: Config = table(config, "rope_scaling") if scaled else {}
    if layer_type is not None and parameters:
        if layer_type not in parameters and config.get(theta) is None:
            raise CheckpointError(f"config.json: rope_parameters has no {layer_type!r}")
        parameters = table(parameters, layer_type)
    if scaling:  # what transformers prefers where a file has both
        parameters = {**scaling, "rope_theta": scaling.get("rope_theta", parameters.get("rope_theta"))}
    if parameters.get("rope_theta") is None:
        if config.get(theta) is None:
            raise CheckpointError(f"config.json: {theta} is missing, and rope_parameters has no rope_theta")
        parameters = {**parameters, "rope_theta": config[theta]}
    return parameters


def _rope_kind(config: Config, parameters: Config) -> str:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if config.get("model_type") == "phi3" and kind in ("su", "yarn"):  # longrope's earlier names in this family
        kind = "longrope"
    if not isinstance(kind, str) or kind not in _ROPE_FIELDS:
        raise UnsupportedModel(f"config.json: rope_type {kind!r} is not supported")
    return kind


def _original(config: Config, parameters: Config) -> int:
    """The context before scaling: said beside the rope parameters, in them, or by the trained maximum."""
    for place in (config, parameters):
        if place.get("original_max_position_embeddings") is not None:
            return integer(place, "original_max_position_embeddings")
    return integer(config, "max_position_embeddings")


def _extension(config: Config, parameters: Config, original: int) -> float:
    said = optional_number(parameters, "factor")
    return integer(config, "max_position_embeddings") / original if said is None else said


def _yarn(config: Config, parameters: Config, base: float, dims: int) -> RopeConfig:
    """arXiv 2309.00071; the attention factor is 0.1 ln(factor) + 1 unless mscale (DeepSeek's) or the file say so."""
    if base <= 1:
        raise CheckpointError(f"config.json: rope_theta must be > 1 for yarn, got {base}")
    original = _original(config, parameters)
    factor = _extension(config, parameters, original)

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention = optional_number(parameters, "attention_factor")
    if attention is None:
        attention = mscale(1.0)
        if parameters.get("mscale") and parameters.get("mscale_all_dim"):
            attention = mscale(number(parameters, "mscale")) / mscale(number(parameters, "mscale_all_dim"))
    return RopeConfig(
        base,
        dims,
        "yarn",
        factor,
        original_max_positions=original,
        attention_factor=attention,
        beta_fast=optional_number(parameters, "beta_fast") or 32.0,
        beta_slow=optional_number(parameters, "beta_slow") or 1.0,
        truncate=flag(parameters, "truncate", True),
    )


def _longrope(config: Config, parameters: Config, base: float, dims: int) -> RopeConfig:
    """arXiv 2402.13753; the attention factor is sqrt(1 + ln(factor) / ln(original)) unless the file says one."""
    original = _original(config, parameters)
    factor = _extension(config, parameters, original)
    attention = optional_number(parameters, "attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(max(original, 2)))
    return RopeConfig(
        base,
        dims,
        "longrope",
        factor,
        original_max_positions=original,
        factors=numbers(parameters, "short_factor", dims // 2),
        long_factors=numbers(parameters, "long_factor", dims // 2),
        attention_factor=attention,
    )
