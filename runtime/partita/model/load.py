"""A checkpoint to a decoder on a device, or to a part of one; and what can be known of that from headers alone.

Not here: how a layer is read (`layer_reader`), what a person is told of a checkpoint (`notes`), what the files look
like (`checkpoint/`) or what a config means (`families/parse.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..backend import Backend
from ..checkpoint.base import Checkpoint
from ..checkpoint.gguf.blocks import AFFINE as AFFINE_BLOCKS
from ..checkpoint.gguf.blocks import GROUP, SMALL, SMALL_GROUP
from ..quantization import AFFINE, SMALL_FLOATS
from ..small_floats import CENTRED_BITS
from .config import ModelConfig
from .decoder import Block, Decoder
from .families.parse import parse
from .layer_reader import LayerReader, embedding_norm
from .layers import (
    Linear,
    PerLayerInputs,
    RMSNorm,
)
from .weight_source import WeightSource


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The checkpoint's `ModelConfig`; norms that hold the one already do not get it twice."""
    parsed = parse(checkpoint.config)
    return replace(parsed, norm_adds_one=False) if checkpoint.norms_include_one else parsed


def weight_bytes(ops: Backend, checkpoint: Checkpoint) -> int:
    """Bytes that `load_decoder` will put on the device of `ops`: rather a few percent too few than too many.

    Reads no tensor. Raises CheckpointError where there is no decoder, UnsupportedModel for another kind of model.
    """
    source, dense = WeightSource(checkpoint, read_config(checkpoint)), dense_bits(ops)
    stored = ((math.prod(spec.shape), source.stored_as(spec)) for spec in source.specs)
    each = ((size, packed_as(kind, ops.smallest_group)) for size, kind in stored)
    return int(sum(size * bits_on_device(packed, dense, ops.modes) for size, packed in each) / 8)


def packed_as(stored: str, smallest_group: int = GROUP) -> tuple[str, int, int] | None:
    """(mode, bits, group size) that a tensor is read in, from what `Checkpoint.stored_as` says; None for a dense one.
    smallest_group: what has smaller groups is made dense."""
    if "-bit:" in stored:
        bits, group = stored.split("-bit:")
        return AFFINE, int(bits), int(group)
    if stored in AFFINE_BLOCKS:
        return AFFINE, int(stored[1]), 32
    if stored in SMALL and smallest_group <= SMALL_GROUP:
        return AFFINE, int(stored[1]), SMALL_GROUP
    mode = stored.lower()
    return (mode, *SMALL_FLOATS[mode]) if mode in SMALL_FLOATS else None


def dense_bits(ops: Backend) -> int:
    """Of a weight that is not packed, on the device."""
    return 32 if ops.decode_dtype == "float32" else 16


def bits_on_device(packed: tuple[str, int, int] | None, dense: int, modes: Sequence[str]) -> float:
    """Bits of a weight on a device that takes those modes. Scales and biases, of 16 bits each, are counted in; small
    floats have scales of 8, and as integers (`small_floats.without_codes`) often no biases."""
    if packed is None:
        return dense
    mode, bits, group = packed
    if mode == AFFINE:
        return bits + 32 / group
    if mode in modes:
        return bits + 8 / group
    return CENTRED_BITS + 16 / group if bits == 4 else dense


def load_decoder(
    ops: Backend,
    checkpoint: Checkpoint,
    *,
    stack: bool = True,
    on_layer: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Every weight of the checkpoint, prepared for `ops`.

    stack: store projections of one input as one matrix where their formats allow. Training says False: each projection
    has values, gradients and dropout of its own, by its own name. on_layer(done, total): progress.
    Raises CheckpointError for a missing tensor or a shape that the config does not have.
    """
    reader = LayerReader(ops, checkpoint, read_config(checkpoint), stack)
    config, own = reader.config, reader.weights_of(None)
    embedding = reader.prepare([reader.source.read(own["embedding"])])
    per_layer = reader.per_layer_inputs(own)
    blocks: list[Block] = []
    for i in range(config.num_layers):
        blocks.append(reader.block(i))
        if on_layer is not None:
            on_layer(i + 1, config.num_layers)
    head = reader.linear(own["head"]) if "head" in own else Linear(embedding, None, (own["embedding"],))
    norm, named = reader.norm(own["norm"]), own["embedding"].module
    return Decoder(config, embedding, tuple(blocks), norm, head, named, per_layer, embedding_norm(ops, config))


def check_whole(checkpoint: Checkpoint) -> None:
    """Whether `load_decoder` would find every tensor, in its shape. Nothing is read.

    Raises what it would raise: CheckpointError that names the tensor, UnsupportedModel for another kind of model.
    """
    source = WeightSource(checkpoint, read_config(checkpoint))
    for spec in source.specs:
        source.check(spec)


def load_block(ops: Backend, checkpoint: Checkpoint, layer: int) -> Block:
    """One block by itself, as `load_decoder` would load it: for what replaces a block in a decoder, or runs one block
    after the other. Errors as there."""
    return LayerReader(ops, checkpoint, read_config(checkpoint), stack=True).block(layer)


def load_last_norm(ops: Backend, checkpoint: Checkpoint) -> RMSNorm:
    """The norm between the last block and the head, by itself. Errors as for `load_decoder`."""
    reader = LayerReader(ops, checkpoint, read_config(checkpoint), stack=True)
    return reader.norm(reader.weights_of(None)["norm"])


def load_per_layer_inputs(ops: Backend, checkpoint: Checkpoint, rows: np.ndarray) -> PerLayerInputs | None:
    """What every layer is told of tokens, by itself, for tokens that are numbers of these rows of the table; None where
    layers are told nothing. Errors as there."""
    reader = LayerReader(ops, checkpoint, read_config(checkpoint), stack=True)
    return reader.per_layer_inputs(reader.weights_of(None), rows)
