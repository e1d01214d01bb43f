"""What the columns of each weight are multiplied by, on a text: the mean square of every input of every projection.

A squared error in a column costs in proportion to that, and the columns of a language model differ by factors of
hundreds, so weights quantized with it in mind lose far less. Invariant: one block's weights are in memory at a time,
so a model of any size can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from types import MappingProxyType
from typing import Any

import numpy as np

from partita.arrays import Array
from partita.backend import Backend
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint import experts
from partita.checkpoint.base import Checkpoint
from partita.errors import DataError
from partita.model.decoder import Block, through
from partita.model.layer_reader import embedding_norm
from partita.model.layers import Linear, MLPBesideExperts, MoE
from partita.model.load import load_block, load_last_norm, load_per_layer_inputs, read_config
from partita.model.mixer import SequenceState
from partita.model.tree import walk
from partita.quantization import Packed

TOKENS = 256
"""Enough: of 128, 256 and 512 tokens of speeches none was better than the others (SmolLM2-135M)."""

SHARED = 8
"""What an expert saw is taken together with so many rows that are as those of all experts on average: of few rows, mean
squares are mostly chance, and an expert that saw none has those of all."""

Importance = Mapping[str, np.ndarray]
"""Weight's name to one number for each of its columns, float64; of a stack of experts float32 (experts, n)."""


