"""What a step does to its rows before it attends: heads are rotated, keys and values are quantized and written.

Words are those of `partita.quantization.quantize_minmax`, bit for bit, of what is computed in float32: divisions are
rounded correctly, integers to nearest, ties to even. The rotation itself may differ in the last bit from one in two
roundings, as GPUs multiply and add in one.
"""

from __future__ import annotations

import torch
import triton.language as tl

from .operations import operation
from .triton_words import Side, group_size, kernel, parts, power_of_two, rows_together

Tensor = torch.Tensor


@kernel
def _turn(
    X,
    COS,
    SIN,
    OUT,
    x_batch,
    x_token,
    x_head,
    tokens,
    half,
    turned,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BACK: tl.constexpr,
):
    """Programs: (batch and token, head); the first `turned` heads rotate, as pairs (i, i + half)."""
    at, h = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, WIDTH)
    row = X + (at // tokens).to(tl.int64) * x_batch + at % tokens * x_token + h * x_head
    x = tl.load(row + d, mask=d < D, other=0.0).to(tl.float32)
    rotates, low = (d < 2 * half) & (h < turned), d < half
    other = tl.load(row + tl.where(low, d + half, d - half), mask=rotates, other=0.0).to(tl.float32)
    place = at * half + tl.where(low, d, d - half)
    cos = tl.load(COS + place, mask=rotates, other=1.0)
    sin = tl.load(SIN + place, mask=rotates, other=0.0)
    if BACK:
        sin = -sin
    x = tl.where(rotates, x * cos + tl.where(low, -other, other) * sin, x)
    tl.store(OUT + (at.to(tl.int64) * HEADS + h) * D + d, x.to(OUT.dtype.element_ty), mask=d < D)


@kernel
def _hadamard(x, WIDTH: tl.constexpr, STAGES: tl.constexpr):
    """x (WIDTH,) times `partita.quantization.hadamard_matrix`, WIDTH = 2**STAGES: sums and differences of neighbours,
    the sums before the differences, as often as there are bits in an index."""
    for _ in range(STAGES):
        even, odd = tl.split(tl.reshape(x, (WIDTH // 2, 2)))
        x = tl.reshape(tl.trans(tl.join(even + odd, even - odd)), (WIDTH,))
    return x * (1.0 / tl.sqrt(WIDTH * 1.0))


@kernel
def _spread(X, OUT, x_row, D: tl.constexpr, STAGES: tl.constexpr):
    """Programs: rows."""
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    x = _hadamard(tl.load(X + row * x_row + d).to(tl.float32), D, STAGES)
    tl.store(OUT + row * D + d, x.to(OUT.dtype.element_ty))


@kernel
def _keep(x, Y, SCALES, BIASES, row, d, D: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr):
    """x (WIDTH,) as row `row` of a side of a cache."""
    if BITS >= 16:
        tl.store(Y + row * D + d, x.to(Y.dtype.element_ty), mask=d < D)
    else:
        GROUPS: tl.constexpr = WIDTH // GROUP
        PER: tl.constexpr = 32 // BITS
        groups = tl.reshape(x, (GROUPS, GROUP))
        low, high = tl.min(groups, 1), tl.max(groups, 1)
        scales = tl.math.div_rn(high - low, tl.full((GROUPS,), 2**BITS - 1, tl.float32)).to(tl.float16)
        biases = low.to(tl.float16)
        step = scales.to(tl.float32)
        step = tl.where(step == 0.0, 1.0, step)
        steps = tl.broadcast_to(step[:, None], (GROUPS, GROUP))
        q = tl.math.div_rn(groups - biases.to(tl.float32)[:, None], steps)
        q = tl.minimum(tl.maximum(q, 0.0), 2.0**BITS - 1)
        q = (q + 12582912.0) - 12582912.0  # 1.5 * 2**23: a sum of that size has no room for fractions
        integers = tl.where((scales != 0.0)[:, None], q, 0.0).to(tl.int32)
        eights = tl.reshape(integers, (WIDTH // PER, PER)) << (tl.arange(0, PER) * BITS)[None, :]
        w, g = tl.arange(0, WIDTH // PER), tl.arange(0, GROUPS)
        tl.store(Y + row * (D // PER) + w, tl.sum(eights, 1), mask=w < D // PER)
        tl.store(SCALES + row * (D // GROUP) + g, scales, mask=g < D // GROUP)
        tl.store(BIASES + row * (D // GROUP) + g, biases, mask=g < D // GROUP)


@kernel
def _store(
    X,
    INDEX,
    KEYS,
    KEY_SCALES,
    KEY_BIASES,
    VALUES,
    VALUE_SCALES,
    VALUE_BIASES,
    x_batch,
    x_token,
    x_head,
    tokens,
    slots,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Programs: (batch and token, head: of keys, then of values)."""
    at, h = tl.program_id(0), tl.program_id(1)
    batch, t = (at // tokens).to(tl.int64), at % tokens
    d = tl.arange(0, WIDTH)
    x = tl.load(X + batch * x_batch + t * x_token + h * x_head + d, mask=d < D, other=0.0).to(tl.float32)
    row = (batch * HEADS + h % HEADS) * slots + tl.load(INDEX + at)
    if h < HEADS:
        _keep(x, KEYS, KEY_SCALES, KEY_BIASES, row, d, D, WIDTH, KEY_BITS, GROUP)
    else:
        _keep(x, VALUES, VALUE_SCALES, VALUE_BIASES, row, d, D, WIDTH, VALUE_BITS, GROUP)


@operation(
    "rotate(Tensor x, Tensor cos, Tensor sin, int heads, bool back=False) -> Tensor",
    lambda x, *_: x.new_empty(x.shape),
)
def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int, back: bool = False) -> Tensor:
    """The first heads of x (B, T, H, D) rotated by cos, sin, float32 (B, T, d / 2), the others as they are; x with any
    strides but for the last dimension, the result contiguous. back: the other way."""
    b, t, count, d = x.shape
    x, out = rows_together(x), x.new_empty(x.shape)
    # fmt: off
    _turn[(b * t, count)](
        x, cos.contiguous(), sin.contiguous(), out, *x.stride()[:3], t, cos.shape[-1], heads, HEADS=count, D=d,
        WIDTH=power_of_two(d), BACK=back, num_warps=1,
    )
    # fmt: on
    return out


@operation("hadamard(Tensor x) -> Tensor", lambda x: x.new_empty(x.shape))
def hadamard(x: Tensor) -> Tensor:
    """As `Backend.hadamard`, in x's dtype; contiguous."""
    out, d = x.new_empty(x.shape), x.shape[-1]
    rows = rows_together(x.reshape(-1, d))
    _spread[(len(rows),)](rows, out, rows.stride(0), D=d, STAGES=d.bit_length() - 1, num_warps=1)
    return out


def store(keys: Side, values: Side, x: Tensor, index: Tensor) -> None:
    """As `Backend.store`, in place.

    keys, values: `rings.sides` of a ring, (B, H, C, D), dense or packed in 4 or 8 bits, contiguous each. x: (B, T, 2 *
    H, D), any strides but for the last dimension. index: int32 (B, T). Where several tokens of a row have one slot, any
    of them may be what it holds. ValueError: a buffer is not contiguous.
    """
    _store_both(x, index, *parts(keys), *parts(values), group_size(keys, values))


@operation(
    "store(Tensor x, Tensor index, Tensor(a!) keys, Tensor(b!)? key_scales, Tensor(c!)? key_biases, int key_bits, "
    "Tensor(d!) values, Tensor(e!)? value_scales, Tensor(f!)? value_biases, int value_bits, int group_size) -> ()",
    lambda *_: None,
)
def _store_both(
    x: Tensor,
    index: Tensor,
    keys: Tensor,
    key_scales: Tensor | None,
    key_biases: Tensor | None,
    key_bits: int,
    values: Tensor,
    value_scales: Tensor | None,
    value_biases: Tensor | None,
    value_bits: int,
    group_size: int,
) -> None:
    b, t, heads, d = x.shape
    x = rows_together(x)
    # fmt: off
    _store[(b * t, heads)](
        x, index.contiguous(), keys, key_scales, key_biases, values, value_scales, value_biases, *x.stride()[:3], t,
        keys.shape[2], HEADS=heads // 2, D=d, WIDTH=power_of_two(d), KEY_BITS=key_bits, VALUE_BITS=value_bits,
        GROUP=group_size, num_warps=1,
    )
    # fmt: on
