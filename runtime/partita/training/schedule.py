"""The learning rate of each step: a rise, then a constant, a line or half a cosine. A pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import DataError

KINDS = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """peak: the learning rate after the rise. steps: of the whole run. warmup: steps of the rise, whose last has the
    peak. kind: what follows. floor: the share of the peak that linear and cosine end at.

    Raises DataError, naming the flag, for values that make no schedule.
    """

    peak: float
    steps: int
    warmup: int = 0
    kind: Literal["constant", "linear", "cosine"] = "cosine"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise DataError(f"`learning_rate` must be > 0 and finite, got {self.peak}", field="learning_rate")
        if self.steps < 1:
            raise DataError(f"`steps` must be >= 1, got {self.steps}", field="steps")
        if not 0 <= self.warmup <= self.steps:
            raise DataError(
                f"`warmup` must be from 0 to the {self.steps} steps of the run, got {self.warmup}", field="warmup"
            )
        if self.kind not in KINDS:
            raise DataError(f"unknown `schedule` {self.kind!r}; expected one of {', '.join(KINDS)}", field="schedule")
        if not 0 <= self.floor <= 1:
            raise DataError(f"the schedule's floor must be from 0 to 1, got {self.floor}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1. The first one is never 0, so it is never wasted."""
        if step <= self.warmup:
            return self.peak * (step / self.warmup)
        if self.kind == "constant":
            return self.peak
        # from the peak, which the last step of the rise has, to the floor one step after the end
        done = min((step - self.warmup) / (self.steps - self.warmup + 1), 1.0)
        left = 1 - done if self.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.peak * (self.floor + (1 - self.floor) * left)
