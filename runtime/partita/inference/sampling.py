"""From logits to the next token, on the device. Written once over the seam; the host is never asked anything.

Randomness is one uniform number a token, drawn on the host from a seeded generator before it is needed, so equal seeds
give equal texts on every backend that computes equal logits. Each row has a generator and settings of its own: what is
chosen in it does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..backend import MASKED, Backend
from ..errors import CheckpointError, DataError


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
        found.setdefault("temperature", 1.0)
        return Sampling(**found)
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


_ALL = 2**31 - 1
"""A top-k that leaves nothing out, and an int32."""


@dataclass(frozen=True)
class _Rules:
    """The rows' settings as what is computed with: a number where all rows agree, else an array (B, 1).

    Rows with settings of their own cost both branches of what only some of them need; rows that agree, nothing.
    """

    draws: bool | Array
    """Whether a row draws; the others take the most probable token. bool (B,) where rows differ."""
    orders: bool | Array
    """Whether a row draws from the most probable tokens in order, for top-k or top-p. bool (B,) where rows differ."""
    temperature: Any
    best: int
    """How many of the most probable tokens are put in order: the largest top-k."""
    top_k: Array | None
    """int32 (B, 1), where some rows take fewer than `best`."""
    top_p: Any
    """None, as min_p and repetition, where no row has the rule."""
    min_p: Any
    repetition: Any
    presence: Any
    frequency: Any

    @classmethod
    def of(cls, ops: Backend, rows: Sequence[Sampling]) -> _Rules:
        def flag(values: list[bool]) -> bool | Array:
            if len(set(values)) < 2:
                return any(values)
            return ops.array(np.asarray(values, np.int32)) > 0

        def number(values: Sequence[float], counts: Sequence[bool], off: float | None = None, dtype: Any = None) -> Any:
            """counts: whether a row's value matters. None for the value `off`, with which a rule does nothing."""
            found = {value for value, counted in zip(values, counts, strict=True) if counted}
            if len(found) > 1:
                return ops.array(np.asarray(values, dtype or np.float32)[:, None])
            return None if found <= {off} else found.pop()

        draws, every = [s.temperature > 0 for s in rows], [True] * len(rows)
        orders = [s.temperature > 0 and (s.top_k > 0 or s.top_p < 1) for s in rows]
        top_k = [s.top_k or _ALL for s in rows]
        best = max((k for k, ordered in zip(top_k, orders, strict=True) if ordered), default=_ALL)
        return cls(
            draws=flag(draws),
            orders=flag(orders),
            temperature=number([s.temperature or 1.0 for s in rows], draws),
            best=best,
            top_k=number(top_k, orders, best, np.int32),
            # a sum of all probabilities may round to 1 before the last of them: 2 is never reached
            top_p=number([s.top_p if s.top_p < 1 else 2.0 for s in rows], orders, 2.0),
            min_p=number([s.min_p for s in rows], draws, 0.0),
            repetition=number([s.repetition_penalty for s in rows], every, 1.0),
            presence=number([s.presence_penalty for s in rows], every),
            frequency=number([s.frequency_penalty for s in rows], every),
        )


