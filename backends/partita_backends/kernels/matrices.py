"""Products of many rows with a weight in blocks, forward and back, in float32, nothing rounded.

A panel of the weight at a time becomes float32, in the processor's cache, and all rows are multiplied with it; so no
part of the weight is ever dense in memory, and it costs little more than the products alone. Back is the product with
the transposed weight, of which a gradient is made. Invariant: a row gives the same numbers alone and among others.
"""

from __future__ import annotations

import numba
import numpy as np

from .blocks import PLANE_BYTES, UNIT, Blocks, unit_weights
from .compiled import Call, kernel, parallel_kernel, threaded
from .lanes import WIDTH
from .panels import multiply, transpose

DEPTH = 768  # inputs of a panel at most: 96 KiB
ROWS = 512  # at most at once: their inputs stay in the processor's cache while the panels of a weight pass by
CONFLICT = 1024  # rows so many numbers apart, or a multiple, share few places of the first cache


@kernel
def _parts(whole, most):  # pragma: no cover
    """The size of equal parts, none larger than `most`, the last perhaps smaller."""
    count = (whole + most - 1) // most
    return (whole + count - 1) // count


@kernel
def _aside(x, first, stop, start, count, copy):  # pragma: no cover
    """What `multiply` reads of x, copied to rows that lie otherwise."""
    for t in range(first, stop):
        copy[t - first, :count] = x[t, start : start + count]


@kernel
def _place(x, rows, depth):  # pragma: no cover
    """Room for `_aside`, if it is wanted."""
    wanted = rows if x.shape[1] % CONFLICT == 0 else 0
    return np.empty((wanted, depth + 16), np.float32)


@kernel
def _panel_times(x, first, stop, start, panel, count, y, column, edge, copy, add):  # pragma: no cover
    """Rows of x times a panel, to 32 columns of y or as many as there are; edge: room for those, kept between calls."""
    cut = column + WIDTH > y.shape[1]
    target, top, place = (edge, first, 0) if cut else (y, first, column)
    if len(copy):
        multiply(copy, 0, stop - first, 0, panel, count, target, top, place, add)
    else:
        multiply(x, first, stop, start, panel, count, target, top, place, add)
    if cut:
        for t in range(first, stop):
            for j in range(y.shape[1] - column):
                y[t, column + j] = edge[t, j]


@kernel
def _forward(x, words, planes, bits, scales, biases, middle, group, y, first, stop):  # pragma: no cover
    """Outputs of blocks `first` to `stop`, into y (rows, out)."""
    size, units = x.shape[1], (x.shape[1] + UNIT - 1) // UNIT
    unit_bytes, groups, deep = bits * UNIT * WIDTH // 8, units * UNIT // group, _parts(units, DEPTH // UNIT)
    unpacked, values = np.empty(2 * PLANE_BYTES, np.uint8), np.empty(UNIT * WIDTH, np.float32)
    panel, edge = np.empty(deep * UNIT * WIDTH, np.float32), np.empty((x.shape[0], WIDTH), np.float32)
    high = _parts(x.shape[0], ROWS)
    copy = _place(x, high, deep * UNIT)
    for top in range(0, x.shape[0], high):
        bottom = min(top + high, x.shape[0])
        for before in range(0, units, deep):
            start, count = before * UNIT, min(before * UNIT + deep * UNIT, size) - before * UNIT
            if len(copy):
                _aside(x, top, bottom, start, count, copy)
            for n in range(first, stop):
                for u in range(before, min(before + deep, units)):
                    at, place = (n * units + u) * unit_bytes, (n * groups + u * UNIT // group) * WIDTH
                    parts = scales, biases, middle, group, place
                    unit_weights(words, at, planes, parts, unpacked, values, panel, (u - before) * UNIT * WIDTH)
                _panel_times(x, top, bottom, start, panel, count, y, n * WIDTH, edge, copy, before > 0)


@kernel
def _back(x, words, planes, bits, scales, biases, middle, group, y, first, stop):  # pragma: no cover
    """Inputs of units `first` to `stop`, into y (rows, in), of x (rows, out)."""
    size, units, blocks = x.shape[1], (y.shape[1] + UNIT - 1) // UNIT, (x.shape[1] + WIDTH - 1) // WIDTH
    unit_bytes, groups, deep = bits * UNIT * WIDTH // 8, units * UNIT // group, _parts(blocks, DEPTH // WIDTH)
    unpacked, values = np.empty(2 * PLANE_BYTES, np.uint8), np.empty(UNIT * WIDTH, np.float32)
    tile = np.empty(UNIT * WIDTH, np.float32)
    panel, edge = np.empty(deep * UNIT * WIDTH, np.float32), np.empty((x.shape[0], UNIT), np.float32)
    high = _parts(x.shape[0], ROWS)
    copy = _place(x, high, deep * WIDTH)
    for top in range(0, x.shape[0], high):
        bottom = min(top + high, x.shape[0])
        for before in range(0, blocks, deep):
            start, count = before * WIDTH, min(before * WIDTH + deep * WIDTH, size) - before * WIDTH
            if len(copy):
                _aside(x, top, bottom, start, count, copy)
            for u in range(first, stop):
                for n in range(before, min(before + deep, blocks)):
                    at, place = (n * units + u) * unit_bytes, (n * groups + u * UNIT // group) * WIDTH
                    unit_weights(words, at, planes, (scales, biases, middle, group, place), unpacked, values, tile, 0)
                    transpose(tile, 0, panel, (n - before) * UNIT * WIDTH)
                _panel_times(x, top, bottom, start, panel, count, y, u * UNIT, edge, copy, before > 0)


@parallel_kernel
def _forward_parallel(x, words, planes, bits, scales, biases, middle, group, y, bounds):  # pragma: no cover
    for i in numba.prange(len(bounds) - 1):
        _forward(x, words, planes, bits, scales, biases, middle, group, y, bounds[i], bounds[i + 1])


@parallel_kernel
def _back_parallel(x, words, planes, bits, scales, biases, middle, group, y, bounds):  # pragma: no cover
    for i in numba.prange(len(bounds) - 1):
        _back(x, words, planes, bits, scales, biases, middle, group, y, bounds[i], bounds[i + 1])


def forward(x: np.ndarray, blocks: Blocks, y: np.ndarray, threads: int = 1) -> Call:
    """The call for x (rows, in) times the weight (out, in), transposed, into y (rows, out). All float32, contiguous."""
    if threads == 1:
        return _forward, (x, *blocks.operands, y, 0, blocks.count)
    return threaded, (threads, _forward_parallel, x, *blocks.operands, y, _bounds(blocks.count, threads))


def back(x: np.ndarray, blocks: Blocks, y: np.ndarray, threads: int = 1) -> Call:
    """The call for x (rows, out) times the weight (out, in), into y (rows, in). All float32, contiguous."""
    if threads == 1:
        return _back, (x, *blocks.operands, y, 0, blocks.units)
    return threaded, (threads, _back_parallel, x, *blocks.operands, y, _bounds(blocks.units, threads))


def _bounds(count: int, threads: int) -> np.ndarray:
    """Where each thread's part begins, and where the last one's ends."""
    return np.linspace(0, count, threads + 1).astype(np.int64)
