"""Layers that remember by a state, as GGUF keeps them: their keys, and tensors that it keeps as others.

Not here: in which order heads stand (`partita.checkpoint.gguf.arrangement`). Invariant: what llama.cpp's readers cannot
take is refused by the name of the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from partita.checkpoint.gguf.architectures import Architecture
from partita.checkpoint.gguf.extensions import MROPE_SECTION
from partita.errors import CheckpointError, UnsupportedModel
from partita.files.bounded import is_list, is_table
from partita.model.config import ConvConfig, DeltaConfig, ModelConfig


def delta_of(config: ModelConfig) -> DeltaConfig | None:
    """What the recurrent layers have; None for a model without."""
    return next((layer.delta for layer in config.layers if layer.delta is not None), None)


def head_fields(config: ModelConfig) -> dict[str, int]:
    """Numbers of heads and their widths, by Hugging Face's names."""
    found = {"num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads}
    if (delta := delta_of(config)) is None:
        return found
    return found | {
        "linear_num_key_heads": delta.key_heads,
        "linear_num_value_heads": delta.value_heads,
        "linear_key_head_dim": delta.key_dim,
        "linear_value_head_dim": delta.value_dim,
    }


def recurrent_keys(config: ModelConfig, architecture: str, row: Architecture) -> dict[str, Any]:
    """ssm.* or shortconv.*, and which layers are recurrent. UnsupportedModel: heads that llama.cpp does not read."""
    if row.convolves:
        return _conv_keys(config, architecture)
    if row.recurrent is None:
        return {}
    if (delta := delta_of(config)) is None:
        raise UnsupportedModel(f"GGUF's {architecture} architecture has recurrent layers, this model none", field="to")
    if delta.key_dim != delta.value_dim:
        raise UnsupportedModel(
            f"GGUF's {architecture} architecture cannot express linear_value_head_dim {delta.value_dim} beside "
            f"linear_key_head_dim {delta.key_dim}: its readers take one width; write `to` mlx or huggingface",
            field="to",
        )
    recurrent = [layer.delta is not None for layer in config.layers]
    period = next((n for n in range(1, len(recurrent) + 1) if recurrent == _every(n, len(recurrent))), None)
    pattern = {"full_attention_interval": period} if period else {"attention.recurrent_layers": recurrent}
    return {
        "ssm.conv_kernel": delta.kernel,
        "ssm.state_size": delta.key_dim,
        "ssm.group_count": delta.key_heads,
        "ssm.time_step_rank": delta.value_heads,
        "ssm.inner_size": delta.value_size,
        **pattern,
    }


def _conv_keys(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """A layer without key-value heads is a convolution."""
    found = next((layer.mixer for layer in config.layers if isinstance(layer.mixer, ConvConfig)), None)
    if found is None:
        raise UnsupportedModel(f"GGUF's {architecture} architecture has convolutions, this model none", field="to")
    heads = [0 if layer.mixer else config.kv_heads_of(i) for i, layer in enumerate(config.layers)]
    return {"shortconv.l_cache": found.kernel, "attention.head_count_kv": heads}


def _every(period: int, layers: int) -> list[bool]:
    return [(i + 1) % period != 0 for i in range(layers)]


def sections(config: Mapping[str, Any], row: Architecture) -> Sequence[int] | None:
    """How many frequencies turn by time, height, width and nothing of a picture, which readers of some architectures
    want; None for the others. config: config.json. CheckpointError: a config that says no such numbers."""
    if row.recurrent != "tiled":
        return None
    text = config.get("text_config", config)
    for key in ("rope_parameters", "rope_scaling"):
        said = text.get(key)
        if is_table(said) and (found := said.get("mrope_section")) is not None:
            if not is_list(found) or len(found) > 4 or any(type(n) is not int or not 0 <= n < 1 << 31 for n in found):
                raise CheckpointError(f"config.json: mrope_section must be up to four numbers, got {str(found)[:60]}")
            return [*found, *[0] * (4 - len(found))]
    return [*MROPE_SECTION, 0]
