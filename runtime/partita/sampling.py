"""From logits to the next token, on the device. Written once over the seam; the host is never asked anything.

Randomness is one uniform number a token, drawn on the host from a seeded generator before it is needed, so equal seeds
give equal texts on every backend that computes equal logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backend import Backend
from .errors import DataError
from .quantization import Array


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. The order is: penalties, temperature, top-k, top-p, min-p.

    temperature: 0 takes the most probable token. top_k: keep the k most probable (0: all). top_p: keep the smallest set
    whose probabilities reach p (1: all; arXiv 1904.09751). min_p: keep what has at least min_p of the best token's
    probability (arXiv 2407.01082). repetition_penalty: logits of tokens already in the context are divided by it if
    positive, else multiplied (arXiv 1909.05858). presence_penalty, frequency_penalty: subtracted from logits of
    generated tokens, once and once for every occurrence. seed: None draws one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0 <= self.temperature <= 100, "from 0 to 100"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0 and at most 100"),
            ("presence_penalty", -100 <= self.presence_penalty <= 100, "from -100 to 100"),
            ("frequency_penalty", -100 <= self.frequency_penalty <= 100, "from -100 to 100"),
            ("seed", self.seed is None or 0 <= self.seed < 2**64, "from 0 to 2**64 - 1"),
        )
        for name, holds, allowed in checks:
            if not holds:
                raise DataError(f"{name} must be {allowed}, not {getattr(self, name)}")

    @property
    def counts(self) -> bool:
        """Whether earlier tokens matter."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


class Sampler:
    """Chooses tokens for `batch` rows and remembers, on the device, which ones occurred."""

    def __init__(
        self, ops: Backend, sampling: Sampling, vocab_size: int, prompt: Sequence[int] = (), batch: int = 1
    ) -> None:
        self._ops, self._sampling, self._batch = ops, sampling, batch
        self._random = np.random.default_rng(sampling.seed)
        self._generated = self._seen = None
        if sampling.counts:
            self._generated = ops.zeros((batch, vocab_size), "float32")
            ids = np.unique(np.asarray(prompt, np.int32))
            seen = np.zeros((batch, vocab_size), np.float32)
            seen[:, ids] = 1
            self._seen = ops.array(seen)

    def __call__(self, logits: Array) -> Array:
        """float32 logits (B, V) to int32 tokens (B,)."""
        s = self._sampling
        logits = self._penalized(logits)
        token = self._ops.argmax(logits, -1) if s.temperature == 0 else self._draw(logits / s.temperature)
        if self._generated is not None:
            self._generated = self._ops.scatter_add(self._generated, token[:, None], 1.0)
        return token

    def _penalized(self, logits: Array) -> Array:
        if self._generated is None or self._seen is None:
            return logits
        s, ops = self._sampling, self._ops
        if s.repetition_penalty != 1:
            stretched = ops.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
            logits = ops.where(self._seen + self._generated > 0, stretched, logits)
        once = ops.where(self._generated > 0, s.presence_penalty, 0.0)
        return logits - once - self._generated * s.frequency_penalty

    def _draw(self, logits: Array) -> Array:
        """Invert the cumulative distribution at one uniform number a row."""
        ops, s = self._ops, self._sampling
        index = None
        if s.top_k or s.top_p < 1:  # only these need an order
            vocabulary = logits.shape[-1]
            logits, index = ops.topk(logits, min(s.top_k or vocabulary, vocabulary))
        p = ops.softmax(logits, -1)
        if s.top_p < 1:
            p = ops.where(ops.cumsum(p, -1) - p < s.top_p, p, 0.0)
        if s.min_p:
            p = ops.where(p >= ops.max(p, -1)[:, None] * s.min_p, p, 0.0)
        total = ops.cumsum(p, -1)
        u = ops.array(self._random.random(self._batch, dtype=np.float32))[:, None]  # [0, 1)
        # the first place whose cumulated mass exceeds u times the whole; argmax finds the first of equals
        place = ops.argmax(ops.cast(total > u * total[:, -1:], "int32"), -1)
        if index is None:
            return place
        places = ops.array(np.arange(index.shape[-1], dtype=np.int32))[None, :]
        return ops.cast(ops.sum(ops.where(places == place[:, None], index, 0), -1), "int32")
