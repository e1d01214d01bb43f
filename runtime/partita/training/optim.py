"""AdamW and clipping by the global norm, written once over the seam, so that a state saved on one backend goes on on
another.

Invariants: moments are float32, and so is the arithmetic; what is updated is ours;
the order of names decides the order of sums, so the same gradients give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..arrays import Array
from ..backend import Backend
from ..errors import DataError

Arrays = dict[str, Array]


@dataclass(frozen=True)
class AdamW:
    """Settings of AdamW (arXiv 1711.05101): moments corrected for their start, decay apart from the gradient.

    Only matrices decay: norms, biases and DoRA's magnitudes are scales, which have no business near zero.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise DataError(f"the optimizer's betas must be >= 0 and < 1, got {self.beta1} and {self.beta2}")
        if not self.eps > 0:
            raise DataError(f"the optimizer's eps must be > 0, got {self.eps}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise DataError(f"`weight_decay` must be >= 0, got {self.weight_decay}", field="weight_decay")


@dataclass
class Moments:
    """Running means of the gradients (m) and of their squares (v), float32, by the trainables' names; updates done."""

    m: Arrays = field(default_factory=dict[str, Array])
    v: Arrays = field(default_factory=dict[str, Array])
    updates: int = 0


def moments_of(ops: Backend, values: Mapping[str, Array]) -> Moments:
    """Zeros for every trainable: what a run begins with."""

    def zeros() -> Arrays:
        return {name: ops.zeros(tuple(value.shape), "float32") for name, value in values.items()}

    return Moments(zeros(), zeros())


def global_norm(ops: Backend, grads: Mapping[str, Array]) -> Array:
    """The length of all gradients as one vector: float32 scalar, still on the device."""
    total = None
    for name in sorted(grads):
        flat = ops.cast(grads[name], "float32").reshape(-1)
        squares = ops.sum(flat * flat, 0)
        total = squares if total is None else total + squares
    if total is None:
        raise DataError("there is nothing to train: choose other `targets` or `layers`", field="targets")
    return total**0.5


def clip_factor(norm: float, limit: float | None) -> float:
    """What gradients are multiplied by so that their norm is at most `limit`, as torch's clip_grad_norm_ has it."""
    return 1.0 if limit is None else min(limit / (norm + 1e-6), 1.0)


def update(
    ops: Backend,
    values: Arrays,
    grads: Arrays,
    moments: Moments,
    settings: AdamW,
    learning_rate: float,
    factor: float = 1.0,
    decayed: Collection[str] | None = None,
) -> None:
    """One step: the dicts and `moments` then hold the new numbers, in the memory of the old ones where arrays have one,
    and `grads` is empty. factor: multiplies gradients. decayed: what decays; matrices, if None.

    One array at a time, so that little is alive beside them.
    """
    moments.updates += 1
    unbias_m, unbias_v = (1 - beta**moments.updates for beta in (settings.beta1, settings.beta2))
    step = ops.elementwise(_updated)
    for name in sorted(values):
        decays = len(values[name].shape) > 1 if decayed is None else name in decayed
        shrink = 1 - learning_rate * settings.weight_decay * decays
        old, grad = (values[name], moments.m[name], moments.v[name]), grads.pop(name)
        grad = grad if factor == 1.0 else grad * factor
        numbers = 1 - settings.beta1, settings.beta2, 1 - settings.beta2, settings.eps
        new = step(*old, grad, *numbers, shrink, learning_rate / unbias_m, unbias_v)
        values[name], moments.m[name], moments.v[name] = map(ops.assign, old, new)


def _updated(
    value: Array,
    m: Array,
    v: Array,
    grad: Array,
    share: Any,
    beta2: Any,
    rest: Any,
    eps: Any,
    shrink: Any,
    rate: Any,
    unbias: Any,
) -> tuple[Array, Array, Array]:
    m = m + (grad - m) * share
    v = v * beta2 + grad * grad * rest
    return value * shrink - m * rate / ((v / unbias) ** 0.5 + eps), m, v
