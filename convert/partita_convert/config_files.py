"""config.json for readers elsewhere: one checkpoint's config, completed so that transformers and mlx-lm agree on it.

Not here: what the fields mean for partita. Invariant: nothing is guessed; what config.json cannot express is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.names import HEAD, text_name
from partita.errors import CheckpointError, UnsupportedModel
from partita.files.bounded import is_table
from partita.model.families.wrappers import WRAPPERS

_FORMAT_KEYS = ("quantization", "quantization_config", "torch_dtype", "dtype")
_GEMMA4 = frozenset({"gemma4_text", "gemma4_unified_text"})
_NEWER_ROPE = _GEMMA4 | {"laguna", "lfm3", "mellum", "ministral3", "muse_glimmer_text"}
"""Families that never had `rope_scaling`: every reader takes rope_parameters alone."""
_WHOLES = {"qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe", "muse_glimmer_text": "muse_glimmer"}
_CLASSES = {
    "qwen3_5_text": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe_text": "Qwen3_5MoeForConditionalGeneration",
    "muse_glimmer_text": "MuseGlimmerForConditionalGeneration",
}
_OF_BOTH = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def huggingface_config(checkpoint: Checkpoint) -> tuple[dict[str, Any], frozenset[str]]:
    """(config without anything about number formats, names of tensors that it makes superfluous)."""
    config = {key: value for key, value in checkpoint.config.items() if key not in _FORMAT_KEYS}
    dropped: set[str] = set()
    scaling = config.get("rope_scaling")
    if is_table(scaling) and scaling.get("rope_type") == "factors":
        config["rope_scaling"] = _as_llama3(np.asarray(scaling["factors"]), config["rope_theta"], config["head_dim"])
    if config.get("tie_word_embeddings"):
        # a copy, which mlx-lm would take as a sign that the head is not tied
        dropped |= {name for name in checkpoint.names() if text_name(name) == HEAD}
    if not is_wrapper(config):
        return _completed(config), frozenset(dropped)
    text = _completed(dict(config["text_config"]))
    if config.get("tie_word_embeddings") is not None:
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    if str(config["model_type"]).startswith("gemma") and "vocab_size" in text:
        config["vocab_size"] = text["vocab_size"]  # mlx-lm reads the whole's
    return config | {"text_config": text}, frozenset(dropped)


def for_form(config: dict[str, Any], form: str, names: Iterable[str]) -> dict[str, Any]:
    """The config of a folder in the form "mlx" or "huggingface". mlx-lm knows text decoders of Qwen3.5 and Muse Glimmer
    only as those of models that see, and is told so; elsewhere such a whole without anything around its text is its
    text alone, and so is a Muse Glimmer whose text has no table of its own."""
    kind = config.get("model_type")
    if form == "mlx" and kind in _WHOLES:
        top = {key: config[key] for key in _OF_BOTH if config.get(key) is not None}
        return {"model_type": _WHOLES[kind], "architectures": [_CLASSES[kind]], **top, "text_config": config}
    if form != "mlx" and kind == "muse_glimmer" and not is_wrapper(config):
        return config | {"model_type": "muse_glimmer_text"}
    if form == "mlx" or kind not in _WHOLES.values() or not is_wrapper(config):
        return config
    if not all(name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")) for name in names):
        return config
    return dict(config["text_config"])


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Whether this is the config of a model that sees or hears around a text decoder."""
    return config.get("model_type") in WRAPPERS and is_table(config.get("text_config"))


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """A text decoder's config with the fields that readers elsewhere want said."""
    for step in _COMPLETIONS:
        config = step(config)
    return config


def _with_rope_both_ways(config: dict[str, Any]) -> dict[str, Any]:
    """rope_theta, rope_scaling (older readers, mlx-lm) and rope_parameters (transformers 5), from either."""
    parameters = config.get("rope_parameters")
    if not parameters and "rope_theta" not in config:
        return config  # a nested (multimodal) config, or one without rope: as it came
    if parameters and config.get("model_type") in _NEWER_ROPE:
        return config
    if not parameters:
        scaling: dict[str, Any] = config.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        said: dict[str, Any] = {**scaling, "rope_type": kind, "rope_theta": config["rope_theta"]}
        if "partial_rotary_factor" in config:
            said["partial_rotary_factor"] = config["partial_rotary_factor"]
        if "rope_local_base_freq" in config:
            local = {"rope_type": "default", "rope_theta": config["rope_local_base_freq"]}
            said = {"full_attention": said, "sliding_attention": local}
        return config | {"rope_parameters": said}
    own = parameters.get("full_attention", parameters)
    if "rope_theta" not in own:
        raise CheckpointError("config.json: rope_parameters has no rope_theta")
    older: dict[str, Any] = {"rope_theta": own["rope_theta"]}
    if own.get("rope_type", "default") != "default":
        scaling = {key: value for key, value in own.items() if key != "rope_theta"}
        older["rope_scaling"] = {"type": own["rope_type"], **scaling}
    if "partial_rotary_factor" in own:
        older["partial_rotary_factor"] = own["partial_rotary_factor"]
    if "sliding_attention" in parameters and str(config.get("model_type")).startswith("gemma3"):
        older["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
    return config | older


def _with_width(config: dict[str, Any]) -> dict[str, Any]:
    """LFM2's width by its older name too, without which mlx-lm does not read the file."""
    if config.get("model_type") != "lfm2" or "block_dim" in config:
        return config
    return config | {"block_dim": config["hidden_size"]}


def _with_period(config: dict[str, Any]) -> dict[str, Any]:
    """Gemma 3's layer_types said as a period too, which is what mlx-lm reads."""
    types = config.get("layer_types")
    if config.get("model_type") != "gemma3_text" or "sliding_window_pattern" in config or not types:
        return config
    period = [*types, "full_attention"].index("full_attention") + 1
    if types != ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(len(types))]:
        return config
    return config | {"sliding_window_pattern": period}


