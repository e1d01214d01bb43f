"""Bits where they help: how much each part of a model suffers from few bits, measured, and a budget spent by that.

A part is what `recipes.part_of` puts together in one layer, or the embedding with the head.
Each is quantized by itself, everything else left as it was, and the divergence (KL, nats a token) of the predictions
from the source's is taken on a calibration text. Invariant: the same text and source give the same formats.

One width is measured: of `Groups` here, or of GGUF's types (`gguf/spent.py`). For small errors the divergence grows
with the square of the error, and the squared error at every other width is known from the weights alone, so the other
widths follow from it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from partita.arrays import Array
from partita.backend import Backend
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.errors import DataError
from partita.model.decoder import Decoder, through
from partita.model.load import load_block
from partita.quantization import Packed, dequantize

from .activations import Importance
from .changed import Changed, Value
from .quantize import quantize
from .recipes import MEASURED_BITS, Format, Recipe, layer_of, part_of

PROBE_BITS = 3
TOKENS = 256
_LOGITS = 1 << 26  # values of the source's log probabilities that are kept: 256 MB
_SLICE = 64  # tokens whose logits are compared at a time
_SAMPLE = 1 << 15  # weights of each tensor whose error is taken at every width
_LEAST_KL = 1e-9

Progress = Callable[[int, int], None]
W = TypeVar("W", int, str)
F = TypeVar("F", covariant=True)


class Widths(Protocol[W, F]):
    """What a budget may be spent on. every: from the fewest bits on. probe: the one that is measured."""

    @property
    def every(self) -> Sequence[W]: ...
    @property
    def probe(self) -> W: ...
    def fitted(self, width: W, columns: int) -> F | None:
        """What a weight with rows of that length becomes; None for one that stays dense."""
        ...

    def rounded(self, name: str, value: Value, width: W, importance: np.ndarray | None) -> Value: ...
    def cost(self, shape: tuple[int, ...], width: W) -> int:
        """Stored bits of a weight that can be fitted."""
        ...


@dataclass(frozen=True)
class Groups:
    """Integers of so many bits in groups of one size, as folders have them."""

    group_size: int
    every: Sequence[int] = MEASURED_BITS
    probe: int = PROBE_BITS

    def fitted(self, width: int, columns: int) -> Format | None:
        return Format(width, self.group_size).fitted(columns)

    def rounded(self, name: str, value: Value, width: int, importance: np.ndarray | None) -> Packed:
        own = self.fitted(width, value.shape[-1])
        assert own is not None
        return quantize(value, own.bits, own.group_size, importance=importance, name=name)

    def cost(self, shape: tuple[int, ...], width: int) -> int:
        own = self.fitted(width, shape[-1])
        return 0 if own is None else round(math.prod(shape) * own.bits_per_weight)


@dataclass(frozen=True)
class Part(Generic[W]):
    """names: of the weights. divergence: KL at the width that is measured. errors: squared error at each width,
    relative to that."""

    names: tuple[str, ...]
    divergence: float
    errors: Mapping[W, float]


def measure(
    ops: Backend,
    checkpoint: Checkpoint,
    decoder: Decoder,
    weights: Mapping[str, tuple[int, ...]],
    tokens: Sequence[int],
    widths: Widths[W, object],
    importance: Importance,
    on_progress: Progress | None = None,
) -> list[Part[W]]:
    """Every part of `weights`, which `decoder` was loaded from, on some hundred calibration tokens."""
    parts: dict[tuple[int | None, str], list[str]] = {}
    for name, shape in weights.items():
        if widths.fitted(widths.probe, shape[-1]) is not None:
            parts.setdefault((layer_of(name), part_of(name)), []).append(name)
    source = _Source.of(ops, decoder, tokens[: most_tokens(decoder)])
    found: list[Part[W]] = []
    for (layer, _), names in parts.items():
        probed = {
            name: widths.rounded(name, checkpoint.read(name), widths.probe, importance.get(name)) for name in names
        }
        if layer is None:
            changed, start = _outside(ops, decoder, probed), 0
        else:
            block = load_block(ops, Changed.of(checkpoint, change=_in_place(probed)), layer)
            blocks = (*decoder.blocks[:layer], block, *decoder.blocks[layer + 1 :])
            changed, start = replace(decoder, blocks=blocks), layer
        errors = _errors(checkpoint, names, widths, importance)
        found.append(Part(tuple(names), source.divergence(changed, start), errors))
        if on_progress is not None:
            on_progress(len(found), len(parts))
    return found


def _in_place(own: Mapping[str, Value]) -> Callable[[str, Value], Value]:
    """A change of a checkpoint: these weights in place of its own."""
    return lambda name, value: own.get(name, value)


def most_tokens(decoder: Decoder) -> int:
    """Calibration tokens that are used at most: so many that their predictions are kept in memory."""
    return min(TOKENS, _LOGITS // decoder.config.vocab_size, decoder.config.max_positions)


def _outside(ops: Backend, decoder: Decoder, probed: Mapping[str, Value]) -> Decoder:
    """With other matrices outside its blocks."""
    prepared = {name.removesuffix(".weight"): ops.prepare(value) for name, value in probed.items()}
    embedding = prepared.get(decoder.embedding_name, decoder.embedding)
    head = replace(decoder.head, weight=prepared.get(decoder.head.name, decoder.head.weight))
    told = decoder.per_layer
    if told is not None:
        projection = prepared.get(told.projection.name, told.projection.weight)
        told = replace(
            told,
            table=prepared.get(told.name, told.table),
            projection=replace(told.projection, weight=projection),
        )
    return replace(decoder, embedding=embedding, head=head, per_layer=told)


@dataclass(frozen=True)
class _Source:
    """What the whole model makes of the text. streams: what enters each block, (1, T, E). log_p: float32 (T, V)."""

    ops: Backend
    cache: Cache
    streams: tuple[Array, ...]
    log_p: tuple[Array, ...]
    tokens: Array

    @classmethod
    def of(cls, ops: Backend, decoder: Decoder, tokens: Sequence[int]) -> _Source:
        if len(tokens) < 2:
            raise DataError(
                f"the calibration text is too short, {len(tokens)} of the 2 tokens that are needed: give more"
            )
        decoder.check(tokens)
        dense = KVFormat.parse("auto", dense_bits=32 if ops.decode_dtype == "float32" else 16)
        cache = Cache(ops, plan(decoder.config, dense, context=None, sinks=0, chunk=len(tokens)))
        fed = ops.array(np.asarray(tokens, np.int32)[None])
        x = decoder.embedded(ops, fed)
        cache.advance(len(tokens))
        streams = [x]
        told = decoder.told(ops, fed, x)
        x = through(ops, decoder.blocks, x, cache, after=lambda _, y: streams.append(y), told=told)
        log_p = tuple(_log_softmax(ops, y) for y in _logits(ops, decoder, x))
        return cls(ops, cache, tuple(streams[:-1]), log_p, fed)

    def divergence(self, decoder: Decoder, start: int) -> float:
        """KL of the next token, nats on average, of a decoder that differs from block `start` on."""
        ops = self.ops
        while (first := _least_read(decoder, start)) < start:  # whose keys and values a later one reads
            start = first
        changed = start == 0 and decoder.embedding is not None
        x = decoder.embedded(ops, self.tokens) if changed else self.streams[start]
        self.cache.reset()
        self.cache.advance(self.tokens.shape[1])
        told = decoder.told(ops, self.tokens, x if changed else self.streams[0])
        x = through(ops, decoder.blocks[start:], x, self.cache, first=start, told=told)
        total = 0.0
        for log_p, y in zip(self.log_p, _logits(ops, decoder, x), strict=True):
            total += float(ops.to_numpy(ops.sum(ops.exp(log_p) * (log_p - _log_softmax(ops, y)), -1)).sum())
        return max(total / self.tokens.shape[1], 0.0)


def _least_read(decoder: Decoder, start: int) -> int:
    """The first block that one from `start` on is, or reads the keys and values of."""
    return min((start, *(layer.shares for layer in decoder.config.layers[start:] if layer.shares is not None)))


def _logits(ops: Backend, decoder: Decoder, x: Array) -> Iterator[Array]:
    """float32 (t, V) of some tokens after the other."""
    for start in range(0, x.shape[1], _SLICE):
        yield decoder.logits(ops, decoder.norm(ops, x[0, start : start + _SLICE]))


def _log_softmax(ops: Backend, y: Array) -> Array:
    return y - ops.logsumexp(y, -1)[:, None]


def _errors(
    checkpoint: Checkpoint, names: Sequence[str], widths: Widths[W, object], importance: Importance
) -> dict[W, float]:
    """Squared error at every width over that at the one measured, of a sample of rows, a part's weights together."""
    totals = dict.fromkeys(widths.every, 0.0)
    for name in names:
        value = checkpoint.read(name)
        sample, share = _sample(value)
        columns = importance.get(name)
        if columns is not None and columns.ndim == 2:  # the sample has rows of all experts
            columns = columns.mean(0)
        for width in widths.every:
            rounded = widths.rounded(name, sample, width, columns)
            totals[width] += share * _squares(sample, rounded, columns)
    probe = totals[widths.probe]
    return {width: total / probe if probe else 0.0 for width, total in totals.items()}


