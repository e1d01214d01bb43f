"""Bits where they help: how much each part of a model suffers from few bits, measured, and a budget spent by that.

A part is what `recipes.part_of` puts together in one layer, or the embedding with the head.
Each is quantized by itself, everything else left as it was, and the divergence (KL, nats a token) of the predictions
from the source's is taken on a calibration text. Invariant: the same text and source give the same formats.

One width is measured. For small errors the divergence grows with the square of the error, and the squared error at
every other width is known from the weights alone, so the other widths follow from it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Part:
    """names: of the weights. divergence: KL at PROBE_BITS. errors: squared error at each width, relative to that."""

    names: tuple[str, ...]
    divergence: float
    errors: Mapping[int, float]


def measure(
    ops: Backend,
    checkpoint: Checkpoint,
    decoder: Decoder,
    weights: Mapping[str, tuple[int, ...]],
    tokens: Sequence[int],
    group_size: int,
    importance: Importance,
    on_progress: Progress | None = None,
) -> list[Part]:
    """Every part of `weights`, which `decoder` was loaded from, on some hundred calibration tokens."""
    parts: dict[tuple[int | None, str], list[str]] = {}
    for name, shape in weights.items():
        if Format(PROBE_BITS, group_size).fitted(shape[-1]) is not None:
            parts.setdefault((layer_of(name), part_of(name)), []).append(name)
    source = _Source.of(ops, decoder, tokens[: most_tokens(decoder)])
    found: list[Part] = []
    for (layer, _), names in parts.items():
        probed = {name: _quantized(name, checkpoint.read(name), PROBE_BITS, group_size, importance) for name in names}
        if layer is None:
            changed, start = _outside(ops, decoder, probed), 0
        else:
            block = load_block(ops, Changed.of(checkpoint, change=_in_place(probed)), layer)
            blocks = (*decoder.blocks[:layer], block, *decoder.blocks[layer + 1 :])
            changed, start = replace(decoder, blocks=blocks), layer
        errors = _errors(checkpoint, names, group_size, importance)
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


def _quantized(name: str, value: np.ndarray | Packed, bits: int, group_size: int, importance: Importance) -> Packed:
    fitted = Format(bits, group_size).fitted(value.shape[-1])
    assert fitted is not None
    return quantize(value, fitted.bits, fitted.group_size, importance=importance.get(name), name=name)


def _outside(ops: Backend, decoder: Decoder, probed: Mapping[str, Packed]) -> Decoder:
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


def _errors(checkpoint: Checkpoint, names: Sequence[str], group_size: int, importance: Importance) -> dict[int, float]:
    """Squared error at every width over that at PROBE_BITS, of a sample of rows, the weights of a part together."""
    totals = dict.fromkeys(MEASURED_BITS, 0.0)
    for name in names:
        value = checkpoint.read(name)
        sample, share = _sample(value)
        for bits in MEASURED_BITS:
            packed = _quantized(name, sample, bits, group_size, importance)
            totals[bits] += share * _squares(sample, packed, importance.get(name))
    probe = totals[PROBE_BITS]
    return {bits: total / probe if probe else 0.0 for bits, total in totals.items()}


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


def _squares(x: np.ndarray, packed: Packed, importance: np.ndarray | None) -> float:
    columns = np.square((dequantize(packed) - x).astype(np.float64)).sum(0)
    return float(columns.sum() if importance is None else columns @ importance)


def allocate(
    parts: Sequence[Part], weights: Mapping[str, tuple[int, ...]], recipe: Recipe, other_bits: int
) -> dict[str, Format]:
    """Spend recipe.budget bits a weight, over `weights` and what else is stored (other_bits): to each part in turn the
    step that lowers the divergence most for its bits, from the fewest bits on, until none fits.

    DataError if the fewest bits are too many.
    """
    left = check_budget(weights, recipe, other_bits)
    steps: list[tuple[float, int, int, int]] = []
    chosen: dict[int, int] = {}
    for i, part in enumerate(parts):
        curve = _hull(part, weights, recipe.group_size)
        chosen[i] = curve[0][0]
        for (_, cost, loss), (bits, more, less) in itertools.pairwise(curve):
            steps.append((-(loss - less) / (more - cost), i, bits, more - cost))
    blocked: set[int] = set()
    for _, i, bits, cost in sorted(steps):  # a part's own steps are in order: each gains less than the one before
        if i not in blocked and cost <= left:
            left -= cost
            chosen[i] = bits
        else:
            blocked.add(i)
    found: dict[str, Format] = {}
    for i, part in enumerate(parts):
        for name in part.names:
            fitted = Format(chosen[i], recipe.group_size).fitted(weights[name][-1])
            assert fitted is not None
            found[name] = fitted
    return {name: found[name] for name in weights if name in found}


def check_budget(weights: Mapping[str, tuple[int, ...]], recipe: Recipe, other_bits: int) -> float:
    """Bits that are left when every weight has the fewest. DataError if that is too many already."""
    assert recipe.budget is not None
    count = sum(math.prod(shape) for shape in weights.values())
    least = _cost(weights, weights, min(MEASURED_BITS), recipe.group_size) + other_bits
    if least > recipe.budget * count:
        needed = math.ceil(100 * least / count) / 100
        raise DataError(
            f"`quantize` {recipe.text!r}: this model needs {needed:.2f} bits a weight at least: allow more",
            field="quantize",
        )
    return recipe.budget * count - least


def _cost(names: Iterable[str], weights: Mapping[str, tuple[int, ...]], bits: int, group_size: int) -> int:
    """Stored bits of some weights at a width; none for a weight that no group divides."""
    total = 0
    for name in names:
        fitted = Format(bits, group_size).fitted(weights[name][-1])
        total += 0 if fitted is None else round(math.prod(weights[name]) * fitted.bits_per_weight)
    return total


def _hull(part: Part, weights: Mapping[str, tuple[int, ...]], group_size: int) -> list[tuple[int, int, float]]:
    """(bits, stored bits, divergence) of the widths that are worth their bits: each step gains less than the last."""
    points: list[tuple[int, int, float]] = []
    for bits in MEASURED_BITS:
        cost = _cost(part.names, weights, bits, group_size)
        loss = max(part.divergence, _LEAST_KL) * part.errors[bits]
        while len(points) >= 2 and _slope(points[-2], points[-1]) < _slope(points[-1], (bits, cost, loss)):
            points.pop()
        points.append((bits, cost, loss))
    return points


def _slope(a: tuple[int, int, float], b: tuple[int, int, float]) -> float:
    return (a[2] - b[2]) / (b[1] - a[1])
