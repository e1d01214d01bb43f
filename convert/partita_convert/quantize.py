"""Weights to integers with small error: scales and biases found by search, in the layout that `Packed` describes.

Not here: how many bits a weight gets (`recipes.py`). Invariants: the integers are the best ones for the scale and bias
*as stored*; no group has a larger squared error than MLX's rule (`quantization.quantize_weight`) with its scales in the
same dtype, and no tensor a larger one than that rule with scales in float32; the same input gives the same bytes.

The search, for each group: scales and biases that leave a little of either end of the range out, in fractions of a
step; after rounding, the scale and bias that fit these integers best (least squares); the best of all, fitted twice
more. Groups are brought to the magnitude of one by powers of two first, so that squares neither overflow nor vanish.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from partita.checkpoint.schemes.affine import BITS, GROUP_SIZES
from partita.errors import DataError
from partita.quantization import AFFINE, SMALL_FLOATS, Packed, check_groups, dequantize, pack, unpack

from .floats import encode

CLIPS = (-0.3, 0.1, 0.5, 0.9)
"""How far the ends of the grid are moved inwards, in steps. Measured: more of them gain less than 1 % of the error."""
NEIGHBOURS = range(-4, 5)
_FITS = 2
_VALUES = 1 << 16  # a chunk of rows and its temporaries stay in a core's second cache
Search = Callable[..., tuple[float, float, float, float]]


@dataclass(frozen=True)
class Rounded(Packed[np.ndarray]):
    """What a weight was rounded to, and what that lost. squares: of what it is off by and of the weight, summed."""

    squares: tuple[float, float] = (0.0, 0.0)


def quantize(
    x: np.ndarray | Packed,
    bits: int,
    group_size: int,
    *,
    mode: str = AFFINE,
    importance: np.ndarray | None = None,
    scales: str | None = None,
    name: str = "a weight",
) -> Packed:
    """x (*leading, n), floating or packed otherwise, as integers of `bits` bits in groups along the last axis; or as
    small floats, whose mode has its bits and groups (`floats.py`).

    importance (n,), or for x (experts, out, n) (experts, n): what a squared error in each column costs, relative to the
    others; none: all the same. scales:
    "float16" or "float32"; by default float16 unless it costs accuracy: numbers out of its range, or too small for it.
    DataError: bits or group that the format has not, a size that does not divide, NaN or infinity; names the tensor.
    """
    if mode != AFFINE:
        return _quantize_floats(x, mode, importance, name)
    check_format(bits, group_size)
    check_groups(x.shape[-1], bits, group_size, name)
    if scales is not None:
        return _quantize(x, bits, group_size, importance, np.dtype(scales), name)[0]
    packed, error, plain = _quantize(x, bits, group_size, importance, np.dtype(np.float16), name)
    if error <= plain:
        return packed
    return _quantize(x, bits, group_size, importance, np.dtype(np.float32), name)[0]


def check_format(bits: int, group_size: int) -> None:
    """DataError unless the packed format has this width and group."""
    if bits not in BITS:
        raise DataError(f"{bits} bits are not one of {', '.join(map(str, BITS))}")
    if group_size not in GROUP_SIZES:
        raise DataError(f"groups of {group_size} are not one of {', '.join(map(str, GROUP_SIZES))}")


def _quantize(
    x: np.ndarray | Packed, bits: int, group_size: int, importance: np.ndarray | None, dtype: Any, name: str
) -> tuple[Packed, float, float]:
    """The packed weight, its total squared error, and that of two plain rules (the better in each group) whose scales
    are float32: MLX's, and the minimum and maximum as the ends of the grid. `Rounded` by the compiled loop."""
    *leading, n = x.shape
    rows = int(np.prod(leading, dtype=np.int64))
    words = np.empty((rows, n * bits // 32), np.uint32)
    scales, biases = (np.empty((rows, n // group_size), dtype) for _ in range(2))
    weights = None if importance is None else _weights(importance, x.shape, group_size, name)
    places = _places(rows, n, 1 if weights is None else len(weights))
    search = searched()

    def some(place: slice) -> tuple[float, ...]:
        """Quantize a chunk's rows; their sums."""
        chunk = _finite(_rows(x, n, place), name)
        with np.errstate(
            over="ignore", invalid="ignore", divide="ignore"
        ):  # a scale that cannot be stored: its error is not finite
            found = search(chunk, _of_rows(weights, place, rows), bits, group_size, dtype)
            words[place], scales[place], biases[place] = found.words, found.scales, found.biases
        return found.sums

    error, plain, *squares = [sum(each) for each in zip(*_threaded(some, places), strict=True)] or (0.0, 0.0)
    shape = (*leading, n // group_size)
    parts = words.reshape(*leading, n * bits // 32), scales.reshape(shape), biases.reshape(shape)
    packed = Packed(*parts, bits, group_size)
    if squares:
        packed = Rounded(*parts, bits, group_size, squares=(squares[0], squares[1]))
    return packed, error, plain


def _quantize_floats(x: np.ndarray | Packed, mode: str, importance: np.ndarray | None, name: str) -> Packed:
    (bits, group), (*leading, n) = SMALL_FLOATS[mode], x.shape
    check_groups(n, bits, group, name)
    rows = int(np.prod(leading, dtype=np.int64))
    codes, scales = np.empty((rows, n * bits // 8), np.uint8), np.empty((rows, n // group), np.uint8)
    weights = None if importance is None else _weights(importance, x.shape, group, name)

    def some(place: slice) -> tuple[float, float]:
        chunk = _finite(_rows(x, n, place), name)
        codes[place], scales[place] = encode(chunk, mode, _of_rows(weights, place, rows))
        return 0.0, 0.0

    list(_threaded(some, _places(rows, n, 1 if weights is None else len(weights))))
    words = codes.view("<u4").reshape(*leading, n * bits // 32)
    return Packed(words, scales.reshape(*leading, n // group), None, bits, group, mode)


def _finite(chunk: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(chunk).all():
        raise DataError(f"{name} holds NaN or infinity and cannot be quantized; the checkpoint is damaged")
    return chunk


def column_weights(importance: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """float32 (1, n), or (experts, n) for an importance of each, one on average. A column that never matters still
    counts a little. shape: of what is to be weighed."""
    n = shape[-1]
    fits = importance.shape in ((n,), (shape[0], n) if len(shape) == 3 else (n,))
    if not fits or not np.isfinite(importance).all() or (importance < 0).any():
        raise DataError(f"{name}: importance must be {n} numbers, none of them negative")
    rows = importance.reshape(-1, n).astype(np.float64)
    means = rows.mean(-1, keepdims=True)
    return np.maximum(rows / np.where(means, means, 1), 1e-3).astype(np.float32)


def _weights(importance: np.ndarray, shape: tuple[int, ...], group_size: int, name: str) -> np.ndarray:
    """float32 (experts or 1, n / group_size, group_size)."""
    found = column_weights(importance, shape, name)
    return found.reshape(len(found), -1, group_size)


def _of_rows(weights: np.ndarray | None, place: slice, rows: int) -> np.ndarray | None:
    """Of the expert that some of all rows belong to."""
    return None if weights is None else weights[place.start * len(weights) // rows]


def _places(rows: int, n: int, experts: int = 1) -> list[slice]:
    """Chunks of rows, by sixteens, which the compiled search takes at once; none has rows of two experts."""
    step, own = max(_VALUES // n // 16, 1) * 16, rows // experts
    return [
        slice(start, min(start + step, first + own))
        for first in range(0, own * experts, own or 1)
        for start in range(first, first + own, step)
    ]


def _rows(x: np.ndarray | Packed, n: int, place: slice) -> np.ndarray:
    """A chunk's rows, float32 (rows, n)."""
    if isinstance(x, Packed):
        return dequantize(x.map(lambda part: part.reshape(-1, part.shape[-1])[place]))
    with np.errstate(over="ignore"):  # float64 out of range becomes infinity, which is refused
        return x.reshape(-1, n)[place].astype(np.float32)


def _threaded(work: Callable[[slice], tuple[float, ...]], places: Sequence[slice]) -> Iterable[tuple[float, ...]]:
    """In order, on as many cores as this process may use."""
    threads = min(cores(), len(places))
    if threads < 2:
        return map(work, places)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, places))


def cores() -> int:
    """Cores that this process may use, which a container can make fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def affine_lost(source: np.ndarray | Packed, value: Packed) -> tuple[float, float] | None:
    """Squares of value - source and of source, summed, of affine integers; None where that is not compiled. What is not
    finite in the source is left out."""
    if value.mode != AFFINE or compiled_search() is None:
        return None
    from .affine_search import lost

    n = value.shape[-1]
    flat = value.map(lambda part: part.reshape(-1, part.shape[-1]))

    def some(place: slice) -> tuple[float, float]:
        rows, part = _rows(source, n, place), flat.map(lambda each: each[place])
        q = unpack(part.weight, value.bits).reshape(-1, value.group_size)
        scales, biases = (np.ascontiguousarray(each, np.float32).reshape(-1) for each in part.grid)
        return lost(rows.reshape(-1, value.group_size), q, scales, biases)

    sums = list(_threaded(some, _places(flat.scales.shape[0], n)))
    return sum(each[0] for each in sums), sum(each[1] for each in sums)


@cache
def compiled_search() -> Search | None:
    """The compiled loop; None where there is no numba."""
    try:
        from .affine_search import search  # half a second
    except ImportError:
        return None
    return search


def searched() -> Callable[..., _Found]:
    """What finds scales and integers of rows: the compiled loop, else numpy."""
    return _by_numpy if compiled_search() is None else _compiled


def _compiled(x: np.ndarray, weights: np.ndarray | None, bits: int, group_size: int, dtype: Any) -> _Found:
    """x: float32 (rows, n). weights: (n / group_size, group_size), or None: all the same."""
    search, count, groups = compiled_search(), len(x), x.shape[1] // group_size
    assert search is not None
    weights = np.ones((groups, group_size), np.float32) if weights is None else weights
    words = np.empty((count, x.shape[1] * bits // 32), np.uint32)
    scales, biases = (np.empty((count, groups), np.float32) for _ in range(2))
    tries = np.array(CLIPS, np.float32), _FITS, max(NEIGHBOURS)
    sums = search(x, weights, bits, dtype == np.float32, *tries, words, scales, biases)
    return _Found(words, scales, biases, sums)


def _by_numpy(x: np.ndarray, weights: np.ndarray | None, bits: int, group_size: int, dtype: Any) -> _Found:
    """The same by numpy."""
    count, groups = len(x), x.reshape(-1, group_size)
    tiled = None if weights is None else np.tile(weights, (count, 1))
    best, integers, error, plain = _Groups.of(groups, tiled, bits, dtype).search()
    scales, biases = (part.reshape(count, -1) for part in best)
    return _Found(pack(integers.reshape(count, -1), bits), scales, biases, (error, plain))


@dataclass(frozen=True)
class _Found:
    """words uint32 (rows, n * bits / 32). scales, biases: (rows, groups), as stored, in any floating dtype. sums: the
    squared error and that of the plain rules; by the compiled loop also the two of `Rounded.squares`."""

    words: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    sums: tuple[float, ...]


@dataclass(frozen=True)
class _Groups:
    """Groups at the magnitude of one. x: float32 (G, n), times 2**exponent the values. weights: (G, n) or None."""

    x: np.ndarray
    weights: np.ndarray | None
    exponent: np.ndarray
    top: np.float32  # the largest integer
    dtype: Any
    spare: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, x: np.ndarray, weights: np.ndarray | None, bits: int, dtype: Any) -> _Groups:
        _, exponent = np.frexp(np.abs(x).max(-1))
        scaled = np.ldexp(x, -exponent[:, None])
        spare = np.empty_like(scaled), np.empty_like(scaled)
        return cls(scaled, weights, exponent, np.float32(2**bits - 1), dtype, spare)

    def search(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, float, float]:
        """Scales and biases (G,) as stored, integers uint8 (G, n), their squared error, that of the plain rules."""
        low: np.ndarray = self.x.min(-1)
        high: np.ndarray = self.x.max(-1)
        best = _Best(len(low))
        plain_scale, plain_bias = self.mlx(low, high)
        plain = self.errors(plain_scale, plain_bias)
        self.offer(best, *self.fit(), fits=1)
        self.offer(best, plain_scale, plain_bias)
        plain = np.fmin(plain, self.errors((high - low) / self.top, low))
        constant = high == low  # what the bias cannot hold, the scale adds
        step = np.where(constant, low - self.stored(low), (high - low) / self.top)
        self.offer(best, step, low)
        for below in CLIPS:
            for above in CLIPS:
                self.offer(best, step * (1 - (below + above) / self.top), low + below * step, fits=1)
        for _ in range(_FITS):
            self.integers(best.scale, best.bias)
            self.offer(best, *self.fit())
        self.look_closer(best, plain)
        integers = self.integers(best.scale, best.bias).astype(np.uint8)
        magnitude = np.ldexp(1.0, 2 * self.exponent)  # of a square
        error, plain_error = (float((e.astype(np.float64) * magnitude).sum()) for e in (best.error, plain))
        return (self.out(best.scale), self.out(best.bias)), integers, error, plain_error

    def look_closer(self, best: _Best, plain: np.ndarray) -> None:
        """Neighbours of the best so far, for the few groups where a plain rule with float32 scales is luckier."""
        (worse,) = np.nonzero(best.error > plain)
        if not len(worse):
            return
        x = self.x[worse]
        weights = None if self.weights is None else self.weights[worse]
        few = replace(
            self, x=x, weights=weights, exponent=self.exponent[worse], spare=(np.empty_like(x), np.empty_like(x))
        )
        own = best.of(worse)
        scale, bias = own.scale.copy(), own.bias.copy()
        next_scale, next_bias = few.spacing(scale), few.spacing(bias)
        for i in NEIGHBOURS:
            for j in NEIGHBOURS:
                few.offer(own, scale + np.float32(i) * next_scale, bias + np.float32(j) * next_bias)
        best.put(worse, own)

    def spacing(self, value: np.ndarray) -> np.ndarray:
        """How far the next number of the stored dtype is."""
        return np.ldexp(np.abs(np.spacing(self.out(value))).astype(np.float32), -self.exponent)

    def mlx(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scales and biases of `quantization.quantize_weight`, float32."""
        below = np.abs(low) > np.abs(high)
        least = np.ldexp(np.float32(1e-7), -self.exponent)
        step = np.maximum((high - low) / self.top, least)
        step = np.where(below, step, -step)
        edge = np.where(below, low, high)
        q = np.rint(edge / step)
        return np.where(q != 0, edge / np.where(q != 0, q, 1), step), np.where(q != 0, edge, np.float32(0))

    def offer(self, best: _Best, scale: np.ndarray, bias: np.ndarray, fits: int = 0) -> None:
        """Try scales and biases (G,), and then those that fit the integers found."""
        for i in range(fits + 1):
            scale, bias = self.stored(scale), self.stored(bias)
            best.take(self.errors(scale, bias), scale, bias)
            if i < fits:
                scale, bias = self.fit()

    def stored(self, value: np.ndarray) -> np.ndarray:
        """Rounded to the stored dtype, at the magnitude of one; infinite where that has no such number."""
        return np.ldexp(self.out(value).astype(np.float32), -self.exponent)

    def out(self, value: np.ndarray) -> np.ndarray:
        """Scales or biases as they are stored."""
        return np.ldexp(value, self.exponent).astype(self.dtype)

    def integers(self, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """The nearest integers, float32 (G, n), in this object's first spare array."""
        q = self.spare[0]
        inverse = 1 / np.where(scale == 0, np.float32(1), scale)
        np.subtract(self.x, bias[:, None], out=q)
        np.multiply(q, inverse[:, None], out=q)
        np.rint(q, out=q)
        return np.clip(q, 0, self.top, out=q)

    def errors(self, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Squared errors (G,), weighted, with the nearest integers, which stay in the first spare array."""
        q, d = self.integers(scale, bias), self.spare[1]
        np.multiply(q, scale[:, None], out=d)
        np.add(d, bias[:, None], out=d)
        np.subtract(d, self.x, out=d)
        if self.weights is None:
            return np.einsum("gn,gn->g", d, d)
        return np.einsum("gn,gn,gn->g", d, d, self.weights)

    def fit(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and bias of least squared error for the integers in the first spare array."""
        q, x, weights = self.spare[0], self.x, self.weights
        if weights is None:
            w, wq, sx = np.float32(x.shape[1]), q, x.sum(-1)
        else:
            w, wq, sx = weights.sum(-1), np.multiply(q, weights, out=self.spare[1]), np.einsum("gn,gn->g", weights, x)
        sq, sqq, sqx = wq.sum(-1), np.einsum("gn,gn->g", wq, q), np.einsum("gn,gn->g", wq, x)
        d = w * sqq - sq * sq
        scale = self.stored(
            (w * sqx - sq * sx) / np.where(d == 0, np.float32(1), d)
        )  # the bias then fits what is stored
        return scale, (sx - scale * sq) / w


class _Best:
    """The best scale and bias so far of every group."""

    def __init__(self, groups: int):
        self.error = np.full(groups, np.inf, np.float32)
        self.scale, self.bias = np.zeros(groups, np.float32), np.zeros(groups, np.float32)

    def take(self, error: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> None:
        better = error < self.error  # never where the error is NaN, of a scale that cannot be stored
        self.error[better], self.scale[better], self.bias[better] = error[better], scale[better], bias[better]

    def of(self, groups: np.ndarray) -> _Best:
        own = _Best(len(groups))
        own.error, own.scale, own.bias = self.error[groups], self.scale[groups], self.bias[groups]
        return own

    def put(self, groups: np.ndarray, own: _Best) -> None:
        self.error[groups], self.scale[groups], self.bias[groups] = own.error, own.scale, own.bias
