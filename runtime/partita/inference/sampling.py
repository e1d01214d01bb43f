"""From logits to the next token, on the device. Written once over the seam; the host is never asked anything.

Randomness is one uniform number a token, drawn on the host from a seeded generator before it is needed, so equal seeds
give equal texts on every backend that computes equal logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Backend
from ..errors import CheckpointError, DataError
from ..quantization import Array


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
            ("temperature", self.temperature == 0 or 1e-3 <= self.temperature <= 100, "0 or from 0.001 to 100"),
            ("top_k", self.top_k >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "> 0 and <= 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "> 0 and <= 100"),
            ("presence_penalty", -100 <= self.presence_penalty <= 100, "from -100 to 100"),
            ("frequency_penalty", -100 <= self.frequency_penalty <= 100, "from -100 to 100"),
            ("seed", self.seed is None or self.seed >= 0, ">= 0"),
            ("seed", self.seed is None or self.seed < 2**64, "< 2**64"),
        )
        for name, holds, allowed in checks:
            if not holds:
                raise DataError(f"`{name}` must be {allowed}, got {getattr(self, name)}", field=name)

    @property
    def counts(self) -> bool:
        """Whether earlier tokens matter."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def recommended(generation_config: Mapping[str, Any]) -> Sampling | None:
    """What the makers of a model recommend in its generation_config.json, None where they recommend nothing.

    As transformers reads that file: `do_sample: false` takes the most probable token whatever stands beside it, and a
    temperature that is not given is 1.
    """
    found = recommended_values(generation_config)
    if generation_config.get("do_sample") is False:
        return Sampling(repetition_penalty=found.get("repetition_penalty", 1.0))
    if generation_config.get("do_sample") is True or found.keys() - {"repetition_penalty"}:
        return Sampling(**{"temperature": 1.0, **found})
    return None


def recommended_values(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Sampling` that a generation_config.json gives, without values that `Sampling` does not take."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return {name: value for name in names if _taken(name, value := generation_config.get(name))}


def _taken(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
        return False
    given: dict[str, Any] = {name: value}
    try:
        Sampling(**given)
    except DataError:
        return False
    return True


def finite(ops: Backend, logits: Array) -> Array:
    """Of float32 logits (B, V), whether a token can be chosen by them: int32 (B,), 0 where any is NaN or infinite.

    It travels to the host with the token, which costs no wait of its own.
    """
    return ops.cast(ops.max(logits, -1) < 1e38, "int32")  # a maximum is NaN where any number is


def not_finite(ops: Backend) -> CheckpointError:
    """The error for a token that cannot be chosen."""
    narrow = next((name for name in (ops.dtype, ops.decode_dtype) if name != "float32"), None)
    hint = "fetch them again" if narrow is None else f"or too large for {narrow}: try `dtype` float32"
    return CheckpointError(f"the model's logits are not finite (NaN or infinite): its weights are damaged, {hint}")


class Sampler:
    """Chooses tokens for `batch` rows and remembers, on the device, which ones occurred."""

    def __init__(
        self, ops: Backend, sampling: Sampling, vocab_size: int, prompt: Sequence[int] = (), batch: int = 1
    ) -> None:
        self._ops, self._sampling, self._batch = ops, sampling, batch
        self._random = np.random.default_rng(sampling.seed)
        self._waiting: list[np.ndarray] = []  # uniform numbers (B,) drawn ahead, for the next tokens in order
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
        logits = self._penalized(logits, self._generated)
        token = self._ops.argmax(logits, -1) if s.temperature == 0 else self._draw(logits / s.temperature, self._next())
        if self._generated is not None:
            self._generated = self._ops.scatter_add(self._generated, token[:, None], 1.0)
        return token

    def verify(self, logits: Array, drafts: Array | None) -> Array:
        """What `__call__` would choose after each draft, were those before it chosen: int32 tokens (T,).

        logits: float32 (T, V), before the first draft and after each of them. drafts: int32 (T - 1,), or None. For a
        batch of one. Nothing is remembered until `accept` is given the tokens that came to be.
        """
        s, ops, count = self._sampling, self._ops, logits.shape[0]
        generated = self._generated
        if generated is not None and drafts is not None:
            one = ops.scatter_add(ops.zeros((count - 1, logits.shape[-1]), "float32"), drafts[:, None], 1.0)
            generated = ops.concat([generated, generated + ops.cumsum(one, 0)], 0)  # T V
        logits = self._penalized(logits, generated)
        if s.temperature == 0:
            return ops.argmax(logits, -1)
        while len(self._waiting) < count:
            self._waiting.append(self._random.random(self._batch, dtype=np.float32))
        return self._draw(logits / s.temperature, np.concatenate(self._waiting[:count]))

    def accept(self, tokens: Sequence[int]) -> None:
        """Remember the tokens that came to be after `verify`, as if `__call__` had chosen them one by one."""
        del self._waiting[: len(tokens)]
        if self._generated is not None:
            index = self._ops.array(np.asarray([tokens], np.int32))
            self._generated = self._ops.scatter_add(self._generated, index, 1.0)

    def _next(self) -> np.ndarray:
        """One uniform number in [0, 1) a row."""
        return self._waiting.pop(0) if self._waiting else self._random.random(self._batch, dtype=np.float32)

    def _penalized(self, logits: Array, generated: Array | None) -> Array:
        """generated: how often each token was generated before, (B, V) as the logits."""
        if generated is None or self._seen is None:
            return logits
        s, ops = self._sampling, self._ops
        if s.repetition_penalty != 1:
            stretched = ops.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
            logits = ops.where(self._seen + generated > 0, stretched, logits)
        once = ops.where(generated > 0, s.presence_penalty, 0.0)
        return logits - once - generated * s.frequency_penalty

    def _draw(self, logits: Array, uniform: np.ndarray) -> Array:
        """Invert the cumulative distribution at one uniform number in [0, 1) a row."""
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
        u = ops.array(uniform)[:, None]
        # the first place whose cumulated mass exceeds u times the whole; argmax finds the first of equals
        place = ops.argmax(ops.cast(total > u * total[:, -1:], "int32"), -1)
        if index is None:
            return place
        places = ops.array(np.arange(index.shape[-1], dtype=np.int32))[None, :]
        return ops.cast(ops.sum(ops.where(places == place[:, None], index, 0), -1), "int32")
