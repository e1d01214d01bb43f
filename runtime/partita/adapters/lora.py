"""Low-rank adapters: LoRA (arXiv 2106.09685), rank-stabilised LoRA (arXiv 2312.03732) and DoRA (arXiv 2402.09353).

`attach` rewrites a decoder: the projections that were chosen become `LoraLinear`, which is called like the `Linear` it
holds, so the model never knows. Packed bases stay packed (QLoRA, arXiv 2305.14314).
Invariants: the base is never changed; initial values come from the seed and the projection's name alone, so they are
the same on every backend; B is zero, so a fresh adapter changes nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..brief import Brief
from ..errors import DataError, UnsupportedModel
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.layers import Linear
from ..model.tree import replace_at, walk
from ..model.weights import PROJECTIONS

ALL_LINEAR = "all-linear"
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
"""What a trainable's name ends with, as in PEFT's files."""
_ROWS = 256  # of a base that are unpacked at a time
_EXPERT_PROJECTIONS = ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3")


@dataclass(frozen=True)
class LoraConfig:
    """targets: "all-linear" (every projection of attention and MLP; in a model with experts, which take no adapters,
    every one but MLPs'), or names, "q_proj,v_proj". layers: the last N only; None for all. alpha: the update is scaled
    by alpha / rank, or by alpha / sqrt(rank) with rslora. dropout: of what the adapter reads, the base reads
    everything. dora: a trained length for each row of base and update together.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = ALL_LINEAR
    layers: int | None = None
    rslora: bool = False
    dora: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise DataError(f"`rank` must be >= 1, got {self.rank}", field="rank")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise DataError(f"`alpha` must be > 0 and finite, got {self.alpha}", field="alpha")
        if not 0 <= self.dropout < 1:
            raise DataError(f"`dropout` must be >= 0 and < 1, got {self.dropout}", field="dropout")
        if self.layers is not None and self.layers < 1:
            raise DataError(f"`layers` must be >= 1, got {self.layers}", field="layers")
        if not self.names:
            raise DataError(
                "`targets` names no projection: give all-linear, or names such as q_proj,v_proj", field="targets"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.targets.split(",") if name.strip())

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Dropout:
    """Masks from the host, the same on every backend, which depend on the seed, `draw` and the projection's name alone:
    a pass that is computed again gets the same ones, and there is no other state to keep.

    draw: what numbers this pass (step, micro-batch, …); None while nothing is dropped.
    """

    def __init__(self, rate: float, seed: int):
        self.rate, self.seed = rate, seed
        self.draw: tuple[int, ...] | None = None

    @property
    def drops(self) -> bool:
        return self.rate > 0 and self.draw is not None

    def __call__(self, ops: Backend, x: Array, name: str) -> Array:
        if not self.drops or self.draw is None:
            return x
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode()), *self.draw])
        kept = random.random(tuple(x.shape), np.float32) >= self.rate
        return ops.where(ops.array(kept), x * (1 / (1 - self.rate)), 0.0)


@dataclass(frozen=True)
class LoraLinear(Brief):
    """base(x) + scale * (x Aᵀ) Bᵀ. a: (rank, in), b: (out, rank), float32.

    DoRA: that, without the base's bias, times magnitude / |row of W + scale B A|, both (out,); the gradient takes the
    length for a constant, as the paper's section 4.3 does. base_squares: the squared lengths of W's rows. factor: the
    quotient, where it is known once and for all (generation).
    """

    base: Linear
    a: Array
    b: Array
    scale: float
    dropout: Dropout | None = None
    magnitude: Array | None = None
    base_squares: Array | None = None
    factor: Array | None = None

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def bias(self) -> Array | None:
        return self.base.bias

    def __call__(self, ops: Backend, x: Array) -> Array:
        factor = self.factor if self.magnitude is None else self._factor(ops)
        if factor is None and (self.dropout is None or not self.dropout.drops):
            y = ops.adapted_linear(x, self.base.weight, self.a, self.b, self.scale)
            return y if self.base.bias is None else y + self.base.bias
        read = x if self.dropout is None else self.dropout(ops, x, self.name)
        low = ops.linear(ops.linear(read, self.a) * self.scale, self.b)
        if factor is None:
            return self.base(ops, x) + low
        y = (ops.linear(x, self.base.weight) + low) * ops.cast(factor, ops.dtype)
        return y if self.base.bias is None else y + self.base.bias

    def for_inference(self, ops: Backend) -> LoraLinear:
        """The same for weights that do not change any more: nothing of DoRA is computed again for every token."""
        if self.magnitude is None:
            return replace(self, dropout=None)
        return replace(self, dropout=None, magnitude=None, base_squares=None, factor=self._factor(ops))

    def _factor(self, ops: Backend) -> Array:
        """|w + s b A|² = |w|² + 2 s b·(A w) + s² b (A Aᵀ) bᵀ, a row at a time: W + s B A is never formed."""
        a, b, s = ops.stop_gradient(self.a), ops.stop_gradient(self.b), self.scale
        aw = ops.linear(a, self.base.weight).swapaxes(0, 1)  # out, rank
        aab = ops.linear(b, ops.linear(a, a))  # out, rank; A Aᵀ is symmetric
        squares = self.base_squares + ops.sum(aw * b, 1) * (2 * s) + ops.sum(aab * b, 1) * (s * s)
        squares = ops.where(squares > 1e-20, squares, 1e-20)
        return self.magnitude / squares**0.5


