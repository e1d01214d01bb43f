"""Layers that differ in shape, as GGUF keeps them: Gemma 4's keys.

Not here: names of tensors (`partita.checkpoint.gguf.parts`). Invariant: what llama.cpp's readers cannot take is refused
by the name of the field.
"""

from __future__ import annotations

from typing import Any

from partita.errors import UnsupportedModel
from partita.model.config import LayerConfig, ModelConfig


def shaped_keys(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """Of an architecture whose global layers have heads of their own: how wide, and how many in each layer; which
    layers slide; which share; what every layer is told of a token. UnsupportedModel: rows of that for other tokens than
    the embedding's, or no global layer."""
    layers, told = config.layers, config.per_layer
    whole = next((i for i, layer in enumerate(layers) if layer.window is None), None)
    local = next((i for i, layer in enumerate(layers) if layer.window is not None), None)
    if whole is None:
        raise UnsupportedModel(f"GGUF's {architecture} architecture has global layers, this model none", field="to")
    if told is not None and told.vocab_size != config.vocab_size:
        raise UnsupportedModel(
            f"GGUF's {architecture} architecture cannot express vocab_size_per_layer_input {told.vocab_size} beside "
            f"vocab_size {config.vocab_size}: its readers take one number; write `to` mlx or huggingface",
            field="to",
        )
    size, small = config.head_dim_of(whole), config.head_dim if local is None else config.head_dim_of(local)
    return {
        "attention.head_count_kv": [config.kv_heads_of(i) for i in range(len(layers))],
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.key_length_swa": small,
        "attention.value_length_swa": small,
        "attention.shared_kv_layers": sum(layer.shares is not None for layer in layers),
        "attention.sliding_window_pattern": [layer.window is not None for layer in layers],
        "embedding_length_per_layer_input": told.size if told else 0,
        "feed_forward_length": [config.intermediate_size_of(i) for i in range(len(layers))],
        "rope.dimension_count_swa": small,
    }


def same_shape(wanted: LayerConfig, said: LayerConfig, config: ModelConfig, read: ModelConfig, layer: int) -> bool:
    """Whether a layer's heads, width and what it shares are what a file says of them."""
    shapes = [
        (
            own.shares,
            own.keys_are_values,
            model.kv_heads_of(layer),
            model.head_dim_of(layer),
            model.intermediate_size_of(layer),
        )
        for own, model in ((wanted, config), (said, read))
    ]
    return shapes[0] == shapes[1]
