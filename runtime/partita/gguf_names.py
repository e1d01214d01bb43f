"""GGUF's keys and tensor names said in Hugging Face's words, as tables.

Not here: reading files, or what a config means for the mathematics (that is `families`' work). Invariant: a field that
GGUF leaves out is filled in only where the architecture's GGUF convention fixes its value, and an architecture, a
tensor or a rope scaling that has no row here is refused by name.

Conventions relied on, by architecture:
    llama   rows of q and k are permuted (rotation by neighbouring pairs); `rope.freq_base` is written only where the
            original config had one, and 10,000 stands for its absence; norms are stored as they are.
    gemma3  q and k are not permuted; norms already hold 1 + w; every sixth layer is global unless a pattern key says
            otherwise; the sliding layers' rope base is 10,000; queries are scaled by head_dim ** -0.5, except in
            the model of 62 layers, where it is (hidden_size / heads) ** -0.5.
    both    no `output.weight` means that the head is the embedding; a `rope_freqs.weight` tensor holds one divisor
            for each rotated pair; the config names it as rope_scaling = {"rope_type": "factors", "tensor": ...}, and
            `open_checkpoint` adds its values as "factors".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CheckpointError, UnsupportedModel

ROPE_FACTORS = "rope_freqs.weight"  # keeps its name: Hugging Face has no tensor for it

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    ROPE_FACTORS: ROPE_FACTORS,
}
_PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
_LLAMA = {**_PROJECTIONS, "ffn_norm": "post_attention_layernorm"}
_GEMMA3 = {
    **_PROJECTIONS,
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

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


@dataclass(frozen=True)
class Architecture:
    """One row: how a GGUF architecture is called and stored, and the fields its config has beyond the common ones."""

    model_type: str
    layer_names: Mapping[str, str]
    permuted: bool  # rows of q and k
    norms_include_one: bool
    extend: Callable[[_Keys, dict[str, Any]], dict[str, Any]]


class _Keys:
    """The metadata of one file, read under the architecture's prefix."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str, tensors: Mapping[str, tuple[int, ...]]):
        self.metadata, self.prefix, self.tensors = metadata, prefix, tensors

    def _uniform(self, name: str) -> Any:
        value = self.metadata.get(name)
        if not isinstance(value, list) or not value:
            return value
        if any(item != value[0] for item in value):
            raise UnsupportedModel(f"{name} differs between layers, which is not implemented for {self.prefix}")
        return value[0]

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        """A number or string; an array of equal items (one for each layer) counts as its item."""
        name = f"{self.prefix}.{key}"
        value = self._uniform(name)
        if value is None:
            if default is ...:
                raise CheckpointError(f"the GGUF metadata lacks {name}")
            return default
        if kind is str and isinstance(value, str):
            return value
        if kind is int and type(value) is int and 0 <= value < 1 << 31:
            return value
        if kind is float and type(value) in (int, float) and abs(value) < 1e38:  # false for NaN
            return float(str(np.float32(value)))  # the shortest decimal: 1e-05, not 9.999999747378752e-06
        raise CheckpointError(f"{name} is {value!r}, which is no usable {kind.__name__}")


