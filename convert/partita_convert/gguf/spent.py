"""GGUF's K types as the widths that a measured budget is spent on.

Not here: measuring and spending (`measure`). Invariant: what is measured is what a reader finds of the written type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .encode import Value, as_written
from .file import size
from .mixes import fitting

_DENSE = "F16"


@dataclass(frozen=True)
class Types:
    """Rows that 256 does not divide have the types that mixtures give them."""

    every: Sequence[str] = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
    probe: str = "Q3_K"

    def fitted(self, width: str, columns: int) -> str | None:
        own = fitting(width, columns)
        return None if own == _DENSE else own

    def rounded(self, name: str, value: Value, width: str, importance: np.ndarray | None) -> np.ndarray:
        return as_written(name, value, fitting(width, value.shape[-1]), importance)

    def cost(self, shape: tuple[int, ...], width: str) -> int:
        return 8 * size(fitting(width, shape[-1]), shape)


def mix_of(budget: float) -> str:
    """The mixture of about so many bits a weight: what a file says of itself, and has where nothing is measured."""
    mixes = (("Q2_K", 3.2), ("Q3_K_M", 4.3), ("Q4_K_M", 5.2), ("Q5_K_M", 6.1), ("Q6_K", 7.5))
    return next((name for name, most in mixes if budget < most), "Q8_0")
