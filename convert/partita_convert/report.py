"""What a conversion did, in figures: sizes, bits a weight, each tensor's error, what is left of an adapter.

Not here: printing, measuring. Invariant: `as_json` holds numbers that JSON has (an error without bound is null).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .recipes import part_of
from .write_folder import WrittenTensor


@dataclass(frozen=True)
class Check:
    """Source and result on a text. kl: mean divergence of the next token's probabilities, nats. top1: share of equal
    likeliest tokens."""

    tokens: int
    source_perplexity: float
    perplexity: float
    kl: float
    top1: float


@dataclass(frozen=True)
class Report:
    """retained: of each weight that an adapter changed, the share of the change that is in what was written."""

    path: Path
    form: str
    source_bytes: int
    nbytes: int
    tensors: tuple[WrittenTensor, ...]
    recipe: str | None = None
    calibration: str | None = None
    retained: Mapping[str, float] = field(default_factory=dict)
    check: Check | None = None

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors, scales and biases included."""
        weights = sum(math.prod(tensor.shape) for tensor in self.tensors)
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / weights if weights else 0.0

    def as_json(self) -> dict[str, Any]:
        tensors = []
        for tensor in self.tensors:
            row: dict[str, Any] = {"name": tensor.name, "source": tensor.source, "target": tensor.target}
            row["error"] = _finite(tensor.error)
            row |= {"shape": list(tensor.shape), "bytes": tensor.nbytes}
            if tensor.name in self.retained:
                row["retained"] = _finite(self.retained[tensor.name])
            tensors.append(row)
        check = self.check
        return {
            "path": str(self.path),
            "to": self.form,
            "bytes": self.nbytes,
            "source_bytes": self.source_bytes,
            "bits_per_weight": self.bits_per_weight,
            "recipe": self.recipe,
            "calibration": self.calibration,
            "tensors": tensors,
            "retained": _finite(self.least_retained),
            "check": None if check is None else {key: _finite(value) for key, value in vars(check).items()},
        }

    @property
    def least_retained(self) -> float | None:
        return min(self.retained.values(), default=None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Kind:
    """Tensors that are alike: same role, same source and target. error: root mean square over all their weights."""

    name: str
    count: int
    source: str
    target: str
    nbytes: int
    error: float | None


def kinds(tensors: Sequence[WrittenTensor]) -> list[Kind]:
    """Rows of a summary, in the order of the tensors."""
    groups: dict[tuple[str, str, str], list[WrittenTensor]] = {}
    for tensor in tensors:
        groups.setdefault((_role(tensor), tensor.source, tensor.target), []).append(tensor)
    return [
        Kind(role, len(members), source, target, sum(tensor.nbytes for tensor in members), _mean_error(members))
        for (role, source, target), members in groups.items()
    ]


def _role(tensor: WrittenTensor) -> str:
    if len(tensor.shape) >= 2:
        return part_of(tensor.name)
    return "biases" if tensor.name.endswith(".bias") else "norms and others"


def _mean_error(tensors: Sequence[WrittenTensor]) -> float | None:
    """Root mean square, each tensor by its weights: the relative error of all together if they are of one size."""
    known = [(tensor.error, math.prod(tensor.shape)) for tensor in tensors if tensor.error is not None]
    count = sum(size for _, size in known)
    return math.sqrt(sum(error**2 * size for error, size in known) / count) if count else None


def worst(tensors: Sequence[WrittenTensor], count: int = 3) -> list[WrittenTensor]:
    """The tensors of largest error, none without any."""
    lossy = [tensor for tensor in tensors if tensor.error]
    return sorted(lossy, key=lambda tensor: -(tensor.error or 0.0))[:count]
