"""Our logits of a GGUF file with what llama.cpp rounds beside the weights: the rows that meet them.

ggml's CPU products take rows in 8 bits beside quantized weights: integers, in units of a block's largest magnitude over
127. Beside K-quants a block is 256 numbers and its unit a float32 (Q8_K), else 32 and a float16 (Q8_0, Q8_1), and where
weights have a minimum and no K, the sum of a block's numbers meets it, in float16 too. Beside weights of 16 bits rows
are of that type. Not here: the order in which float32 sums are added up, activations that ggml takes from a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import partita_backends
from partita.arrays import Array
from partita.backend import Backend
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.model.layers import Linear
from partita.model.load import load_decoder
from partita.model.tree import walk
from partita.quantization import Packed

DENSE = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Logits:
    """float32 (T, V). exact: of the file's weights. rounded: with rows as they meet weights in llama.cpp."""

    exact: np.ndarray
    rounded: np.ndarray


def logits(path: Path, tokens: Sequence[int]) -> Logits:
    ops, checkpoint = partita_backends.load("torch", dtype="float32"), open_checkpoint(path)
    decoder = load_decoder(ops, checkpoint, stack=False)
    spec = plan(decoder.config, KVFormat.parse("auto", dense_bits=32), chunk=len(tokens))
    linears = [node for _, node in walk(decoder) if isinstance(node, Linear)]
    weights = {id(linear.weight): _weight(ops, checkpoint, linear.specs[0].name) for linear in linears}
    computing: list[Any] = [ops, _Rounding(ops, weights)]
    fed = ops.array(np.array([tokens], np.int32))
    return Logits(*(ops.to_numpy(decoder(each, fed, Cache(ops, spec), every=True))[0] for each in computing))


def _weight(ops: Backend, checkpoint: Checkpoint, name: str) -> tuple[str, Array | None]:
    """The type of a matrix in the file, and its minima (out, in / 32), if sums of blocks meet them."""
    type_name = checkpoint.stored_as(name)
    if not type_name.endswith("_1"):
        return type_name, None
    value = checkpoint.read(name)
    assert isinstance(value, Packed)
    return type_name, ops.array(value.grid[1].astype(np.float32))


class _Rounding:
    """A backend whose products round their rows. weights: a prepared weight's identity to its type and minima."""

    def __init__(self, ops: Backend, weights: Mapping[int, tuple[str, Array | None]]):
        self.ops, self.weights = ops, weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def linear(self, x: Array, weight: Any, bias: Array | None = None) -> Array:
        type_name, minima = self.weights[id(weight)]
        rows, sums_off = _rounded(self.ops.to_numpy(x), type_name)
        y = self.ops.linear(self.ops.array(rows), weight, bias)
        return y if minima is None else y + self.ops.linear(self.ops.array(sums_off), minima)


def _rounded(x: np.ndarray, type_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows (..., n) as they meet weights of a type, and what their blocks' sums, as stored, have more than they."""
    if type_name in DENSE:
        return x.astype(DENSE[type_name]).astype(x.dtype), x[..., :0]
    block = 256 if type_name.endswith("_K") else 32
    parts = x.reshape(*x.shape[:-1], -1, block)
    units = np.abs(parts).max(-1, keepdims=True) / np.float32(127)
    integers = np.rint(np.divide(parts, units, out=np.zeros_like(parts), where=units != 0))
    stored = units if block == 256 else _half(units)
    sums = integers.sum(-1, keepdims=True)
    return (integers * stored).reshape(x.shape), (_half(units * sums) - stored * sums)[..., 0]


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(x.dtype)
