"""Products of many rows with a weight in blocks, or a dense one, forward and back, in float32, nothing rounded.

A panel of the weight at a time becomes float32, in the processor's cache, and all rows are multiplied with it; so no
part of a packed weight is ever dense in memory, and it costs little more than the products alone. Back is the product
with the transposed weight, of which a gradient is made. Invariant: a row gives the same numbers alone and among others.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numba import types

from .blocks import PLANE_BYTES, UNIT, Blocks, unit_weights
from .compiled import Call, inner_kernel, kernel, parallel_kernel, part_of_types, threaded
from .lanes import WIDTH, load, load_floats, store
from .panels import multiply, transpose
from .room import new_bytes, new_float_rows, new_floats

DEPTH = 768  # inputs of a panel at most: 96 KiB
ROWS = 512  # at most at once: their inputs stay in the processor's cache while the panels of a weight pass by
CONFLICT = 1024  # rows so many numbers apart, or a multiple, share few places of the first cache


@inner_kernel
def _parts(whole, most):  # pragma: no cover
    """The size of equal parts, none larger than `most`, the last perhaps smaller."""
    count = (whole + most - 1) // most
    return (whole + count - 1) // count


@inner_kernel
def _aside(x, first, stop, start, count, copy):  # pragma: no cover
    """What `multiply` reads of x, copied to rows that lie otherwise."""
    for t in range(first, stop):
        for k in range(count):
            copy[t - first, k] = x[t, start + k]


@inner_kernel
def _place(x, rows, depth):  # pragma: no cover
    """Room for `_aside`, if it is wanted."""
    wanted = rows if x.shape[1] % CONFLICT == 0 else 0
    return new_float_rows(wanted, depth + 16)


@inner_kernel
def _panel_times(x, first, stop, start, panel, count, y, column, edge, copy, add):  # pragma: no cover
    """Rows of x times a panel, to 32 columns of y or as many as there are; edge: room for those, kept between calls."""
    cut = column + WIDTH > y.shape[1]
    target, top, place = (edge, first, 0) if cut else (y, first, column)
    source, begin, at = (copy, 0, 0) if len(copy) else (x, first, start)
    multiply(source, begin, begin + stop - first, at, panel, count, target, top, place, add)
    if cut:
        for t in range(first, stop):
            for j in range(y.shape[1] - column):
                y[t, column + j] = edge[t, j]


def _panel(weight: Any, back: bool | None, n: int, start: int, count: int, scratch: Any, panel: np.ndarray) -> None:
    """Of a weight, 32 outputs from 32 * n on, and `count` inputs from `start` on: panel (inputs, 32). weight: dense
    (out, in), or packed, as `_call` makes it. back: True for the transposed weight, whose inputs are the weight's
    outputs, else None; a type each, so that what is not called is not compiled."""
    raise NotImplementedError  # compiled code calls what follows


@part_of_types(_panel)
def _panel_of(weight, back, n, start, count, scratch, panel):
    return _forward(weight) if isinstance(back, types.NoneType) else _backward(weight)


def _forward(weight: types.Type) -> Any:
    if isinstance(weight, types.Array):
        cut = weight.dtype == types.float32

        def dense(weight, back, n, start, count, scratch, panel):
            _, _, tile = scratch
            size = weight.shape[1]
            for k in range(0, count, UNIT):
                wide, high = min(UNIT, size - start - k), min(WIDTH, weight.shape[0] - n * WIDTH)
                for j in range(high):
                    if wide == UNIT:
                        store(tile, j * UNIT, load_floats(weight, (n * WIDTH + j) * size + start + k))
                    elif cut:
                        for i in range(wide):
                            tile[j * UNIT + i] = weight[n * WIDTH + j, start + k + i]
                transpose(tile, 0, panel, k * WIDTH)

        return dense

    def packed(weight, back, n, start, count, scratch, panel):
        words, planes, bits, scales, biases, middle, group, units = weight
        unpacked, values, _ = scratch
        unit_bytes, groups = bits * UNIT * WIDTH // 8, units * UNIT // group
        for u in range(start // UNIT, (start + count + UNIT - 1) // UNIT):
            parts = scales, biases, middle, group, (n * groups + u * UNIT // group) * WIDTH
            at = (n * units + u) * unit_bytes
            unit_weights(words, at, planes, parts, unpacked, values, panel, (u * UNIT - start) * WIDTH)

    return packed


def _backward(weight: types.Type) -> Any:
    if isinstance(weight, types.Array):

        def dense(weight, back, n, start, count, scratch, panel):
            size = weight.shape[1]
            wide = min(UNIT, size - n * UNIT)
            for j in range(count):
                if wide == UNIT:
                    store(panel, j * UNIT, load(weight, (start + j) * size + n * UNIT))
                else:
                    for i in range(wide):
                        panel[j * UNIT + i] = weight[start + j, n * UNIT + i]

        return dense

    def packed(weight, back, n, start, count, scratch, panel):
        words, planes, bits, scales, biases, middle, group, units = weight
        unpacked, values, tile = scratch
        unit_bytes, groups = bits * UNIT * WIDTH // 8, units * UNIT // group
        for block in range(start // WIDTH, (start + count + WIDTH - 1) // WIDTH):
            parts = scales, biases, middle, group, (block * groups + n * UNIT // group) * WIDTH
            unit_weights(words, (block * units + n) * unit_bytes, planes, parts, unpacked, values, tile, 0)
            transpose(tile, 0, panel, (block * WIDTH - start) * UNIT)

    return packed


@kernel
def _product(x, weight, y, first, stop, back):  # pragma: no cover
    """Columns of y (rows, out), 32 at a time, from the `first` to the `stop` of them on."""
    size = x.shape[1]
    deep = _parts((size + UNIT - 1) // UNIT, DEPTH // UNIT) * UNIT
    scratch = new_bytes(2 * PLANE_BYTES), new_floats(UNIT * WIDTH), new_floats(UNIT * WIDTH)
    panel, edge = new_floats(deep * WIDTH), new_float_rows(x.shape[0], WIDTH)
    high = _parts(x.shape[0], ROWS)
    copy = _place(x, high, deep)
    for top in range(0, x.shape[0], high):
        bottom = min(top + high, x.shape[0])
        for start in range(0, size, deep):
            count = min(deep, size - start)
            if len(copy):
                _aside(x, top, bottom, start, count, copy)
            for n in range(first, stop):
                _panel(weight, back, n, start, count, scratch, panel)
                _panel_times(x, top, bottom, start, panel, count, y, n * WIDTH, edge, copy, start > 0)


@parallel_kernel
def _parallel(x, weight, y, bounds, back):  # pragma: no cover
    for i in numba.prange(len(bounds) - 1):
        _product(x, weight, y, bounds[i], bounds[i + 1], back)


@parallel_kernel
def _parallel_packed(x, words, planes, bits, scales, biases, middle, group, units, y, bounds, back):  # pragma: no cover
    for i in numba.prange(len(bounds) - 1):
        weight = words, planes, bits, scales, biases, middle, group, units  # no tuple of tuples goes to another thread
        _product(x, weight, y, bounds[i], bounds[i + 1], back)


def forward(x: np.ndarray, weight: Blocks | np.ndarray, y: np.ndarray, threads: int = 1) -> Call:
    """The call for x (rows, in) times the weight (out, in), transposed, into y (rows, out). All float32, contiguous; a
    dense weight may also be the bits of float16 as uint16, or of bfloat16 as int16, if UNIT divides its inputs."""
    return _call(x, weight, y, threads, None)


def forward_parts(x: np.ndarray, weight: np.ndarray, y: np.ndarray, parts: int) -> list[Call]:
    """The same with a dense weight, as calls that may be made at the same time. The numbers are the same too."""
    count = -(-y.shape[1] // WIDTH)
    bounds = np.linspace(0, count, min(parts, count) + 1).astype(np.int64)
    return [(_product, (x, weight, y, first, stop, None)) for first, stop in pairwise(bounds)]


def back(x: np.ndarray, weight: Blocks | np.ndarray, y: np.ndarray, threads: int = 1) -> Call:
    """The call for x (rows, out) times the weight (out, in), into y (rows, in). All float32, contiguous."""
    return _call(x, weight, y, threads, True)


def _call(x: np.ndarray, weight: Blocks | np.ndarray, y: np.ndarray, threads: int, back: bool | None) -> Call:
    packed = (*weight.operands, weight.units) if isinstance(weight, Blocks) else None
    count = -(-y.shape[1] // WIDTH)
    if threads == 1:
        return _product, (x, weight if packed is None else packed, y, 0, count, back)
    bounds = np.linspace(0, count, threads + 1).astype(np.int64)
    if packed is None:
        return threaded, (threads, _parallel, x, weight, y, bounds, back)
    return threaded, (threads, _parallel_packed, x, *packed, y, bounds, back)
