"""GGUF's keys and tensor names said in Hugging Face's words.

Not here: reading files, the table of architectures (`architectures`), or what a config means for the mathematics
(that is `families`' work). Invariant: an architecture, a tensor or a rope scaling that has no row is refused by name.

Every architecture: no `output.weight` means that the head is the embedding. `rope_freqs.weight` holds one divisor for
each rotated pair; the config names it as rope_scaling = {"rope_type": "factors", "tensor": ...}, and
`with_rope_tensors` adds its values as "factors". `rope_factors_short.weight` and `_long` are longrope's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedModel
from ...files.bounded import is_list
from .architectures import ARCHITECTURES, Architecture
from .extensions import FULL, SLIDING, usual_attention_factor
from .keys import Keys, shortest
from .parts import BARE_NAMES, CONSTANTS, LONG_FACTORS, NEVER, ROPE_FACTORS, SHORT_FACTORS, read_as

# config field: (key after "<architecture>.", type, default; ... means that the key must be there)
_COMMON: dict[str, tuple[str, type, Any]] = {
    "hidden_size": ("embedding_length", int, ...),
    "intermediate_size": ("feed_forward_length", int, ...),
    "num_hidden_layers": ("block_count", int, ...),
    "num_attention_heads": ("attention.head_count", int, ...),
    "num_key_value_heads": ("attention.head_count_kv", int, None),
    "head_dim": ("attention.key_length", int, None),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon", float, ...),
    "max_position_embeddings": ("context_length", int, ...),
}
_TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
# field of generation_config.json: key
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
# keys that change the mathematics of some architecture: each one reads its own, and refuses the others
_MATHEMATICS = (
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.scaling.alpha",
    "rope.scaling.yarn_log_multiplier",
)


# `general.type` of files that hold no language model: what each is, and what to give instead
_OTHER_TYPES = {
    "adapter": "a LoRA adapter in GGUF, which is not read; give the adapter's PEFT or mlx-lm folder",
    "imatrix": "an importance matrix, not a model; `convert(SOURCE, DEST, imatrix=FILE)` reads it",
    "mmproj": "the projector of a vision or audio model; give the file of the language model",
}


def architecture(metadata: Mapping[str, Any]) -> Architecture:
    """The row for this file's `general.architecture`; UnsupportedModel names one that has none."""
    if (other := _OTHER_TYPES.get(str(metadata.get("general.type")))) is not None:
        raise UnsupportedModel(other)
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise CheckpointError("the GGUF metadata lacks general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"GGUF architecture {name!r} is not implemented; these are: {known}")
    return ARCHITECTURES[name]


def config_from(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A Hugging Face config.json as a dict. tensors: GGUF name to shape in numpy's order."""
    row = architecture(metadata)
    keys = Keys(metadata, metadata["general.architecture"], tensors)
    config: dict[str, Any] = {"model_type": row.model_type, "architectures": [row.class_name]}
    for name, spec in {**_COMMON, **row.fields}.items():
        config[name] = keys.each(*spec) if name in row.by_layer else keys.get(*spec)
    config["num_hidden_layers"] -= _predicting(keys, row, config["num_hidden_layers"])
    _refuse(keys, row)
    _complete_heads(keys, row, config)
    if "token_embd.weight" not in tensors:
        raise CheckpointError("the file lacks the tensor token_embd.weight")
    config["vocab_size"] = tensors["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config |= {**row.constants, **_rope(keys, row, config)}
    if row.period is not None:
        config["layer_types"] = _layer_types(keys, config["num_hidden_layers"], row.period)
    return row.extend(keys, config | _token_ids(metadata))


def _predicting(keys: Keys, row: Architecture, blocks: int) -> int:
    """How many of the last blocks predict further tokens, and are not the model's."""
    count = keys.get("nextn_predict_layers", int, 0) if row.predicts else 0
    if count and count >= blocks:
        raise CheckpointError(f"{keys.prefix}.nextn_predict_layers says {count} of {blocks} layers")
    return count


def _layer_types(keys: Keys, layers: int, usual: int) -> list[str]:
    """A pattern is a period (the last of each period is global, 0: none) or one truth value a layer (true: sliding).
    usual: the architecture's."""
    pattern = keys.metadata.get(f"{keys.prefix}.attention.sliding_window_pattern", usual)
    if is_list(pattern):
        if len(pattern) != layers:
            raise CheckpointError(f"the sliding window pattern has {len(pattern)} items for {layers} layers")
        sliding = [bool(item) for item in pattern]
    elif type(pattern) is int and pattern >= 0:
        sliding = [pattern == 0 or (layer + 1) % pattern != 0 for layer in range(layers)]
    else:
        raise CheckpointError(f"the sliding window pattern is {pattern!r}")
    return [SLIDING if item else FULL for item in sliding]


def _refuse(keys: Keys, row: Architecture) -> None:
    read = {key for key, _, _ in row.fields.values()}
    for key in _MATHEMATICS:
        if key not in read and keys.get(key, float, 0.0):
            what = "experts in this architecture are" if key == "expert_count" else f"{keys.prefix}.{key} is"
            raise UnsupportedModel(f"{keys.prefix}: {what} not implemented in GGUF form; use the model's folder")


def _complete_heads(keys: Keys, row: Architecture, config: dict[str, Any]) -> None:
    heads, width, layers = config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]
    if not 0 < heads <= width or not 0 < layers <= len(keys.tensors):
        raise CheckpointError(
            f"{layers} layers of {heads} heads and width {width} do not go with {len(keys.tensors)} tensors"
        )
    config["num_key_value_heads"] = config["num_key_value_heads"] or (
        [heads] * layers if "num_key_value_heads" in row.by_layer else heads
    )
    config["head_dim"] = config["head_dim"] or width // heads
    if (value_length := keys.get("attention.value_length", int, config["head_dim"])) != config["head_dim"]:
        raise UnsupportedModel(
            f"values of {value_length} and keys of {config['head_dim']} dimensions are not implemented"
        )


def generation_config_from(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A generation_config.json as a dict: ids of control tokens, and how the model's makers recommend to sample."""
    found = {name: metadata.get(key) for name, key in SAMPLING_KEYS.items()}
    sampling = {
        name: shortest(value) if isinstance(value, float) else value
        for name, value in found.items()
        if isinstance(value, int | float)
    }
    return _token_ids(metadata) | sampling


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """bos, eos and pad ids. A file that names ends of a turn or message beside its end of text gives all of them as
    `eos_token_id`."""
    ids: dict[str, Any] = {
        field: value
        for field, key in _TOKEN_IDS.items()
        if isinstance(value := metadata.get(f"tokenizer.ggml.{key}"), int)
    }
    ends = [ids.get("eos_token_id"), *(metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom"))]
    ends = list(dict.fromkeys(end for end in ends if isinstance(end, int)))
    if len(ends) > 1 and "eos_token_id" in ids:
        ids["eos_token_id"] = ends
    return ids


def _rope(keys: Keys, row: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling, and what they need beside them."""
    fields = {"rope_theta": keys.get("rope.freq_base", float, row.theta), "rope_scaling": _rope_scaling(keys)}
    rotated = keys.get("rope.dimension_count", int, config["head_dim"])
    if rotated != config["head_dim"]:
        if row.permuted:  # the permutation pairs dims half a head apart, the rotation those half of its dims apart
            raise UnsupportedModel(
                f"{keys.prefix}: rotation of {rotated} of {config['head_dim']} dims is not implemented"
            )
        fields["partial_rotary_factor"] = rotated / config["head_dim"]
    if (fields["rope_scaling"] or {}).get("rope_type") == "longrope":
        length = keys.get("rope.scaling.original_context_length", int, config["max_position_embeddings"])
        fields["original_max_position_embeddings"] = length
    return fields


def _rope_scaling(keys: Keys) -> dict[str, Any] | None:
    kind = keys.get("rope.scaling.type", str, "none")
    factor = keys.get("rope.scaling.factor", float, None) or keys.get("rope.scale_linear", float, None)
    unscaled = kind == "none" or (kind == "linear" and factor in (None, 1.0))
    if LONG_FACTORS in keys.tensors or SHORT_FACTORS in keys.tensors:
        if not (unscaled or kind == "longrope"):
            raise UnsupportedModel(f"rope scaling {kind!r} together with {LONG_FACTORS} is not implemented")
        for name in (LONG_FACTORS, SHORT_FACTORS):
            if name not in keys.tensors:
                raise CheckpointError(f"the file lacks the tensor {name}")
        attention = keys.get("rope.scaling.attn_factor", float, 1.0)
        return {"rope_type": "longrope", "type": "longrope", "attention_factor": attention}
    if ROPE_FACTORS in keys.tensors:
        if not unscaled:
            raise UnsupportedModel(f"rope scaling {kind!r} together with {ROPE_FACTORS} is not implemented")
        return {"rope_type": "factors", "tensor": ROPE_FACTORS}
    if unscaled:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedModel(f"rope scaling {kind!r} is not implemented for GGUF files without its factors")
    if factor is None:
        raise CheckpointError(f"the GGUF metadata lacks {keys.prefix}.rope.scaling.factor")
    return _yarn(keys, factor)


def _yarn(keys: Keys, factor: float) -> dict[str, Any]:
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.get("rope.scaling.original_context_length", int),
        "beta_fast": keys.get("rope.scaling.yarn_beta_fast", float, 32.0),
        "beta_slow": keys.get("rope.scaling.yarn_beta_slow", float, 1.0),
    }
    # GGUF's factor multiplies the usual attention factor, Hugging Face's replaces it
    if (extra := keys.get("rope.scaling.attn_factor", float, 1.0)) != 1.0:
        scaling["attention_factor"] = extra * usual_attention_factor(factor)
    return scaling


def with_rope_tensors(config: dict[str, Any], read: Callable[[str], np.ndarray]) -> dict[str, Any]:
    """The config with the values of the tensors that hold rope factors. read: a dense tensor by its GGUF name."""
    scaling: dict[str, Any] = config.get("rope_scaling") or {}
    if "tensor" in scaling:
        return config | {"rope_scaling": {**scaling, "factors": _factors(read, scaling["tensor"])}}
    parameters: dict[str, Any] = config.get("rope_parameters") or {}
    if "tensor" in (whole := parameters.get(FULL, {})):
        said = {key: value for key, value in whole.items() if key not in ("tensor", "dims")}
        said |= _proportional(_factors(read, whole["tensor"]), whole["tensor"], whole["dims"])
        return config | {"rope_parameters": {**parameters, FULL: said}}
    if scaling.get("rope_type") != "longrope" or "short_factor" in scaling:
        return config
    names = {"short_factor": SHORT_FACTORS, "long_factor": LONG_FACTORS}
    return config | {"rope_scaling": {**scaling, **{field: _factors(read, name) for field, name in names.items()}}}


def _factors(read: Callable[[str], np.ndarray], name: str) -> list[float]:
    factors = read(name)
    if factors.ndim != 1 or len(factors) > 4096 or not (factors > 0).all():
        raise CheckpointError(f"{name} is not a short list of positive divisors")
    return [shortest(factor) for factor in factors]


def _proportional(factors: list[float], name: str, dims: int) -> dict[str, float]:
    """Which part of a head of so many dims turns, in front, by divisors that are one number there and past all others
    behind it."""
    if 2 * len(factors) != dims:
        raise CheckpointError(f"{name} has {len(factors)} divisors for heads of {dims} dims")
    turned = sum(factor < NEVER for factor in factors)
    if not turned or {*factors[:turned]} != {factors[0]} or any(factor < NEVER for factor in factors[turned:]):
        raise UnsupportedModel(f"{name}: divisors other than of a first part of each head are not implemented")
    part = {"partial_rotary_factor": turned / len(factors)}
    return part if factors[0] == 1.0 else part | {"factor": factors[0]}


def tensor_names(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, str]:
    """Hugging Face name to GGUF name, in the file's order; UnsupportedModel for a tensor the architecture lacks."""
    row = architecture(metadata)
    keys = Keys(metadata, metadata["general.architecture"], {})
    blocks = keys.get("block_count", int, 0)
    layers = blocks - _predicting(keys, row, blocks) if row.predicts else None
    found: dict[str, str] = {}
    for name in names:
        prefix, _, rest = name.partition(".")
        number, _, rest = rest.partition(".")
        part, _, kind = rest.partition(".")
        if name in row.outer_names:
            found[row.outer_names[name]] = name
        elif name in (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS) or part in CONSTANTS:
            continue  # in the config
        elif prefix == "blk" and number.isdecimal() and layers is not None and layers <= int(number) < blocks:
            continue  # predicts further tokens
        elif prefix == "blk" and number.isdecimal() and rest in row.layer_names and kind:
            found[f"model.layers.{int(number)}.{row.layer_names[rest]}"] = name
        elif prefix == "blk" and number.isdecimal() and part in row.layer_names and _may_be(row, part, kind):
            suffix = "" if part in BARE_NAMES else f".{kind}"
            for called in read_as(part, row.layer_names[part]):
                found[f"model.layers.{int(number)}.{called}{suffix}"] = name
        else:
            architecture_name = metadata["general.architecture"]
            raise UnsupportedModel(f"tensor {name!r} has no place in the {architecture_name} architecture")
    return found


def _may_be(row: Architecture, part: str, kind: str) -> bool:
    if part in BARE_NAMES:
        return BARE_NAMES[part] == (f".{kind}" if kind else "")
    return kind == "weight" or (kind == "bias" and part in row.biased)
