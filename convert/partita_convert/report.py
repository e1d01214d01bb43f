"""What a conversion did, in figures: sizes, bits a weight, each tensor's error, what is left of an adapter.

Not here: printing, measuring. Invariant: `as_json` holds numbers that JSON has (an error without bound is null).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from partita.units import disk_size

from .recipes import part_of
from .write_folder import WrittenTensor


@dataclass(frozen=True)
class Check:
    """Source and result on a text. kl: mean divergence of the next token's probabilities, nats. top1: share of equal
    most likely tokens."""

    tokens: int
    source_perplexity: float
    perplexity: float
    kl: float
    top1: float


@dataclass(frozen=True)
class Other:
    """A file of the same model that others made, judged on the same text. nbytes: of the files with its weights."""

    path: Path
    nbytes: int
    check: Check

    def as_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "bytes": self.nbytes, **_numbers(self.check)}


@dataclass(frozen=True)
class Raised:
    """A weight that got more bits, so that an adapter's change is not lost in rounding. wanted: the format that it
    would have had. share: of the change that would be left in that. nbytes: in that."""

    wanted: str
    share: float
    nbytes: int


@dataclass(frozen=True)
class Report:
    """What was written, sizes in bytes.

    form: as `to` has it. tensors: name, formats and error of each. retained: of each weight that an
    adapter changed, the share of the change that is in what was written. raised: those that got more bits for it.
    check: what was lost on a text, if that was asked. against: what another file lost on it. rank: of an adapter, where
    one was written in another layout and no model; its tensors are the changes.
    """

    path: Path
    form: str
    source_bytes: int
    nbytes: int
    tensors: tuple[WrittenTensor, ...]
    recipe: str | None = None
    calibration: str | None = None
    retained: Mapping[str, float] = field(default_factory=dict[str, float])
    raised: Mapping[str, Raised] = field(default_factory=dict[str, Raised])
    check: Check | None = None
    against: Other | None = None
    rank: int | None = None

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors, scales and biases included."""
        weights = sum(math.prod(tensor.shape) for tensor in self.tensors)
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / weights if weights else 0.0

    def as_json(self) -> dict[str, Any]:
        tensors: list[dict[str, Any]] = []
        for tensor in self.tensors:
            row: dict[str, Any] = {"name": tensor.name, "source": tensor.source, "target": tensor.target}
            row["error"] = _finite(tensor.error)
            row |= {"shape": list(tensor.shape), "bytes": tensor.nbytes}
            if tensor.name in self.retained:
                row["retained"] = _finite(self.retained[tensor.name])
            if (raised := self.raised.get(tensor.name)) is not None:
                row |= {"wanted": raised.wanted, "retained_in_wanted": _finite(raised.share)}
            tensors.append(row)
        check = self.check
        return {
            "path": str(self.path),
            "to": self.form,
            "bytes": self.nbytes,
            "source_bytes": self.source_bytes,
            "bits_per_weight": self.bits_per_weight if self.rank is None else None,
            "recipe": self.recipe,
            "calibration": self.calibration,
            "tensors": tensors,
            "retained": _finite(self.least_retained),
            "raised": self.why_raised,
            "check": None if check is None else _numbers(check),
            "against": None if self.against is None else self.against.as_json(),
        }

    @property
    def least_retained(self) -> float | None:
        return min(self.retained.values(), default=None)

    @property
    def why_raised(self) -> str | None:
        """One line on the weights that got more bits: how many, what that costs, why, and how to do without."""
        return why_raised(self.raised, self.tensors, len(self.retained))


def why_raised(raised: Mapping[str, Raised], tensors: Sequence[WrittenTensor], changed: int) -> str | None:
    """The line of a `Report`; None where no weight was raised. changed: how many weights the adapter changes."""
    written = [(raised[tensor.name], tensor) for tensor in tensors if tensor.name in raised]
    if not written:
        return None
    moves = Counter(f"{before.wanted} → {tensor.target}" for before, tensor in written)
    shown = ", ".join(f"{move} ({count})" if len(moves) > 1 else move for move, count in moves.most_common())
    extra = sum(tensor.nbytes - before.nbytes for before, tensor in written)
    least, most = (bound(before.share for before, _ in written) for bound in (min, max))
    shares = f"{least:.0%} to {most:.0%}" if f"{least:.0%}" != f"{most:.0%}" else f"{least:.0%}"
    return (
        f"{len(written)} of {changed} weights that the adapter changes have more bits ({shown}), "
        f"{disk_size(extra)} more: rounding would have left {shares} of its change in them; to stay small, "
        "`adapter_loss` keep takes that loss, and an adapter that is loaded beside the weights has none"
    )


def _numbers(check: Check) -> dict[str, Any]:
    return {key: _finite(value) for key, value in vars(check).items()}


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