def _sample(value: np.ndarray | Packed) -> tuple[np.ndarray, float]:
    """Evenly spread rows as float32, and how many rows each stands for."""
    if isinstance(value, Packed):
        flat = value.map(lambda part: part.reshape(-1, part.shape[-1]))
        rows = flat.scales.shape[0]
        step = max(math.prod(value.shape) // _SAMPLE, 1)
        chosen = dequantize(flat.map(lambda part: part[::step]))
    else:
        flat = value.reshape(-1, value.shape[-1])
        rows = flat.shape[0]
        step = max(value.size // _SAMPLE, 1)
        chosen = flat[::step].astype(np.float32)
    return chosen, rows / chosen.shape[0]


def _squares(x: np.ndarray, rounded: Value, importance: np.ndarray | None) -> float:
    dense = dequantize(rounded) if isinstance(rounded, Packed) else rounded
    columns = np.square((dense - x).astype(np.float64)).sum(0)
    return float(columns.sum() if importance is None else columns @ importance)


def allocate(
    parts: Sequence[Part[W]],
    weights: Mapping[str, tuple[int, ...]],
    recipe: Recipe,
    other_bits: int,
    widths: Widths[W, F],
) -> dict[str, F]:
    """Spend recipe.budget bits a weight, over `weights` and what else is stored (other_bits): to each part in turn the
    step that lowers the divergence most for its bits, from the fewest bits on, until none fits.

    DataError if the fewest bits are too many.
    """
    left = check_budget(weights, recipe, other_bits, widths)
    steps: list[tuple[float, int, int, W, int]] = []
    chosen: dict[int, W] = {}
    for i, part in enumerate(parts):
        curve = _hull(part, weights, widths)
        chosen[i] = curve[0][0]
        for place, ((_, cost, loss), (width, more, less)) in enumerate(itertools.pairwise(curve)):
            steps.append((-(loss - less) / (more - cost), i, place, width, more - cost))
    blocked: set[int] = set()
    for _, i, _, width, cost in sorted(steps):  # a part's own steps are in order: each gains less than the one before
        if i not in blocked and cost <= left:
            left -= cost
            chosen[i] = width
        else:
            blocked.add(i)
    found: dict[str, F] = {}
    for i, part in enumerate(parts):
        for name in part.names:
            fitted = widths.fitted(chosen[i], weights[name][-1])
            assert fitted is not None
            found[name] = fitted
    return {name: found[name] for name in weights if name in found}


def check_budget(
    weights: Mapping[str, tuple[int, ...]], recipe: Recipe, other_bits: int, widths: Widths[W, object]
) -> float:
    """Bits that are left when every weight has the fewest. DataError if that is too many already."""
    assert recipe.budget is not None
    count = sum(math.prod(shape) for shape in weights.values())
    least = _cost(weights, weights, widths.every[0], widths) + other_bits
    if least > recipe.budget * count:
        needed = math.ceil(100 * least / count) / 100
        raise DataError(
            f"`quantize` {recipe.text!r}: this model needs {needed:.2f} bits a weight at least: allow more",
            field="quantize",
        )
    return recipe.budget * count - least


def _cost(names: Iterable[str], weights: Mapping[str, tuple[int, ...]], width: W, widths: Widths[W, object]) -> int:
    """Stored bits of some weights at a width."""
    return sum(widths.cost(weights[name], width) for name in names)


def _hull(
    part: Part[W], weights: Mapping[str, tuple[int, ...]], widths: Widths[W, object]
) -> list[tuple[W, int, float]]:
    """(width, stored bits, divergence) of the widths that are worth their bits: each step gains less than the last."""
    points: list[tuple[W, int, float]] = []
    for width in widths.every:
        cost = _cost(part.names, weights, width, widths)
        if points and cost <= points[-1][1]:  # the same type, for rows of this length
            continue
        loss = max(part.divergence, _LEAST_KL) * part.errors[width]
        while len(points) >= 2 and _slope(points[-2], points[-1]) < _slope(points[-1], (width, cost, loss)):
            points.pop()
        points.append((width, cost, loss))
    return points


def _slope(a: tuple[W, int, float], b: tuple[W, int, float]) -> float:
    return (a[2] - b[2]) / (b[1] - a[1])
