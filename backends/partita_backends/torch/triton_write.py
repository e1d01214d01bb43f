"""What a step writes into a rotating cache, in one kernel: keys rotated, both sides quantized, first tokens kept dense.

Words are those of `partita.quantization.quantize_minmax`, bit for bit, of what is computed in float32: divisions are
rounded correctly, integers to nearest, ties to even. The rotation itself may differ in the last bit from one in two
roundings, as GPUs multiply and add in one.
"""

from __future__ import annotations

import torch
import triton.language as tl

from .operations import operation
from .triton_words import Side, group_size, kernel, parts, power_of_two, require_contiguous, rows_together

Tensor = torch.Tensor
Sinks = tuple[Tensor, Tensor, Tensor]
"""Buffers of the keys and of the values that are kept, dense (B, Hkv, S, D), and where the step's go, int32 (B, T)."""


@kernel
def _vector(X, at, d, COS, SIN, angle, half, D: tl.constexpr, ROTATED: tl.constexpr):
    """The D numbers at X + at in float32; rotated, as pairs (i, i + half) by the angles in row `angle`."""
    x = tl.load(X + at + d, mask=d < D, other=0.0).to(tl.float32)
    if ROTATED:
        turned = d < 2 * half
        low = d < half
        other = tl.load(X + at + tl.where(low, d + half, d - half), mask=turned, other=0.0).to(tl.float32)
        place = angle * half + tl.where(low, d, d - half)
        cos = tl.load(COS + place, mask=turned, other=1.0)
        sin = tl.load(SIN + place, mask=turned, other=0.0)
        x = tl.where(turned, x * cos + tl.where(low, -other, other) * sin, x)
    return x


