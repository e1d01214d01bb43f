"""Models that see or hear around a text decoder, which is played alone: where its config is, and what it leaves out.

Not here: what the text decoder is (`parse`), where its tensors are (`checkpoint/names.py`). Invariant: a wrapper's text
decoder is one of the families; what stands beside it is named (`left_out`), never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.names import part_beside_text
from ...errors import CheckpointError, UnsupportedModel
from ..config_fields import Config, table
from .recurrent import OF_PICTURES


@dataclass(frozen=True)
class Wrapper:
    """texts: the family of each `model_type` that its text_config may have; the first is meant where it has none.
    defaults: what published text_configs leave out. of_pictures: rope parameters that concern pictures alone. flat:
    there are files without a text_config, whose fields stand in its place."""

    texts: Mapping[str, str]
    defaults: Config = field(default_factory=dict[str, Any])
    of_pictures: frozenset[str] = frozenset()
    flat: bool = False


# Gemma 3's published multimodal configs leave out what equals transformers' Gemma3TextConfig defaults.
_GEMMA3 = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window_pattern": 6,
}
WRAPPERS: Mapping[str, Wrapper] = {
    "cohere2_vision": Wrapper({"cohere2": "cohere2"}),
    "gemma3": Wrapper({"gemma3_text": "gemma3_text"}, _GEMMA3),
    "gemma4": Wrapper({"gemma4_text": "gemma4_text"}),
    "gemma4_unified": Wrapper({"gemma4_unified_text": "gemma4_text"}, {"hidden_size_per_layer_input": 0}),
    "idefics3": Wrapper({"llama": "llama"}),
    "lfm2_vl": Wrapper({"lfm2": "lfm2"}),
    "lfm3_vl": Wrapper({"lfm3": "lfm3"}),
    "mistral3": Wrapper({"mistral": "mistral", "ministral3": "ministral3"}),
    "muse_glimmer": Wrapper({"muse_glimmer_text": "muse_glimmer_text"}, flat=True),
    "qwen3_5": Wrapper({"qwen3_5_text": "qwen3_5_text"}),
    "qwen3_5_moe": Wrapper({"qwen3_5_moe_text": "qwen3_5_moe_text"}),
    "qwen3_vl": Wrapper({"qwen3_vl_text": "qwen3"}, of_pictures=OF_PICTURES),
    "smolvlm": Wrapper({"llama": "llama"}),
}
"""By the `model_type` of the whole."""


def text_config(config: Config) -> Config:
    """The config of the text decoder: a wrapper's own part, under the name of its family, or the config itself.

    The head belongs to the whole, and so does tie_word_embeddings where the whole says it. CheckpointError: a wrapper
    without a text_config. UnsupportedModel: one around a decoder that is not played.
    """
    whole = config.get("model_type")
    if not isinstance(whole, str) or whole not in WRAPPERS:
        return config
    wrapper, text = WRAPPERS[whole], table(config, "text_config")
    if not text and wrapper.flat:
        text = {key: value for key, value in config.items() if key != "model_type"}
    if not text:
        raise CheckpointError(f"config.json: model_type {whole} has no text_config")
    kind = text.get("model_type", next(iter(wrapper.texts)))
    if not isinstance(kind, str) or kind not in wrapper.texts:
        known = ", ".join(wrapper.texts)
        raise UnsupportedModel(f"config.json: {whole} around {kind!r} is not supported; supported: {known}")
    found = {**wrapper.defaults, **text, "model_type": wrapper.texts[kind]}
    if config.get("tie_word_embeddings") is not None:
        found["tie_word_embeddings"] = config["tie_word_embeddings"]
    for key in {"rope_parameters", "rope_scaling"} & set(found):
        found[key] = {name: value for name, value in table(found, key).items() if name not in wrapper.of_pictures}
    return found


def left_out(names: Iterable[str]) -> dict[str, int]:
    """The parts beside a text decoder, "vision_tower", with their numbers of tensors."""
    found: dict[str, int] = {}
    for name in names:
        part = part_beside_text(name)
        if part is not None:
            found[part] = found.get(part, 0) + 1
    return found