class Sampler:
    """Chooses tokens for the rows of a batch and remembers, on the device, which ones occurred.

    sampling: one for `batch` rows, which then draw different numbers, or one for each row. prompt: what all these rows
    begin with; rows with other prompts are samplers of their own, which this one is extended by.
    """

    def __init__(
        self,
        ops: Backend,
        sampling: Sampling | Sequence[Sampling],
        vocab_size: int,
        prompt: Sequence[int] = (),
        batch: int = 1,
    ) -> None:
        self._ops, self._vocab_size = ops, vocab_size
        self._samplings = [sampling] * batch if isinstance(sampling, Sampling) else list(sampling)
        if isinstance(sampling, Sampling) and sampling.seed is not None:
            seeds: list[Any] = [sampling.seed, *([sampling.seed, row] for row in range(1, batch))]
        else:
            seeds = [s.seed for s in self._samplings]
        self._numbers = [_Numbers(np.random.default_rng(seed)) for seed in seeds]
        self._rules = _Rules.of(ops, self._samplings)
        self._generated = self._seen = None
        if self._counts:
            seen = np.zeros((self.batch, vocab_size), np.float32)
            seen[:, np.unique(np.asarray(prompt, np.int32))] = 1
            self._generated, self._seen = self._nothing(self.batch), ops.array(seen)

    @property
    def batch(self) -> int:
        """Rows."""
        return len(self._samplings)

    def __call__(self, logits: Array) -> Array:
        """float32 logits (B, V) to int32 tokens (B,)."""
        token = self._chosen(self._penalized(logits, self._generated), 1, taken=True)
        if self._generated is not None:
            self._generated = self._ops.scatter_add(self._generated, token[:, None], 1.0)
        return token

    # Drafts: several tokens of one row

    def verify(self, logits: Array, drafts: Array | None) -> Array:
        """What `__call__` would choose after each draft, were those before it chosen: int32 tokens (T,).

        logits: float32 (T, V), before the first draft and after each of them. drafts: int32 (T - 1,), or None. For a
        batch of one. Nothing is remembered until `accept` is given the tokens that came to be.
        """
        ops, count = self._ops, logits.shape[0]
        generated = self._generated
        if generated is not None and drafts is not None:
            one = ops.scatter_add(ops.zeros((count - 1, logits.shape[-1]), "float32"), drafts[:, None], 1.0)
            generated = ops.concat([generated, generated + ops.cumsum(one, 0)], 0)  # T V
        return self._chosen(self._penalized(logits, generated), count, taken=False)

    def accept(self, tokens: Sequence[int]) -> None:
        """Remember the tokens that came to be, after `verify` or without a choice, as if `__call__` had chosen each."""
        self._numbers[0].drop(len(tokens))
        if self._generated is not None:
            index = self._ops.array(np.asarray([tokens], np.int32))
            self._generated = self._ops.scatter_add(self._generated, index, 1.0)

    # Rows

    def filter(self, rows: Sequence[int]) -> None:
        """Hold these rows only, in this order."""
        self._samplings = [self._samplings[row] for row in rows]
        self._numbers = [self._numbers[row] for row in rows]
        self._rules = _Rules.of(self._ops, self._samplings)
        if not self._counts:
            self._generated = self._seen = None
        elif self._generated is not None and self._seen is not None:
            index = self._ops.array(np.asarray(rows, np.int32))
            self._generated, self._seen = (self._ops.take(x, index, 0) for x in (self._generated, self._seen))

    def extend(self, other: Sampler) -> None:
        """Add the rows of another sampler of the same vocabulary behind this one's. The other must not be used
        afterwards.

        Raises DataError for another vocabulary.
        """
        if other._vocab_size != self._vocab_size:
            raise DataError(f"a sampler of {self._vocab_size} tokens cannot be extended by one of {other._vocab_size}")
        if self._counts or other._counts:
            mine, theirs = self._counted(), other._counted()
            self._generated, self._seen = (self._ops.concat(x, 0) for x in zip(mine, theirs, strict=True))
        self._samplings += other._samplings
        self._numbers += other._numbers
        self._rules = _Rules.of(self._ops, self._samplings)

    @property
    def _counts(self) -> bool:
        return any(s.counts for s in self._samplings)

    def _nothing(self, rows: int) -> Array:
        return self._ops.zeros((rows, self._vocab_size), "float32")

    def _counted(self) -> tuple[Array, Array]:
        """How often each token was generated, and whether it was in the prompt, (B, V); rows that do not count: 0."""
        if self._generated is None or self._seen is None:
            return self._nothing(self.batch), self._nothing(self.batch)
        return self._generated, self._seen

    # The rules

    def _chosen(self, logits: Array, count: int, *, taken: bool) -> Array:
        """Tokens (N,) of penalized logits (N, V): of B rows, or of `count` places of the only row. taken: for good."""
        rules = self._rules

        def drawn() -> Array:
            uniform = [
                numbers.take(count) if taken else numbers.peek(count)
                for numbers, sampling in zip(self._numbers, self._samplings, strict=True)
                if sampling.temperature > 0
            ]
            return self._draw(logits / rules.temperature, self._spread(uniform, logits.shape[0]))

        return _either(self._ops, rules.draws, drawn, lambda: self._ops.argmax(logits, -1))

    def _spread(self, uniform: list[np.ndarray], rows: int) -> Array:
        """Numbers of the rows that draw, at their rows (N, 1); the others' are of no account."""
        found = np.zeros(rows, np.float32)
        drawing = [s.temperature > 0 for s in self._samplings]
        found[drawing if len(drawing) == rows else slice(None)] = np.concatenate(uniform)
        return self._ops.array(found)[:, None]

    def _penalized(self, logits: Array, generated: Array | None) -> Array:
        """generated: how often each token was generated before, (B, V) as the logits."""
        if generated is None or self._seen is None:
            return logits
        rules, ops = self._rules, self._ops
        if rules.repetition is not None:
            stretched = ops.where(logits > 0, logits / rules.repetition, logits * rules.repetition)
            logits = ops.where(self._seen + generated > 0, stretched, logits)
        once = ops.where(generated > 0, rules.presence, 0.0)
        return logits - once - generated * rules.frequency

    def _draw(self, logits: Array, u: Array) -> Array:
        """Invert the cumulative distribution at one uniform number u (N, 1) in [0, 1) a row: int32 (N,)."""
        return _either(
            self._ops,
            self._rules.orders,
            lambda: self._draw_ordered(logits, u),
            lambda: self._place(self._ops.softmax(logits, -1), u),
        )

    def _draw_ordered(self, logits: Array, u: Array) -> Array:
        ops, rules, vocabulary = self._ops, self._rules, logits.shape[-1]
        logits, index = ops.topk(logits, min(rules.best, vocabulary))
        places = ops.array(np.arange(index.shape[-1], dtype=np.int32))[None, :]
        if rules.top_k is not None:
            logits = ops.where(places < rules.top_k, logits, MASKED)
        p = ops.softmax(logits, -1)
        if rules.top_p is not None:
            p = ops.where(ops.cumsum(p, -1) - p < rules.top_p, p, 0.0)
        place = self._place(p, u)
        return ops.cast(ops.sum(ops.where(places == place[:, None], index, 0), -1), "int32")

    def _place(self, p: Array, u: Array) -> Array:
        """The first place whose cumulated mass exceeds u times the whole: int32 (N,)."""
        ops, min_p = self._ops, self._rules.min_p
        if min_p is not None:
            p = ops.where(p >= ops.max(p, -1)[:, None] * min_p, p, 0.0)
        total = ops.cumsum(p, -1)
        return ops.argmax(ops.cast(total > u * total[:, -1:], "int32"), -1)  # argmax finds the first of equals


class _Numbers:
    """A row's uniform numbers in [0, 1), float32, each taken once; those of drafts are looked at first."""

    def __init__(self, random: np.random.Generator):
        self._random = random
        self._waiting = np.empty(0, np.float32)

    def peek(self, count: int) -> np.ndarray:
        """The next `count`, which stay the next."""
        more = count - len(self._waiting)
        if more > 0:
            self._waiting = np.concatenate([self._waiting, self._random.random(more, dtype=np.float32)])
        return self._waiting[:count]

    def drop(self, count: int) -> None:
        """Take the next `count`, whether or not they were looked at."""
        self.peek(count)
        self._waiting = self._waiting[count:]

    def take(self, count: int) -> np.ndarray:
        """The next `count`."""
        found = self.peek(count)
        self.drop(count)
        return found


def _either(ops: Backend, flag: bool | Array, yes: Callable[[], Array], no: Callable[[], Array]) -> Array:
    """yes() in the rows with the flag, no() in the others; only what some row needs is computed."""
    if isinstance(flag, bool):
        return yes() if flag else no()
    return ops.where(flag, yes(), no())
