"""Rows of weights as K-quants, or as blocks of one scale: what is searched for each type, and how much of it was lost.

Not here: the loops (`kernels`), the bytes of a block (`layouts`), which tensor gets which type. Invariant: the same
rows give the same bytes, on however many threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from partita.errors import DataError

from ...quantize import column_weights, cores
from . import layouts

ROUNDS = 2
"""Of the search over scales as stored. Measured: a third takes 0.1 % off the error and a tenth more time."""
_CLIPS = (-0.3, 0.1, 0.5, 0.9)
"""How far the ends of a sub-block's range are moved inwards, in steps (as in `quantize`)."""
_FEWEST = 1 << 16  # values that are worth a thread


@dataclass(frozen=True)
class Kind:
    """values: of a block. size: of a sub-block. low, high: of integers. scales: of sub-blocks, as integers. most: the
    largest minimum, 0 where there is none. tries: clips of a range, or what the largest magnitude becomes."""

    values: int
    size: int
    low: int
    high: int
    scales: tuple[int, int]
    most: int
    tries: tuple[float, ...]
    layout: Callable[..., np.ndarray]


KINDS = {
    "Q2_K": Kind(256, 16, 0, 3, (0, 15), 15, _CLIPS, layouts.q2_k),
    "Q3_K": Kind(256, 16, -4, 3, (-32, 31), 0, (2.6, 3.0, 3.4, 3.7, 4.0, 4.3, 4.6, 5.0), layouts.q3_k),
    "Q4_K": Kind(256, 32, 0, 15, (0, 63), 63, _CLIPS, layouts.q4_k),
    "Q5_K": Kind(256, 32, 0, 31, (0, 63), 63, _CLIPS, layouts.q5_k),
    "Q6_K": Kind(256, 16, -32, 31, (-128, 127), 0, (29.5, 30.5, 31.0, 31.5, 32.0, 33.0), layouts.q6_k),
    "Q4_0": Kind(32, 32, -8, 7, (1, 1), 0, (6.5, 7.0, 7.3, 7.6, 8.0, 8.3, 8.6, 9.0), layouts.q4_0),
    "Q5_0": Kind(32, 32, -16, 15, (1, 1), 0, (14.0, 14.5, 15.0, 15.4, 15.8, 16.2, 16.6, 17.0), layouts.q5_0),
    "Q8_0": Kind(32, 32, -127, 127, (1, 1), 0, (124.0, 125.0, 126.0, 126.5, 127.0, 127.5), layouts.q8_0),
}


@dataclass(frozen=True)
class Blocks:
    """raw: uint8 (rows, bytes). lost: squared error, over all rows."""

    raw: np.ndarray
    lost: float


def quantized(x: np.ndarray, type_name: str, importance: np.ndarray | None = None, name: str = "a tensor") -> Blocks:
    """x float32 (rows, n), finite, as blocks of one of KINDS. importance: of the columns, as in `quantize.quantize`.

    DataError: numbers beyond what the type's float16 scales reach, an importance that is none.
    """
    kind, (rows, columns) = KINDS[type_name], x.shape
    weights = np.ones((1, columns)) if importance is None else column_weights(importance, x.shape, name)
    weights = weights.astype(np.float32).reshape(-1, kind.values)
    threads = min(cores(), max(x.size // _FEWEST, 1), rows)
    parts = [x[rows * i // threads : rows * (i + 1) // threads] for i in range(threads)]
    if threads == 1:
        found = [_part(x, kind, weights)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(partial(_part, kind=kind, weights=weights), parts))
    if not all(np.isfinite(part.lost) for part in found):
        raise DataError(f"{name}: its numbers are too large for {type_name}'s float16 scales; write BF16 or F32")
    return Blocks(np.concatenate([part.raw for part in found]), sum(part.lost for part in found))


def _part(x: np.ndarray, kind: Kind, weights: np.ndarray) -> Blocks:
    search = _search()
    rows, flat = len(x), np.ascontiguousarray(x, np.float32).reshape(-1, kind.values)
    count, sub_blocks = len(flat), kind.values // kind.size
    _, exponents = np.frexp(np.abs(flat).max(-1))
    q = np.empty((count, kind.values), np.uint8)
    s, m = np.zeros((count, sub_blocks), np.int32), np.zeros((count, sub_blocks), np.int32)
    halves, lost = np.empty((count, 2)), np.empty((count, 2))
    search(
        *(np.ldexp(flat, -exponents[:, None]), weights, exponents, kind.size),
        *(np.float32(kind.low), np.float32(kind.high), kind.scales, kind.most),
        *(np.array(kind.tries, np.float32), ROUNDS, q, s, m, halves, lost),
    )
    if not np.isfinite(lost[:, 1]).all():
        return Blocks(q, np.inf)
    d, e = np.ldexp(halves, exponents[:, None]).astype(np.float16).T
    total = float(np.ldexp(lost[:, 0], 2 * exponents).sum())
    return Blocks(kind.layout(q, s, m, d, e).reshape(rows, -1), total)


def _search() -> Callable[..., None]:
    """The compiled loops. DataError where there is no numba."""
    try:
        from .kernels import search  # half a second
    except ImportError as error:
        raise DataError(
            f"these block types are computed by numba, which cannot be used here ({error}): pip install numba"
        ) from None
    return search