def _with_letters(config: dict[str, Any]) -> dict[str, Any]:
    """EXAONE 4 as mlx-lm reads it: layer_types as letters, and two fields said that have a default."""
    if config.get("model_type") != "exaone4":
        return config
    width = config["hidden_size"] // config["num_attention_heads"]
    said = {"rope_scaling": None, "head_dim": width} | config
    if config.get("layer_types") and config.get("sliding_window") is not None:
        letters = ("G" if each == "full_attention" else "L" for each in config["layer_types"])
        said["sliding_window_pattern"] = "".join(letters)
    return said


def _with_experts(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen3-MoE's and Mellum's number of experts under both its names (transformers 5 writes the second, mlx-lm reads
    the first), and the fields that mlx-lm wants said where they have the family's default."""
    if config.get("model_type") not in ("qwen3_moe", "mellum"):
        return config
    count = config.get("num_experts", config.get("num_local_experts"))
    if config.get("model_type") == "mellum":
        return config | {"num_experts": count, "num_local_experts": count}
    defaults: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}
    said = {key: value for key, value in config.items() if value is not None}
    return config | {**defaults, **said, "num_experts": count, "num_local_experts": count}


def _with_shapes(config: dict[str, Any]) -> dict[str, Any]:
    """Gemma 4's global layers by the fields of published configs, which mlx-lm reads, beside those of each layer."""
    own = config.get("per_layer_config")
    if config.get("model_type") not in _GEMMA4 or not is_table(own) or "global_head_dim" in config:
        return config
    said = [shape for shape in own.values() if is_table(shape)]
    if not said or any(shape != said[0] for shape in said):
        return config
    shape = {"head_dim": config["head_dim"]} | said[0]
    return config | {
        "global_head_dim": shape["head_dim"],
        "num_global_key_value_heads": shape.get("num_key_value_heads"),
    }


def _with_interval(config: dict[str, Any]) -> dict[str, Any]:
    """Which layers of Qwen3.5 and Qwen3-Next attend, as a period too, which is what mlx-lm reads."""
    types, kind = config.get("layer_types"), str(config.get("model_type"))
    if not kind.startswith(("qwen3_5", "qwen3_next")) or "full_attention_interval" in config or not types:
        return config
    period = [*types, "full_attention"].index("full_attention") + 1
    if types != ["linear_attention" if (i + 1) % period else "full_attention" for i in range(len(types))]:
        return config
    return config | {"full_attention_interval": period}


def _with_no_table(config: dict[str, Any]) -> dict[str, Any]:
    """Gemma 4's 12B form, whose layers are told nothing of tokens: mlx-lm takes it for the other form."""
    if config.get("model_type") != "gemma4_unified_text":
        return config
    return {"hidden_size_per_layer_input": 0} | config


_COMPLETIONS = (
    _with_rope_both_ways,
    _with_width,
    _with_period,
    _with_letters,
    _with_experts,
    _with_shapes,
    _with_interval,
    _with_no_table,
)


def _as_llama3(factors: np.ndarray, theta: float, head_dim: int) -> Mapping[str, Any]:
    """GGUF keeps Llama 3's rope scaling as one divisor a frequency; find the parameters that give these divisors.

    Only the largest divisor differs between the published models, so it is read off. Others' bounds are found from the
    divisors between one and the largest, which are linear in the frequency: original length / (high - low) is the
    slope, and low is taken to be 1, since scaling all three by one number changes nothing.
    """
    largest = float(factors.max())
    scaling: dict[str, Any] = {"rope_type": "llama3", "factor": largest, **_LLAMA3}
    turns = theta ** -(np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    if factors.shape != turns.shape:
        raise UnsupportedModel(f"rope_freqs.weight holds {len(factors)} divisors for {len(turns)} frequencies")
    if _gives(scaling, turns, factors):
        return scaling
    share: np.ndarray = (1 / factors - 1 / largest) / (1 - 1 / largest) if largest > 1 else turns * 0
    between = (share > 1e-3) & (share < 1 - 1e-3)
    if between.sum() > 1:
        slope, offset = np.polyfit(turns[between], share[between], 1)
        if offset < 0:
            bounds = {"low_freq_factor": 1.0, "high_freq_factor": round(1 - 1 / float(offset), 4)}
            length = round(-float(slope) / float(offset))
            fitted = {**scaling, **bounds, "original_max_position_embeddings": length}
            if _gives(fitted, turns, factors):
                return fitted
    raise UnsupportedModel("rope_freqs.weight holds divisors that no rope_scaling of config.json describes")


def _gives(scaling: Mapping[str, Any], turns: np.ndarray, factors: np.ndarray) -> bool:
    """Whether these parameters give these divisors. turns: of each frequency, for one position."""
    low, high, length = (scaling[key] for key in _LLAMA3)
    smooth = np.clip((length * turns - low) / (high - low), 0, 1)
    return np.allclose(factors, 1 / ((1 - smooth) / scaling["factor"] + smooth), rtol=1e-3)
