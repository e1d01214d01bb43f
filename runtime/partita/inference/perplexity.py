"""How well a model predicts a text, streamed once through the cache as a conversation would be.

Perplexity is exp of the mean negative log likelihood (nats) of every token but the first, each predicted from what the
cache still shows of the tokens before it. So a bounded or quantized cache is measured as it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..cache.state import Cache
from ..errors import DataError
from ..model.decoder import Decoder
from .runner import ModelRunner
from .sampling import not_finite


@dataclass(frozen=True)
class Segment:
    """Perplexity of the tokens at indices start … end - 1 of the stream."""

    start: int
    end: int
    perplexity: float


def token_losses(
    ops: Backend,
    model: Decoder,
    cache: Cache,
    tokens: Sequence[int],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Negative log likelihood in nats of tokens[1:], float64 (n - 1,), through an empty cache of one row.

    DataError for ids that the model lacks, CheckpointError for weights that give no numbers.
    """
    losses: list[np.ndarray] = []
    model.check(tokens)
    for inputs, targets, done, total in _chunks(tokens, cache.spec.chunk):
        logits = model(ops, ops.array(inputs[None]), cache, every=True)[0]  # T V
        losses.append(_numbers(ops, _losses(ops, logits, targets)).astype(np.float64))
        if on_progress is not None:
            on_progress(done, total)
    return np.concatenate(losses)


@dataclass(frozen=True)
class Comparison:
    """What a cache, or another model, loses against a reference, token by token. Arrays float64 (n - 1,), bool: agrees.

    losses, reference_losses: nats, through what is tested and through the reference. divergence: KL(reference ||
    tested) of the next token, nats. agrees: whether the same token is most likely in both.
    """

    losses: np.ndarray
    reference_losses: np.ndarray
    divergence: np.ndarray
    agrees: np.ndarray

    @property
    def kl(self) -> float:
        return float(self.divergence.mean())

    @property
    def top1(self) -> float:
        return float(self.agrees.mean())


def compare(
    ops: Backend,
    model: Decoder,
    reference: Cache,
    tested: Cache,
    tokens: Sequence[int],
    *,
    changed: Decoder | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Both caches, empty and of one row, read the text side by side, so that logits of one chunk only are ever kept.

    changed: another model of the same vocabulary, which `tested` then belongs to; the same one by default.
    Raises DataError for a text that predicts nothing, or caches that take chunks of different lengths.
    """
    if reference.spec.chunk != tested.spec.chunk:
        raise DataError(f"caches with chunks of {reference.spec.chunk} and {tested.spec.chunk} cannot be compared")
    found: list[list[np.ndarray]] = []
    model.check(tokens)
    for inputs, targets, done, total in _chunks(tokens, tested.spec.chunk):
        fed = ops.array(inputs[None])
        pairs = (model, reference), (changed or model, tested)
        p, q = (decoder(ops, fed, cache, every=True)[0] for decoder, cache in pairs)  # T V
        log_p, log_q = (x - ops.logsumexp(x, -1)[:, None] for x in (p, q))
        divergence = ops.sum(ops.exp(log_p) * (log_p - log_q), -1)
        agrees = ops.argmax(p, -1) == ops.argmax(q, -1)
        rows = (_losses(ops, q, targets), _losses(ops, p, targets), divergence, agrees)
        found.append([_numbers(ops, x) for x in rows])
        if on_progress is not None:
            on_progress(done, total)
    losses, before, divergence, agrees = (np.concatenate(part) for part in zip(*found, strict=True))
    wide = np.float64  # a divergence below zero is float32's noise
    return Comparison(losses.astype(wide), before.astype(wide), np.maximum(divergence.astype(wide), 0), agrees)


def compare_decoding(
    tested: ModelRunner,
    reference: ModelRunner,
    tokens: Sequence[int],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """`tested` reads the text a token at a time, as a reply is written; `reference`, of any backend, in chunks, as a
    prompt is read. Caches are empty and of one row. Errors as for `compare`."""
    found: list[list[np.ndarray]] = []
    reference.model.check(tokens)
    for inputs, targets, done, total in _chunks(tokens, reference.cache.spec.chunk):
        logits = reference.model(reference.ops, reference.ops.array(inputs[None]), reference.cache, every=True)[0]
        steps = [tested.ops.to_numpy(tested.decode(tested.ops.array(token[None]))) for token in inputs]
        log_p = _log_softmax(_numbers(reference.ops, logits))
        log_q = _log_softmax(_finite(tested.ops, np.concatenate(steps)))
        losses, before = (-np.take_along_axis(x, targets[:, None], -1)[:, 0] for x in (log_q, log_p))
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        found.append([losses, before, divergence, log_p.argmax(-1) == log_q.argmax(-1)])
        if on_progress is not None:
            on_progress(done, total)
    losses, before, divergence, agrees = (np.concatenate(part) for part in zip(*found, strict=True))
    return Comparison(losses, before, np.maximum(divergence, 0), agrees)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64, over the last axis."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _chunks(tokens: Sequence[int], size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
    """Inputs and targets of each chunk, int32, and how many tokens are read once it is, of how many."""
    if len(tokens) < 2:
        raise DataError(f"the text is too short, {len(tokens)} of the 2 tokens that are needed: give more of it")
    ids = np.asarray(tokens, np.int32)
    total = len(ids) - 1
    for start in range(0, total, size):
        end = min(start + size, total)
        yield ids[start:end], ids[start + 1 : end + 1], end, total


def _losses(ops: Backend, logits: Array, targets: np.ndarray) -> Array:
    """Negative log likelihood in nats (T,) of targets (T,) under logits (T, V)."""
    place = np.arange(len(targets), dtype=np.int64) * logits.shape[-1] + targets
    return ops.logsumexp(logits, -1) - ops.take(logits.reshape(-1), ops.array(place), 0)


def _numbers(ops: Backend, x: Array) -> np.ndarray:
    """On the host. CheckpointError where one is NaN, as no text's loss is."""
    return _finite(ops, ops.to_numpy(x))


def _finite(ops: Backend, x: np.ndarray) -> np.ndarray:
    if np.isnan(x).any():
        raise not_finite(ops)
    return x


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean of losses in nats; infinite rather than an overflow."""
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else math.inf


def segments(losses: np.ndarray, size: int) -> list[Segment]:
    """Perplexities by index of the predicted token, `size` indices each. losses[i] belongs to token i + 1."""
    if size < 2:
        raise DataError(f"`segment` must be >= 2, got {size}", field="segment")
    total = len(losses) + 1
    return [
        Segment(start, min(start + size, total), perplexity(losses[max(start - 1, 0) : start + size - 1]))
        for start in range(0, total, size)
    ]
