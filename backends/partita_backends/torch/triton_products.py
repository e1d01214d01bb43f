"""Products with packed weights, and their rows, by Triton kernels that read the words as they are stored: there is no
second copy of a weight, and no dense one.

One row is multiplied number by number in float32; more of them go through the GPU's matrix units in the rows' dtype, a
tile of the weight made dense in registers. Integers of any width from 1 to 8 bits are taken out of the little-endian
stream of `partita.quantization`. Experts are one stack of such weights: programs look up which of them a row goes
through, so that the host reads no index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from partita.quantization import Packed

from .operations import operation
from .triton_words import ceil_div, kernel, on_grid, power_of_two, rows_together

Tensor = torch.Tensor

ROWS_AT_ONCE = 32  # rows of x in a program; a weight is read again for the next ones
BACK_COLUMNS = 64  # of a weight, for a gradient
ROW_STEP = 4  # rows of a weight in a program that multiplies one row of x
LANES = 128  # numbers, or units of them, that its threads take at a time, four each in 32 threads
TILE_ROWS = 32  # rows of a weight in a program that multiplies several rows of x
COLUMNS = 128  # numbers of a weight's row that a program looks at together, at least a group
MANY_ENTRIES = 16  # of experts: from here on rows of one expert are brought together


@kernel
def _words(
    W,
    SCALES,
    BIASES,
    n,
    start,
    inside,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Words with the numbers `start` to start + COLUMNS of rows n (ROWS,), and the scale and bias of each word, (ROWS,
    COUNT); zero where not inside, or beyond K. For integers of 2, 4 or 8 bits."""
    PER_ROW: tl.constexpr = K * BITS // 32
    w = start * BITS // 32 + tl.arange(0, COLUMNS * BITS // 32)
    there = inside[:, None] & (w < PER_ROW)[None, :]
    words = tl.load(W + n[:, None] * PER_ROW + w[None, :], mask=there, other=0)
    place = n[:, None] * (K // GROUP) + (w * 32 // (GROUP * BITS))[None, :]
    scales, biases = tl.load(SCALES + place, mask=there, other=0.0), tl.load(BIASES + place, mask=there, other=0.0)
    return words, scales, biases


@kernel
def _across_words(
    W,
    SCALES,
    BIASES,
    n,
    start,
    inside,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The numbers themselves, float32 (ROWS, COLUMNS), of integers that may begin in one word and end in the next."""
    PER_ROW: tl.constexpr = K * BITS // 32
    k = start + tl.arange(0, COLUMNS)
    word, shift = k * BITS // 32, (k * BITS % 32)[None, :].to(tl.uint32)
    there = inside[:, None] & (k < K)[None, :]
    at = W + n[:, None] * PER_ROW + word[None, :]
    low = tl.load(at, mask=there, other=0).to(tl.uint32, bitcast=True)
    high = tl.load(at + 1, mask=there & (word + 1 < PER_ROW)[None, :], other=0).to(tl.uint32, bitcast=True)
    both = (low >> shift) | ((high << 1) << (31 - shift))  # a shift by 32 is not defined
    place = n[:, None] * (K // GROUP) + (k // GROUP)[None, :]
    scales = tl.load(SCALES + place, mask=there, other=0.0).to(tl.float32)
    biases = tl.load(BIASES + place, mask=there, other=0.0).to(tl.float32)
    return (both & (2**BITS - 1)).to(tl.int32).to(tl.float32) * scales + biases


@kernel
def _dense(
    W,
    SCALES,
    BIASES,
    n,
    start,
    inside,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Numbers `start` to start + COLUMNS of rows n (ROWS,) of a weight, float32: zero where not inside, or beyond K."""
    if BITS >= 16:
        k = start + tl.arange(0, COLUMNS)
        there = inside[:, None] & (k < K)[None, :]
        values = tl.load(W + n[:, None] * K + k[None, :], mask=there, other=0.0).to(tl.float32)
    elif (BITS & (BITS - 1)) == 0:
        words, scales, biases = _words(W, SCALES, BIASES, n, start, inside, K, COLUMNS, BITS, GROUP)
        values = on_grid(words, scales, biases, ROWS, COLUMNS * BITS // 32, BITS)
    else:
        values = _across_words(W, SCALES, BIASES, n, start, inside, K, COLUMNS, BITS, GROUP)
    return values


@kernel
def _units_sum(
    X,
    W,
    SCALES,
    BIASES,
    n,
    start,
    inside,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Σ w x over units of numbers, the fewest that fill whole words: units `start` to start + COUNT of rows n (ROWS,),
    (ROWS, COUNT). A unit is of one group, so that its scale is applied to a sum: Σ (q s + b) x = s Σ q x + b Σ x."""
    unit = start + tl.arange(0, COUNT)
    exists = unit < K // UNIT
    there = inside[:, None] & exists[None, :]
    place = n[:, None] * (K // GROUP) + (unit * UNIT // GROUP)[None, :]
    scales, biases = tl.load(SCALES + place, mask=there, other=0.0), tl.load(BIASES + place, mask=there, other=0.0)
    at = W + n[:, None] * (K * BITS // 32) + (unit * (UNIT * BITS // 32))[None, :]
    word = tl.load(at, mask=there, other=0)
    sums, inputs = tl.zeros((ROWS, COUNT), tl.float32), tl.zeros((COUNT,), tl.float32)
    for i in tl.static_range(UNIT):
        if i > 0 and i * BITS % 32 == 0:
            word = tl.load(at + i * BITS // 32, mask=there, other=0)
        q = word.to(tl.uint32, bitcast=True) >> (i * BITS % 32)
        if i * BITS % 32 + BITS > 32:  # it ends in the next word
            word = tl.load(at + i * BITS // 32 + 1, mask=there, other=0)
            q = q | (word.to(tl.uint32, bitcast=True) << (32 - i * BITS % 32))
        x = tl.load(X + unit * UNIT + i, mask=exists, other=0.0).to(tl.float32)
        sums += (q & (2**BITS - 1)).to(tl.int32).to(tl.float32) * x[None, :]
        inputs += x
    return sums * scales.to(tl.float32) + biases.to(tl.float32) * inputs[None, :]


@kernel
def _row_product(
    X,
    W,
    SCALES,
    BIASES,
    EXPERTS,
    Y,
    size,
    share,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """A row of X by a weight, or by the expert chosen for it. Programs: (rows of the weight, row of Y)."""
    entry = tl.program_id(1)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = n < size
    row = n.to(tl.int64)
    if CHOSEN:
        row += tl.load(EXPERTS + entry).to(tl.int64) * size
    X += (entry // share).to(tl.int64) * K
    sums = tl.zeros((ROWS, COUNT), tl.float32)
    for start in range(0, K // UNIT, COUNT):
        if UNIT > 1:
            sums += _units_sum(X, W, SCALES, BIASES, row, start, inside, K, ROWS, COUNT, BITS, GROUP, UNIT)
        else:
            k = start + tl.arange(0, COUNT)
            x = tl.load(X + k, mask=k < K, other=0.0).to(tl.float32)
            sums += _dense(W, SCALES, BIASES, row, start, inside, K, ROWS, COUNT, BITS, GROUP) * x[None, :]
    tl.store(Y + entry.to(tl.int64) * size + n, tl.sum(sums, 1).to(Y.dtype.element_ty), mask=inside)


@kernel
def _tile_product(
    X,
    W,
    SCALES,
    BIASES,
    ORDER,
    TILES,
    Y,
    rows,
    size,
    share,
    K: tl.constexpr,
    X_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """Some rows of X by a weight, or by one expert. Programs: (rows of the weight, tile of rows of X)."""
    tile = tl.program_id(1)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = n < size
    row = n.to(tl.int64)
    if CHOSEN:
        first, last = tl.load(TILES + tile * 3 + 1), tl.load(TILES + tile * 3 + 2)
        row += tl.load(TILES + tile * 3).to(tl.int64) * size
        place = first + tl.arange(0, X_ROWS)
        there = place < last
        entry = tl.load(ORDER + place, mask=there, other=0).to(tl.int64)
        stop = tl.where(first < last, K, 0)
    else:
        entry = (tile * X_ROWS + tl.arange(0, X_ROWS)).to(tl.int64)
        there = entry < rows
        stop = K
    sums = tl.zeros((X_ROWS, ROWS), tl.float32)
    for start in range(0, stop, COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        x = tl.load(X + (entry // share)[:, None] * K + k[None, :], mask=there[:, None] & (k < K)[None, :], other=0.0)
        w = _dense(W, SCALES, BIASES, row, start, inside, K, ROWS, COLUMNS, BITS, GROUP)
        sums += tl.dot(x, tl.trans(w.to(x.dtype)), input_precision="ieee")
    at = Y + entry[:, None] * size + n[None, :]
    tl.store(at, sums.to(Y.dtype.element_ty), mask=there[:, None] & inside[None, :])


@kernel
def _tile_back(
    GRAD,
    W,
    SCALES,
    BIASES,
    X,
    grad_row,
    rows,
    size,
    K: tl.constexpr,
    X_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Rows of GRAD by a weight as it is, not transposed. Programs: (columns of the weight, tile of rows of GRAD)."""
    start = tl.program_id(0) * COLUMNS
    entry = (tl.program_id(1) * X_ROWS + tl.arange(0, X_ROWS)).to(tl.int64)
    there = entry < rows
    sums = tl.zeros((X_ROWS, COLUMNS), tl.float32)
    for first in range(0, size, ROWS):
        n = first + tl.arange(0, ROWS)
        inside = n < size
        at = GRAD + entry[:, None] * grad_row + n[None, :]
        grad = tl.load(at, mask=there[:, None] & inside[None, :], other=0.0)
        w = _dense(W, SCALES, BIASES, n.to(tl.int64), start, inside, K, ROWS, COLUMNS, BITS, GROUP)
        sums += tl.dot(grad, w.to(grad.dtype), input_precision="ieee")
    k = start + tl.arange(0, COLUMNS)
    mask = there[:, None] & (k < K)[None, :]
    tl.store(X + entry[:, None] * K + k[None, :], sums.to(X.dtype.element_ty), mask=mask)


@kernel
def _unpack(
    W,
    SCALES,
    BIASES,
    INDEX,
    Y,
    count,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """Rows of a weight, all or chosen ones. Programs: (rows of Y, columns)."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = at < count
    row = at.to(tl.int64)
    if CHOSEN:
        row = tl.load(INDEX + at, mask=inside, other=0).to(tl.int64)
    start = tl.program_id(1) * COLUMNS
    values = _dense(W, SCALES, BIASES, row, start, inside, K, ROWS, COLUMNS, BITS, GROUP)
    k = start + tl.arange(0, COLUMNS)
    y = Y + at.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(y, values.to(Y.dtype.element_ty), mask=inside[:, None] & (k < K)[None, :])


def fits(weight: Packed[Any]) -> bool:
    """Whether kernels take a weight: groups that are powers of two, of integers of 1 to 8 bits."""
    return 1 <= weight.bits <= 8 and weight.group_size & (weight.group_size - 1) == 0


def product(x: Tensor, weight: Packed[Tensor]) -> Tensor:
    """x (rows, in) times a weight (out, in), transposed, in x's dtype: (rows, out)."""
    return _product(x, weight.weight, *weight.grid, weight.bits, weight.group_size)


def product_back(grad: Tensor, weight: Packed[Tensor]) -> Tensor:
    """grad (rows, out) times a weight (out, in), in grad's dtype: (rows, in)."""
    return _product_back(grad, weight.weight, *weight.grid, weight.bits, weight.group_size)


def rows(weight: Packed[Tensor], index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rows of a weight (out, in), chosen by integers (n,) or all: (n, in) as `dtype`."""
    return _rows(index, weight.weight, *weight.grid, weight.bits, weight.group_size, dtype)


def chosen(x: Tensor, weight: Packed[Tensor] | Tensor, index: Tensor) -> Tensor:
    """As `Backend.moe_linear`, without the bias: x (B, T, K or 1, in), weight (experts, out, in), index int32 (B, T,
    K); (B, T, K, out) in x's dtype."""
    if isinstance(weight, Packed):
        return _chosen(x, index, weight.weight, *weight.grid, weight.bits, weight.group_size)
    return _chosen(x, index, weight, None, None, 16, COLUMNS)


@dataclass(frozen=True)
class _Weight:
    """What the kernels get of a weight (size, k), or of a stack of them."""

    parts: tuple[Tensor, Tensor | None, Tensor | None]
    size: int
    k: int
    bits: int
    group: int

    def row_by_row(self, x: Tensor, experts: Tensor | None, y: Tensor, count: int, share: int) -> None:
        """Each of `count` rows of y by a program of its own: entry i is row i // share of x by experts[i]."""
        unit = 32 // math.gcd(32, self.bits)  # numbers that fill whole words
        unit = unit if self.bits < 16 and self.group % unit == 0 else 1
        warps = min(power_of_two(ceil_div(self.k // unit, LANES)), 4)
        # fmt: off
        _row_product[(ceil_div(self.size, ROW_STEP), count)](
            x, *self.parts, experts, y, self.size, share, K=self.k, ROWS=ROW_STEP, COUNT=LANES * warps, BITS=self.bits,
            GROUP=self.group, UNIT=unit, CHOSEN=experts is not None, num_warps=warps,
        )
        # fmt: on

    def in_tiles(self, x: Tensor, y: Tensor, count: int, rows: int, share: int = 1, plan: Any = None) -> None:
        """`rows` of them by a program. plan: of `tiles_of_experts`, for a stack."""
        order, tiles = plan or (None, None)
        step = TILE_ROWS if x.dtype.itemsize == 2 else TILE_ROWS // 2
        # fmt: off
        _tile_product[(ceil_div(self.size, step), ceil_div(count, rows) if tiles is None else len(tiles))](
            x, *self.parts, order, tiles, y, count, self.size, share, K=self.k, X_ROWS=rows, ROWS=step,
            COLUMNS=max(COLUMNS, self.group), BITS=self.bits, GROUP=self.group, CHOSEN=tiles is not None, num_stages=2,
        )
        # fmt: on


@operation(
    "packed_product(Tensor x, Tensor words, Tensor scales, Tensor biases, int bits, int group_size) -> Tensor",
    lambda x, words, *_: x.new_empty(len(x), len(words)),
)
def _product(x: Tensor, words: Tensor, scales: Tensor, biases: Tensor, bits: int, group_size: int) -> Tensor:
    count, k = x.shape
    weight = _Weight((words, scales, biases), len(words), k, bits, group_size)
    x, y = x.contiguous(), x.new_empty(count, len(words))
    if count == 1:
        weight.row_by_row(x, None, y, 1, 1)
    else:
        weight.in_tiles(x, y, count, _rows_at_once(count))
    return y


def _rows_at_once(count: int) -> int:
    return max(min(power_of_two(count), ROWS_AT_ONCE), 16)


@operation(
    "packed_product_back(Tensor grad, Tensor words, Tensor scales, Tensor biases, int bits, int group_size) -> Tensor",
    lambda grad, words, scales, biases, bits, group_size: grad.new_empty(len(grad), scales.shape[1] * group_size),
)
def _product_back(grad: Tensor, words: Tensor, scales: Tensor, biases: Tensor, bits: int, group_size: int) -> Tensor:
    count, k, step = len(grad), scales.shape[1] * group_size, _rows_at_once(len(grad))
    grad, x = rows_together(grad), grad.new_empty(count, k)
    # fmt: off
    _tile_back[(ceil_div(k, BACK_COLUMNS), ceil_div(count, step))](
        grad, words, scales, biases, x, grad.stride(0), count, len(words), K=k, X_ROWS=step, ROWS=TILE_ROWS,
        COLUMNS=BACK_COLUMNS, BITS=bits, GROUP=group_size, num_stages=2,
    )
    # fmt: on
    return x


@operation(
    "packed_rows(Tensor? index, Tensor words, Tensor scales, Tensor biases, int bits, int group_size, ScalarType dtype)"
    " -> Tensor",
    lambda index, words, scales, biases, bits, group_size, dtype: scales.new_empty(
        len(words if index is None else index), scales.shape[1] * group_size, dtype=dtype
    ),
)
def _rows(
    index: Tensor | None,
    words: Tensor,
    scales: Tensor,
    biases: Tensor,
    bits: int,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    count, k = len(words if index is None else index), scales.shape[1] * group_size
    y = scales.new_empty(count, k, dtype=dtype)
    step, columns = 8, max(256, group_size)
    # fmt: off
    _unpack[(ceil_div(count, step), ceil_div(k, columns))](
        words, scales, biases, None if index is None else index.contiguous(), y, count, K=k, ROWS=step, COLUMNS=columns,
        BITS=bits, GROUP=group_size, CHOSEN=index is not None,
    )
    # fmt: on
    return y


@operation(
    "expert_product(Tensor x, Tensor index, Tensor weight, Tensor? scales, Tensor? biases, int bits, int group_size)"
    " -> Tensor",
    lambda x, index, weight, *_: x.new_empty(*index.shape, weight.shape[1]),
)
def _chosen(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    biases: Tensor | None,
    bits: int,
    group_size: int,
) -> Tensor:
    count, experts, share = index.numel(), len(weight), index.shape[2] // x.shape[2]
    stack = _Weight((weight, scales, biases), weight.shape[1], x.shape[-1], bits, group_size)
    x, y, flat = x.contiguous(), x.new_empty(*index.shape, weight.shape[1]), index.reshape(-1)
    if count < MANY_ENTRIES:
        stack.row_by_row(x, flat, y, count, share)
    else:
        rows = 32 if count >= 32 * experts else 16
        stack.in_tiles(x, y, count, rows, share, tiles_of_experts(flat, experts, rows))
    return y


def tiles_of_experts(flat: Tensor, experts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Entries (n,) sorted by expert, and tiles of at most `rows` of one expert: int32 (tiles, 3), its number, and where
    its entries begin and end among the sorted ones; more tiles than are needed are empty. Reads nothing on the host."""
    flat, count = flat.long(), len(flat)
    counts = torch.zeros(experts, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
    ends = counts.cumsum(0)
    needed = (counts + rows - 1) // rows
    until = needed.cumsum(0)
    tile = torch.arange(count // rows + min(experts, count), device=flat.device)
    expert = torch.searchsorted(until, tile, right=True).clamp_(max=experts - 1)
    first = (ends - counts)[expert] + (tile - (until - needed)[expert]) * rows
    last = torch.minimum(first + rows, ends[expert])
    return flat.argsort(stable=True), torch.stack([expert, first, last], 1).to(torch.int32)
