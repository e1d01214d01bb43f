"""How well a model predicts a text, streamed once through the cache as a conversation would be.

Perplexity is exp of the mean negative log likelihood (nats) of every token but the first, each predicted from what the
cache still shows of the tokens before it. So a bounded or quantized cache is measured as it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .backend import Backend
from .cache import Cache
from .errors import DataError
from .model import Decoder


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
    """Negative log likelihood in nats of tokens[1:], float64 (n - 1,), through an empty cache of one row."""
    if len(tokens) < 2:
        raise DataError(f"the text is too short, {len(tokens)} of the 2 tokens that it takes to predict one: give more")
    inputs, targets = np.asarray(tokens[:-1], np.int32), np.asarray(tokens[1:], np.int32)
    losses = []
    for start in range(0, len(inputs), cache.spec.chunk):
        part = slice(start, start + cache.spec.chunk)
        logits = model(ops, ops.array(inputs[None, part]), cache, every=True)[0]  # T V
        vocabulary = logits.shape[-1]
        place = np.arange(len(targets[part]), dtype=np.int64) * vocabulary + targets[part]
        chosen = ops.take(logits.reshape(-1), ops.array(place), 0)
        losses.append(ops.to_numpy(ops.logsumexp(logits, -1) - chosen).astype(np.float64))
        if on_progress is not None:
            on_progress(min(part.stop, len(inputs)), len(inputs))
    return np.concatenate(losses)


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean of losses in nats; infinite rather than an overflow."""
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else math.inf


def segments(losses: np.ndarray, size: int) -> list[Segment]:
    """Perplexities by index of the predicted token, `size` indices each. losses[i] belongs to token i + 1."""
    if size < 2:
        raise DataError(f"--segment must be at least 2 tokens, not {size}")
    total = len(losses) + 1
    return [
        Segment(start, min(start + size, total), perplexity(losses[max(start - 1, 0) : start + size - 1]))
        for start in range(0, total, size)
    ]