def attach(
    ops: Backend, decoder: Decoder, config: LoraConfig, dropout: Dropout | None = None
) -> tuple[Decoder, dict[str, Array], dict[str, tuple[str, ...]]]:
    """A decoder with adapters, their initial values by name ("model.layers.0.self_attn.q_proj.lora_A.weight"), and the
    places of these in the decoder, which holds None there.

    A is Kaiming-uniform with a = sqrt 5, B zero, a magnitude the length of its row: PEFT's. The decoder must have been
    loaded with stack=False. Raises DataError for targets that it does not have, UnsupportedModel for experts.
    """
    changes: dict[str, LoraLinear] = {}
    values: dict[str, Array] = {}
    places: dict[str, tuple[str, ...]] = {}
    hole: Any = None  # whoever trains holds the array that belongs here
    for path, base in chosen(decoder, config):
        out, size = base.specs[0].shape
        new, hollow = _initial(ops, base.name, out, size, config), LoraLinear(base, hole, hole, config.scale, dropout)
        if config.dora:
            squares = row_squares(ops, base)
            hollow, new[MAGNITUDE] = replace(hollow, base_squares=squares), squares**0.5
        changes[path] = hollow
        for kind, field in ((A, "a"), (B, "b"), (MAGNITUDE, "magnitude")):
            if kind in new:
                values[f"{base.name}.{kind}"] = new[kind]
                places[f"{base.name}.{kind}"] = (f"{path}.{field}",)
    return replace_at(decoder, changes), values, places


def count_values(decoder: Decoder, config: LoraConfig) -> int:
    """How many values `attach` would make, before it makes them. Errors as there."""
    sizes = (linear.specs[0].shape for _, linear in chosen(decoder, config))
    return sum(config.rank * (out + size) + out * config.dora for out, size in sizes)


def chosen(decoder: Decoder, config: LoraConfig) -> list[tuple[str, Linear]]:
    """(path, projection) of everything that gets an adapter, in the model's order."""
    count = len(decoder.blocks)
    if config.layers is not None and config.layers > count:
        raise DataError(f"`layers` must be <= {count}, the layers of this model, got {config.layers}", field="layers")
    first = count - (config.layers or count)
    there = [(path, linear) for path, linear in projections(decoder) if (linear.specs[0].layer or 0) >= first]
    kinds = sorted({_kind(linear) for _, linear in there})
    taken = kinds if decoder.config.experts is None else [name for name in kinds if name not in _EXPERT_PROJECTIONS]
    _refuse_experts(decoder.config, config.names, taken)
    wanted = taken if ALL_LINEAR in config.names else config.names
    if missing := [name for name in wanted if name not in kinds]:
        raise DataError(
            f"unknown `targets` {missing[0]!r}; expected some of {', '.join(kinds)}, or all-linear", field="targets"
        )
    return [(path, linear) for path, linear in there if _kind(linear) in wanted]


def projections(decoder: Decoder) -> Iterable[tuple[str, Linear]]:
    """(path, projection) of every projection of attention and of dense MLPs, each by itself; routers are none."""
    for path, node in walk(decoder.blocks, "blocks"):
        if not isinstance(node, Linear) or node.specs[0].kind not in PROJECTIONS:
            continue
        if len(node.specs) > 1:
            raise ValueError("training adapters needs a decoder loaded with stack=False")
        yield path, node


def for_inference(
    ops: Backend, decoder: Decoder, values: Mapping[str, Array], places: Mapping[str, tuple[str, ...]]
) -> Any:
    """The decoder for generation, with these values in their places."""
    bound = replace_at(decoder, {path: values[name] for name, paths in places.items() for path in paths})
    changes = {path: node.for_inference(ops) for path, node in walk(bound) if isinstance(node, LoraLinear)}
    return replace_at(bound, changes)


def _kind(linear: Linear) -> str:
    return linear.name.rpartition(".")[2]


def _refuse_experts(model: ModelConfig, names: tuple[str, ...], taken: list[str]) -> None:
    """Experts are stacked matrices, which take no adapters. taken: the names that do."""
    if model.experts is None:
        return
    if asked := [name for name in names if name in _EXPERT_PROJECTIONS]:
        raise UnsupportedModel(
            f"`targets` {asked[0]}: the experts of this {model.model_type} model take no adapters: use all-linear, "
            f"which leaves them out, or {','.join(taken)}",
            field="targets",
        )


def _initial(ops: Backend, name: str, out: int, size: int, config: LoraConfig) -> dict[str, Array]:
    """A and B of one projection before the first step."""
    random = np.random.default_rng([config.seed, zlib.crc32(name.encode())])
    bound = 1 / math.sqrt(size)
    a = random.uniform(-bound, bound, (config.rank, size)).astype(np.float32)
    return {A: ops.array(a, "float32"), B: ops.zeros((out, config.rank), "float32")}


def row_squares(ops: Backend, base: Linear) -> Array:
    """Squared lengths of the rows of a prepared weight, float32 (out,)."""
    parts: list[Array] = []
    for rows in weight_rows(ops, base, 0, base.specs[0].shape[0]):
        parts.append(ops.sum(rows * rows, 1))
        ops.launch(parts[-1])
    return ops.concat(parts, 0)


def weight_rows(ops: Backend, base: Linear, start: int, count: int) -> Iterator[Array]:
    """Rows of a prepared weight from `start` on, float32 (n, in), a few unpacked at a time."""
    for first in range(start, start + count, _ROWS):
        index = ops.array(np.arange(first, min(first + _ROWS, start + count), dtype=np.int32)[None])
        yield ops.cast(ops.embed(base.weight, index)[0], "float32")