@kernel
def _hadamard(x, WIDTH: tl.constexpr, STAGES: tl.constexpr):
    """x (WIDTH,) times `partita.quantization.hadamard_matrix`, WIDTH = 2**STAGES: sums and differences of neighbours,
    the sums before the differences, as often as there are bits in an index."""
    for _ in range(STAGES):
        even, odd = tl.split(tl.reshape(x, (WIDTH // 2, 2)))
        x = tl.reshape(tl.trans(tl.join(even + odd, even - odd)), (WIDTH,))
    return x * (1.0 / tl.sqrt(WIDTH * 1.0))


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
def _side(
    X,
    INDEX,
    Y,
    SCALES,
    BIASES,
    x_batch,
    x_head,
    x_token,
    tokens,
    slots,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Programs: (batch and token, head)."""
    at, h = tl.program_id(0), tl.program_id(1)
    batch, t = (at // tokens).to(tl.int64), at % tokens
    d = tl.arange(0, WIDTH)
    x = _vector(X, batch * x_batch + h * x_head + t * x_token, d, None, None, at, 0, D, False)
    _keep(x, Y, SCALES, BIASES, (batch * HEADS + h) * slots + tl.load(INDEX + at), d, D, WIDTH, BITS, GROUP)


@kernel
def _step(
    Q,
    K,
    V,
    COS,
    SIN,
    ANCHORED_COS,
    ANCHORED_SIN,
    INDEX,
    SINK_INDEX,
    OUT,
    KEYS,
    KEY_SCALES,
    KEY_BIASES,
    VALUES,
    VALUE_SCALES,
    VALUE_BIASES,
    SINK_KEYS,
    SINK_VALUES,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    tokens,
    slots,
    sinks,
    half,
    turn,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROTATED: tl.constexpr,
    ANCHORED: tl.constexpr,
    RING: tl.constexpr,
    SINKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Programs: (batch and token, head: of queries, then of keys, then of values)."""
    angle, h = tl.program_id(0), tl.program_id(1)
    batch, t = (angle // tokens).to(tl.int64), angle % tokens
    d = tl.arange(0, WIDTH)
    if h < HEADS:
        at = batch * q_batch + h * q_head + t * q_token
        out = ((batch * HEADS + h) * tokens + t) * D
        x = _vector(Q, at, d, COS, SIN, angle, half, D, ROTATED)
        if STAGES:
            x = _hadamard(x, WIDTH, STAGES)
        tl.store(OUT + out + d, x.to(OUT.dtype.element_ty), mask=d < D)
        if ANCHORED:
            x = _vector(Q, at, d, ANCHORED_COS, ANCHORED_SIN, angle, half, D, True)
            if STAGES:
                x = _hadamard(x, WIDTH, STAGES)
            tl.store(OUT + turn + out + d, x.to(OUT.dtype.element_ty), mask=d < D)
    elif h < HEADS + KV_HEADS:
        at = batch * k_batch + (h - HEADS) * k_head + t * k_token
        x = _vector(K, at, d, COS, SIN, angle, half, D, ROTATED)
        if STAGES:
            x = _hadamard(x, WIDTH, STAGES)
        head = batch * KV_HEADS + (h - HEADS)
        if RING:
            row = head * slots + tl.load(INDEX + angle)
            _keep(x, KEYS, KEY_SCALES, KEY_BIASES, row, d, D, WIDTH, KEY_BITS, GROUP)
        if SINKS:
            row = head * sinks + tl.load(SINK_INDEX + angle)
            _keep(x, SINK_KEYS, SINK_KEYS, SINK_KEYS, row, d, D, WIDTH, 16, GROUP)
    else:
        at = batch * v_batch + (h - HEADS - KV_HEADS) * v_head + t * v_token
        x = _vector(V, at, d, COS, SIN, angle, half, D, False)
        if STAGES:
            x = _hadamard(x, WIDTH, STAGES)
        head = batch * KV_HEADS + (h - HEADS - KV_HEADS)
        if RING:
            row = head * slots + tl.load(INDEX + angle)
            _keep(x, VALUES, VALUE_SCALES, VALUE_BIASES, row, d, D, WIDTH, VALUE_BITS, GROUP)
        if SINKS:
            row = head * sinks + tl.load(SINK_INDEX + angle)
            _keep(x, SINK_VALUES, SINK_VALUES, SINK_VALUES, row, d, D, WIDTH, 16, GROUP)


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: tuple[Tensor, Tensor] | None,
    anchored: tuple[Tensor, Tensor] | None,
    keys: Side,
    values: Side,
    index: Tensor | None,
    sinks: Sinks | None,
    *,
    hadamard: bool = False,
) -> tuple[Tensor, Tensor]:
    """The queries of a step, rotated, and rotated to their anchored positions (the same ones without `anchored`), each
    (B, Hq, T, D) in q's dtype; keys, rotated, and values are written into their buffers in place.

    q: (B, Hq, T, D); k, v: (B, Hkv, T, D), before rotation, any strides but for the last dimension. angles, anchored:
    (cos, sin), float32 (B, T, d / 2); None: nothing is rotated. keys, values: rings (B, Hkv, C, D), dense or packed in
    4 or 8 bits, contiguous; index: int32 (B, T), their slots, None: nothing is written there. sinks: None: nothing is
    kept. hadamard: multiply all by the Hadamard matrix after rotating, D a power of two. Where several tokens of a row
    have one slot, any of them may be what it holds. ValueError: a buffer is not contiguous.
    """
    cos, sin = angles or (None, None)
    anchored_cos, anchored_sin = anchored or (None, None)
    sink_keys, sink_values, sink_index = sinks or (None, None, None)
    if sink_keys is not None and sink_values is not None:
        require_contiguous(sink_keys, sink_values)
    # fmt: off
    out = _rotate_write(
        q, k, v, cos, sin, anchored_cos, anchored_sin, index, sink_index, *parts(keys), *parts(values),
        group_size(keys, values), sink_keys, sink_values, hadamard,
    )
    # fmt: on
    rotated = out.unbind()
    return rotated[0], rotated[-1]


def write(buffer: Side, x: Tensor, index: Tensor) -> None:
    """As `Backend.write`, dense or packed, in place. buffer: as `step` takes keys; x: (B, H, T, D)."""
    _write(x, index, *parts(buffer), group_size(buffer))


@operation(
    "rotate_write(Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin, Tensor? anchored_cos, Tensor? anchored_sin, "
    "Tensor? index, Tensor? sink_index, Tensor(a!) keys, Tensor(b!)? key_scales, Tensor(c!)? key_biases, int key_bits, "
    "Tensor(d!) values, Tensor(e!)? value_scales, Tensor(f!)? value_biases, int value_bits, int group_size, "
    "Tensor(g!)? sink_keys, Tensor(h!)? sink_values, bool hadamard) -> Tensor",
    lambda q, k, v, cos, sin, anchored_cos, *_: q.new_empty(1 if anchored_cos is None else 2, *q.shape),
)
def _rotate_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    anchored_cos: Tensor | None,
    anchored_sin: Tensor | None,
    index: Tensor | None,
    sink_index: Tensor | None,
    keys: Tensor,
    key_scales: Tensor | None,
    key_biases: Tensor | None,
    key_bits: int,
    values: Tensor,
    value_scales: Tensor | None,
    value_biases: Tensor | None,
    value_bits: int,
    group_size: int,
    sink_keys: Tensor | None,
    sink_values: Tensor | None,
    hadamard: bool,
) -> Tensor:
    b, heads, t, d = q.shape
    kv_heads, slots = keys.shape[1:3]
    out = q.new_empty(1 if anchored_cos is None else 2, *q.shape)
    q, k, v = map(rows_together, (q, k, v))
    cos, sin, anchored_cos, anchored_sin, index, sink_index = (
        None if x is None else x.contiguous() for x in (cos, sin, anchored_cos, anchored_sin, index, sink_index)
    )
    # fmt: off
    _step[(b * t, heads + 2 * kv_heads)](
        q, k, v, cos, sin, anchored_cos, anchored_sin, index, sink_index, out, keys, key_scales, key_biases,
        values, value_scales, value_biases, sink_keys, sink_values, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        t, slots, 0 if sink_keys is None else sink_keys.shape[2], 0 if cos is None else cos.shape[-1], out[0].numel(),
        HEADS=heads, KV_HEADS=kv_heads, D=d, WIDTH=power_of_two(d), KEY_BITS=key_bits, VALUE_BITS=value_bits,
        GROUP=group_size, ROTATED=cos is not None, ANCHORED=anchored_cos is not None, RING=index is not None,
        SINKS=sink_index is not None, STAGES=d.bit_length() - 1 if hadamard else 0, num_warps=1,
    )
    # fmt: on
    return out


@operation(
    "write(Tensor x, Tensor index, Tensor(a!) buffer, Tensor(b!)? scales, Tensor(c!)? biases, int bits, int group_size)"
    " -> ()",
    lambda *_: None,
)
def _write(
    x: Tensor,
    index: Tensor,
    buffer: Tensor,
    scales: Tensor | None,
    biases: Tensor | None,
    bits: int,
    group_size: int,
) -> None:
    b, heads, t, d = x.shape
    x = rows_together(x)
    # fmt: off
    _side[(b * t, heads)](
        x, index.contiguous(), buffer, scales, biases, *x.stride()[:3], t, buffer.shape[2], HEADS=heads, D=d,
        WIDTH=power_of_two(d), BITS=bits, GROUP=group_size, num_warps=1,
    )
    # fmt: on