def importance(
    ops: Backend,
    checkpoint: Checkpoint,
    tokens: Sequence[int],
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Mean squares of the inputs of every projection in every layer and of the head, over at most TOKENS tokens.

    Raises UnsupportedModel for a family that the runtime does not support, DataError for a text without tokens.
    """
    config = read_config(checkpoint)
    ids = np.asarray(tokens[: min(TOKENS, config.max_positions)], np.int32)
    if not len(ids):
        raise DataError("the calibration text is empty: give some text")
    dense = KVFormat.parse("auto", dense_bits=32 if ops.decode_dtype == "float32" else 16)
    cache = Cache(ops, plan(config, dense, sinks=0, chunk=len(ids)))
    cache.advance(len(ids))
    stored = experts.find(checkpoint) if config.experts else {}
    found: dict[str, np.ndarray] = {}

    def layer(ops: Backend, x: Array, state: SequenceState, i: int, *told: Array) -> Array:
        block = load_block(ops, checkpoint, i)
        recorder = _Recorder(ops, _names(block), _stacks(block, stored, i))
        y = block(recorder, x, state, i, *told)  # pyright: ignore[reportArgumentType]
        found.update(recorder.squares)
        return y

    def after(i: int, _: Array) -> None:
        if on_progress is not None:
            on_progress(i + 1, config.num_layers)

    rows, places = _rows(checkpoint, ids)
    x, told = _embedded(ops, checkpoint, rows, places), None
    if (per_layer := load_per_layer_inputs(ops, checkpoint, rows)) is not None:
        recorder = _Recorder(ops, {id(per_layer.projection.weight): [per_layer.projection.specs[0].name]})
        told = per_layer(recorder, ops.array(places), x)  # pyright: ignore[reportArgumentType]
        found.update(recorder.squares)
    x = through(ops, repeat(layer, config.num_layers), x, cache, after=after, told=told)
    head = _named(checkpoint, "embed_tokens.weight" if config.tie_embeddings else "lm_head.weight")
    found[head] = _mean_squares(ops, load_last_norm(ops, checkpoint)(ops, x))
    return found


def _rows(checkpoint: Checkpoint, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the embedding that a text needs, and the places of its tokens among them, int32 (1, T)."""
    count = checkpoint.shape(_named(checkpoint, "embed_tokens.weight"))[0]
    rows, places = np.unique(ids, return_inverse=True)
    if rows[0] < 0 or rows[-1] >= count:
        wrong = rows[0] if rows[0] < 0 else rows[-1]
        raise DataError(f"the calibration text has token {wrong}, and the model's embedding {count} rows")
    return rows, places.astype(np.int32).reshape(1, -1)


def _embedded(ops: Backend, checkpoint: Checkpoint, rows: np.ndarray, places: np.ndarray) -> Array:
    """The stream (1, T, E) that enters the first block, from those rows."""
    config = read_config(checkpoint)
    table = checkpoint.read(_named(checkpoint, "embed_tokens.weight"))
    chosen = table.map(lambda part: part[rows]) if isinstance(table, Packed) else table[rows]
    x, norm = ops.embed(ops.prepare(chosen), ops.array(places)), embedding_norm(ops, config)
    x = x if norm is None else norm(ops, x)
    return x if config.embedding_scale is None else x * ops.full((1,), config.embedding_scale, ops.dtype)


def _named(checkpoint: Checkpoint, ending: str) -> str:
    name = next((name for name in checkpoint.names() if name.endswith(ending)), None)
    if name is None:
        raise checkpoint.missing(ending)
    return name


def _mean_squares(ops: Backend, x: Array) -> np.ndarray:
    """float64 (n,) of x (..., n), over all else."""
    rows = ops.cast(x, "float32").reshape(-1, x.shape[-1])
    return ops.to_numpy(ops.sum(rows * rows, 0)).astype(np.float64) / rows.shape[0]


def _mean_squares_of_each(ops: Backend, x: Array, index: Array, experts: int) -> np.ndarray:
    """float32 (experts, n) of x (B, T, K or 1, n), over what index (B, T, K) sends to each. See SHARED."""
    squares = np.square(ops.to_numpy(ops.cast(x, "float32")), dtype=np.float64)
    chosen = ops.to_numpy(index).reshape(-1)
    rows = np.broadcast_to(squares, (*index.shape, squares.shape[-1])).reshape(len(chosen), -1)
    sums, counts = np.zeros((experts, rows.shape[-1])), np.bincount(chosen, minlength=experts)
    order = np.argsort(chosen, kind="stable")
    present, starts = np.unique(chosen[order], return_index=True)
    sums[present] = np.add.reduceat(rows[order], starts)
    return ((sums + SHARED * rows.mean(0)) / (counts + SHARED)[:, None]).astype(np.float32)


def _names(block: Block) -> dict[int, list[str]]:
    """Prepared weight's identity to the names of the tensors that it was made of."""
    linears = (node for _, node in walk(block) if isinstance(node, Linear) and node.specs[0].kind != "router")
    return {id(linear.weight): [spec.name for spec in linear.specs] for linear in linears}


@dataclass(frozen=True)
class _Stack:
    """Of a projection's experts: their number, and the tensors that hold them, which may be one for each."""

    count: int
    names: list[str]
    apart: bool


def _stacks(block: Block, stored: Mapping[str, experts.StoredExperts], layer: int) -> dict[int, _Stack]:
    """By the prepared weight's identity."""
    mlp = block.mlp.experts if isinstance(block.mlp, MLPBesideExperts) else block.mlp
    if not isinstance(mlp, MoE):
        return {}
    own = next(found for module, found in stored.items() if f".{layer}." in f"{module}.")
    weights = {"gate_proj": mlp.gate, "up_proj": mlp.up, "down_proj": mlp.down}
    return {
        id(linear.weight): _Stack(own.shape(projection)[0], own.sources(projection), own.form == "each")
        for projection, linear in weights.items()
    }


class _Recorder:
    """A backend that notes the mean squares of what the named weights are multiplied by."""

    def __init__(
        self, ops: Backend, names: Mapping[int, list[str]], stacks: Mapping[int, _Stack] = MappingProxyType({})
    ):
        self.ops, self.names, self.stacks = ops, names, stacks
        self.squares: dict[str, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def linear(self, x: Array, weight: Any, bias: Array | None = None) -> Array:
        if id(weight) in self.names:
            self.squares |= dict.fromkeys(self.names[id(weight)], _mean_squares(self.ops, x))
        return self.ops.linear(x, weight, bias)

    def moe_linear(self, x: Array, weight: Any, index: Array, bias: Array | None = None) -> Array:
        if (stack := self.stacks.get(id(weight))) is not None:
            squares = _mean_squares_of_each(self.ops, x, index, stack.count)
            each = squares if stack.apart else [squares] * len(stack.names)
            self.squares |= dict(zip(stack.names, each, strict=True))
        return self.ops.moe_linear(x, weight, index, bias)