def architecture(metadata: Mapping[str, Any]) -> Architecture:
    """The row for this file's `general.architecture`; UnsupportedModel names one that has none."""
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
    keys = _Keys(metadata, metadata["general.architecture"], tensors)
    config: dict[str, Any] = {"model_type": row.model_type}
    config |= {field: keys.get(*spec) for field, spec in _COMMON.items()}
    heads, width, layers = config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]
    if not 0 < heads <= width or not 0 < layers <= len(tensors):
        raise CheckpointError(
            f"{layers} layers of {heads} heads and width {width} do not go with {len(tensors)} tensors"
        )
    config["num_key_value_heads"] = config["num_key_value_heads"] or heads
    config["head_dim"] = config["head_dim"] or width // heads
    if (value_length := keys.get("attention.value_length", int, config["head_dim"])) != config["head_dim"]:
        raise UnsupportedModel(
            f"values of {value_length} and keys of {config['head_dim']} dimensions are not implemented"
        )
    if keys.get("expert_count", int, 0):
        raise UnsupportedModel(f"{keys.prefix} with experts is not implemented in GGUF form; use the model's folder")
    if "token_embd.weight" not in tensors:
        raise CheckpointError("the file lacks the tensor token_embd.weight")
    config["vocab_size"] = tensors["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    config["rope_scaling"] = _rope_scaling(keys)
    config |= generation_config_from(metadata)
    return row.extend(keys, config)


def generation_config_from(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """bos, eos and pad ids. A file that names an end of turn beside its end of text gives both as `eos_token_id`."""
    ids: dict[str, Any] = {
        field: value
        for field, key in _TOKEN_IDS.items()
        if isinstance(value := metadata.get(f"tokenizer.ggml.{key}"), int)
    }
    turn = metadata.get("tokenizer.ggml.eot_token_id")
    if isinstance(turn, int) and "eos_token_id" in ids and turn != ids["eos_token_id"]:
        ids["eos_token_id"] = [ids["eos_token_id"], turn]
    return ids


def _rope_scaling(keys: _Keys) -> dict[str, Any] | None:
    kind = keys.get("rope.scaling.type", str, "none")
    factor = keys.get("rope.scaling.factor", float, None) or keys.get("rope.scale_linear", float, None)
    if ROPE_FACTORS in keys.tensors:
        if kind not in ("none", "linear") or (kind == "linear" and factor not in (None, 1.0)):
            raise UnsupportedModel(f"rope scaling {kind!r} together with {ROPE_FACTORS} is not implemented")
        return {"rope_type": "factors", "tensor": ROPE_FACTORS}
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedModel(f"rope scaling {kind!r} is not implemented for GGUF files")
    if factor is None:
        raise CheckpointError(f"the GGUF metadata lacks {keys.prefix}.rope.scaling.factor")
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.get("rope.scaling.original_context_length", int),
        "beta_fast": keys.get("rope.scaling.yarn_beta_fast", float, 32.0),
        "beta_slow": keys.get("rope.scaling.yarn_beta_slow", float, 1.0),
    }
    # GGUF's factor multiplies the usual attention factor, Hugging Face's replaces it
    if (extra := keys.get("rope.scaling.attn_factor", float, 1.0)) != 1.0:
        scaling["attention_factor"] = extra * (0.1 * math.log(factor) + 1.0)
    return scaling


def _extend_llama(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    rotated = keys.get("rope.dimension_count", int, config["head_dim"])
    if rotated != config["head_dim"]:
        config["partial_rotary_factor"] = rotated / config["head_dim"]
    return config | {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "mlp_bias": "blk.0.ffn_up.bias" in keys.tensors,
        "rope_theta": keys.get("rope.freq_base", float, 10000.0),
    }


def _extend_gemma3(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    scalar = config["hidden_size"] / heads if layers == 62 else config["head_dim"]
    return config | {
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "sliding_window": keys.get("attention.sliding_window", int),
        "layer_types": _layer_types(keys, layers),
        "rope_theta": keys.get("rope.freq_base", float),
        "rope_local_base_freq": keys.get("rope.freq_base_swa", float, 10000.0),
        "attn_logit_softcapping": keys.get("attn_logit_softcapping", float, None),
        "final_logit_softcapping": keys.get("final_logit_softcapping", float, None),
    }


def _layer_types(keys: _Keys, layers: int) -> list[str]:
    """A pattern is a period (the last of each period is global) or one truth value a layer (true: sliding)."""
    pattern = keys.metadata.get(f"{keys.prefix}.attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise CheckpointError(f"the sliding window pattern has {len(pattern)} items for {layers} layers")
        sliding = [bool(item) for item in pattern]
    elif isinstance(pattern, int) and pattern > 0:
        sliding = [(layer + 1) % pattern != 0 for layer in range(layers)]
    else:
        raise CheckpointError(f"the sliding window pattern is {pattern!r}")
    return ["sliding_attention" if item else "full_attention" for item in sliding]


def tensor_names(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, str]:
    """Hugging Face name to GGUF name, in the file's order; UnsupportedModel for a tensor the architecture lacks."""
    row = architecture(metadata)
    found: dict[str, str] = {}
    for name in names:
        prefix, _, rest = name.partition(".")
        number, _, rest = rest.partition(".")
        part, _, kind = rest.partition(".")
        if name in _OUTER:
            found[_OUTER[name]] = name
        elif prefix == "blk" and number.isdecimal() and part in row.layer_names and kind in ("weight", "bias"):
            found[f"model.layers.{int(number)}.{row.layer_names[part]}.{kind}"] = name
        else:
            architecture_name = metadata["general.architecture"]
            raise UnsupportedModel(f"tensor {name!r} has no place in the {architecture_name} architecture")
    return found


def permuted_heads(row: Architecture, config: Mapping[str, Any], gguf_name: str) -> int:
    """How many heads the rows of this tensor are permuted in; 0 if they are not."""
    if not row.permuted:
        return 0
    fields = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    part = gguf_name.split(".")[-2] if "." in gguf_name else ""
    return config[fields[part]] if part in fields else 0


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", _LLAMA, True, False, _extend_llama),
    "gemma3": Architecture("gemma3_text", _GEMMA3, False, True, _extend_gemma3),
}
