"""How much of a packed weight is dense at once on a CPU.

A part of a large weight stays in the processor's cache between being made dense and being multiplied; the whole would
be new pages each time, and more time than the product of 128 rows takes (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 2**20  # values


def rows_at_once(shape: Sequence[int]) -> int:
    """Of a weight (out, in)."""
    return max(BLOCK // shape[1], 1)
