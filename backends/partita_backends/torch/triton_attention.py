"""Attention of a few queries over a rotating cache, in one pass over its packed words: flash decoding (arXiv
2205.14135; the slots of a head divided among programs as in "Flash-Decoding", PyTorch's blog, 2023).

Each program takes the queries of the heads that read one head of keys, and a range of slots; a second, small kernel
puts the ranges together. Slots of the ring are judged by their positions (`backend.Rule`), so there is no mask of
them; sinks that are scored apart, a few, by theirs. Keys and values are never dense outside of a program. Sums are
float32; products are in the queries' dtype.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl

from partita.backend import Rule, Sinks

from .operations import operation
from .triton_words import (
    Side,
    ceil_div,
    group_size,
    kernel,
    on_grid,
    parts,
    power_of_two,
    rows_together,
)

Tensor = torch.Tensor

TILE = 4096  # numbers of keys that a program holds at once, for which registers have room on every GPU
LARGEST = 256  # head_dim for which a tile has the 16 slots that a matrix unit wants
EVERYTHING = 2**31 - 1  # a window that hides nothing
NOTHING = tl.constexpr(-1e30)  # the largest score of no slots


@kernel
def _slots(
    X,
    SCALES,
    BIASES,
    row,
    seen,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Keys or values of some slots, float32 (BLOCK, WIDTH): zero where not seen, and beyond D."""
    if BITS >= 16:
        d = tl.arange(0, WIDTH)
        inside = seen[:, None] & (d < D)[None, :]
        values = tl.load(X + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    else:
        COUNT: tl.constexpr = WIDTH * BITS // 32
        w = tl.arange(0, COUNT)
        inside = seen[:, None] & (w < D * BITS // 32)[None, :]
        words = tl.load(X + row[:, None] * (D * BITS // 32) + w[None, :], mask=inside, other=0)
        place = row[:, None] * (D // GROUP) + (w // (GROUP * BITS // 32))[None, :]
        scales = tl.load(SCALES + place, mask=inside, other=0.0)
        biases = tl.load(BIASES + place, mask=inside, other=0.0)
        values = on_grid(words, scales, biases, BLOCK, COUNT, BITS)
    return values


@kernel
def _range(
    q,
    asks,
    K,
    K_SCALES,
    K_BIASES,
    V,
    V_SCALES,
    V_BIASES,
    SEEN,
    row,
    start,
    stop,
    window,
    sinks,
    scale,
    softcap,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
):
    """What queries q (ROWS, WIDTH) at positions `asks` (ROWS,) see of slots start to stop, which lie from `row` on: the
    largest score, the sum of exp(score - largest), and of that times the values.

    SEEN: positions of the slots; MASKED: for each query, zeros of those that it sees, beside others.
    """
    top = tl.full((ROWS,), NOTHING, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    last, first = tl.max(asks, 0), tl.min(asks, 0) - window
    for at in range(start, stop, BLOCK):
        slot = at + tl.arange(0, BLOCK)
        if MASKED:
            mask = tl.load(SEEN[:, None] + slot[None, :], mask=(slot < stop)[None, :], other=NOTHING)
            seen = mask == 0.0
            read = tl.max(seen.to(tl.int32), 0) > 0
        else:
            held = tl.load(SEEN + slot, mask=slot < stop, other=-1)
            read = (held >= 0) & (held <= last) & ((held > first) | (held < sinks))
            near = (held[None, :] > asks[:, None] - window) | (held < sinks)[None, :]
            seen = read[None, :] & (held[None, :] <= asks[:, None]) & near
        k = _slots(K, K_SCALES, K_BIASES, row + slot, read, D, WIDTH, BLOCK, K_BITS, GROUP)
        s = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * scale
        if SOFTCAP:
            s = softcap * (1.0 - 2.0 / (tl.exp(s * (2.0 / softcap)) + 1.0))  # softcap * tanh(s / softcap)
        s = tl.where(seen, s, NOTHING)
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.where(seen, tl.exp(s - higher[:, None]), 0.0)
        shrunk = tl.exp(top - higher)
        v = _slots(V, V_SCALES, V_BIASES, row + slot, read, D, WIDTH, BLOCK, V_BITS, GROUP)
        total = total * shrunk + tl.sum(p, 1)
        sums = sums * shrunk[:, None] + tl.dot(p.to(q.dtype), v.to(q.dtype), input_precision="ieee")
        top = higher
    return top, total, sums


@kernel
def _decode(
    Q,
    ASKS,
    K,
    K_SCALES,
    K_BIASES,
    V,
    V_SCALES,
    V_BIASES,
    POSITIONS,
    SINK_Q,
    SINK_KV,
    SINK_MASK,
    SHIFT,
    SUMS,
    TOPS,
    q_batch,
    q_head,
    q_token,
    a_batch,
    a_head,
    a_token,
    s_side,
    s_batch,
    s_head,
    m_batch,
    m_token,
    p_batch,
    slots,
    apart,
    splits,
    sink_splits,
    window,
    sinks,
    scale,
    softcap,
    KV_HEADS: tl.constexpr,
    REP: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    """Programs: (batch and head of keys, range of slots, tile of queries); the first `sink_splits` are of sinks."""
    head, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch = head // KV_HEADS
    row, d = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    rep, t = row // T, row % T
    rows = row < REP * T
    inside = rows[:, None] & (d < D)[None, :]
    asks = tl.load(ASKS + batch * T + t, mask=rows, other=-1)
    query_head = (head % KV_HEADS) * REP + rep
    if SINKS and split < sink_splits:
        at = batch.to(tl.int64) * a_batch + query_head * a_head + t * a_token
        q = tl.load(SINK_Q + at[:, None] + d[None, :], mask=inside, other=0.0)
        per = tl.cdiv(tl.cdiv(apart, BLOCK), sink_splits) * BLOCK
        start, stop = split * per, tl.minimum(split * per + per, apart)
        keys = SINK_KV + batch.to(tl.int64) * s_batch + (head % KV_HEADS) * s_head
        mask = SINK_MASK + batch * m_batch + t * m_token
        # fmt: off
        top, total, sums = _range(
            q, asks, keys, None, None, keys + s_side, None, None, mask, head.to(tl.int64) * 0, start, stop,
            window, sinks, scale, softcap, D, WIDTH, ROWS, BLOCK, 16, 16, GROUP, SOFTCAP, True,
        )
        # fmt: on
        if SHIFTED:  # moves all scores of a query, and so their largest: exp(score - largest) is what it was
            top += tl.load(SHIFT + head * (REP * T) + row, mask=rows, other=0.0)
    else:
        at = batch.to(tl.int64) * q_batch + query_head * q_head + t * q_token
        q = tl.load(Q + at[:, None] + d[None, :], mask=inside, other=0.0)
        per = tl.cdiv(tl.cdiv(slots, BLOCK), splits - sink_splits) * BLOCK
        start = (split - sink_splits) * per
        stop = tl.minimum(start + per, slots)
        # fmt: off
        top, total, sums = _range(
            q, asks, K, K_SCALES, K_BIASES, V, V_SCALES, V_BIASES, POSITIONS + batch * p_batch,
            head.to(tl.int64) * slots, start, stop, window, sinks, scale, softcap, D, WIDTH, ROWS, BLOCK,
            K_BITS, V_BITS, GROUP, SOFTCAP, False,
        )
        # fmt: on
    out = (head.to(tl.int64) * splits + split) * (REP * T) + row
    tl.store(SUMS + out[:, None] * D + d[None, :], sums, mask=inside)
    tl.store(TOPS + out * 2, top, mask=rows)
    tl.store(TOPS + out * 2 + 1, total, mask=rows)


@kernel
def _combine(
    SUMS,
    TOPS,
    LOGITS,
    OUT,
    splits,
    KV_HEADS: tl.constexpr,
    REP: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    SINK_LOGITS: tl.constexpr,
):
    """Ranges put together. Programs: (batch and head of keys, query of a head). A query that sees nothing gets 0."""
    head, row = tl.program_id(0), tl.program_id(1)
    part, d = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    at = (head.to(tl.int64) * splits + part) * (REP * T) + row
    tops = tl.load(TOPS + at * 2, mask=part < splits, other=NOTHING)
    totals = tl.load(TOPS + at * 2 + 1, mask=part < splits, other=0.0)
    top = tl.max(tops, 0)
    if SINK_LOGITS:
        logit = tl.load(LOGITS + (head % KV_HEADS) * REP + row // T).to(tl.float32)
        top = tl.maximum(top, logit)
    weight = tl.exp(tops - top)
    total = tl.sum(totals * weight, 0)
    if SINK_LOGITS:
        total += tl.exp(logit - top)
    inside = (part < splits)[:, None] & (d < D)[None, :]
    sums = tl.load(SUMS + at[:, None] * D + d[None, :], mask=inside, other=0.0)
    y = tl.sum(sums * weight[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    out = ((head // KV_HEADS * T + row % T) * KV_HEADS + head % KV_HEADS) * REP + row // T
    tl.store(OUT + out.to(tl.int64) * D + d, y, mask=d < D)


def attend(
    q: Tensor,
    k: Side,
    v: Side,
    rule: Rule[Tensor],
    *,
    scale: float,
    sinks: Sinks[Tensor] | None,
    softcap: float | None,
    sink_logits: Tensor | None,
    splits: int = 0,
) -> Tensor:
    """As `Backend.cached_attention`, in q's dtype, for which a query that sees nothing gives 0.

    q: (B, Hq, T, D), any strides but for the last dimension. k, v: (B, Hkv, C, D), dense of any float dtype, or packed
    in 4 or 8 bits with groups that are powers of two; contiguous each. splits: ranges that slots are divided into; 0:
    as many as the GPU has room for. ValueError: k or v is not contiguous.
    """
    apart = (None, None, None, None) if sinks is None else (sinks.q, sinks.kv, sinks.mask, sinks.shift)
    # fmt: off
    return _flash_decode(
        q, rule.queries, rule.slots, *parts(k), *parts(v), group_size(k, v), *apart, rule.window, rule.sinks, scale,
        softcap, sink_logits, splits,
    )
    # fmt: on


def _empty(q: Tensor) -> Tensor:
    """Of q's shape (B, H, T, D), heads of a token side by side: as the product that follows wants them."""
    b, heads, t, d = q.shape
    return q.new_empty(b, t, heads, d).transpose(1, 2)


@operation(
    "flash_decode(Tensor q, Tensor queries, Tensor positions, Tensor k, Tensor? k_scales, Tensor? k_biases, int k_bits,"
    " Tensor v, Tensor? v_scales, Tensor? v_biases, int v_bits, int group_size, Tensor? sink_q, Tensor? sink_kv, "
    "Tensor? sink_mask, Tensor? sink_shift, int? window, int sinks, float scale, float? softcap, Tensor? sink_logits, "
    "int splits) -> Tensor",
    lambda q, *_: _empty(q),
)
def _flash_decode(
    q: Tensor,
    queries: Tensor,
    positions: Tensor,
    k: Tensor,
    k_scales: Tensor | None,
    k_biases: Tensor | None,
    k_bits: int,
    v: Tensor,
    v_scales: Tensor | None,
    v_biases: Tensor | None,
    v_bits: int,
    group_size: int,
    sink_q: Tensor | None,
    sink_kv: Tensor | None,
    sink_mask: Tensor | None,
    sink_shift: Tensor | None,
    window: int | None,
    sinks: int,
    scale: float,
    softcap: float | None,
    sink_logits: Tensor | None,
    splits: int,
) -> Tensor:
    b, heads, t, d = q.shape
    kv_heads, slots = k.shape[1:3]
    rep, apart = heads // kv_heads, 0 if sink_kv is None else sink_kv.shape[3]
    width = max(power_of_two(d), 16)
    block = min(TILE // width, 64)
    rows = max(min(power_of_two(rep * t), 2 * block), 16)
    tiles = ceil_div(rep * t, rows)
    ranges = splits or _splits(b * kv_heads * tiles, ceil_div(slots, block), q.device)
    sink_ranges = ceil_div(apart, block * max(ceil_div(slots, block * ranges), 1))
    total = ranges + sink_ranges
    q, sink_q = rows_together(q), q if sink_q is None else rows_together(sink_q)
    positions = rows_together(positions)
    strides = [0] * 5
    if sink_kv is not None and sink_mask is not None:
        sink_kv, sink_mask = _slots_together(sink_kv), rows_together(sink_mask)
        strides = [*sink_kv.stride()[:3], *sink_mask.stride()[:2]]
    shift = None if sink_shift is None else sink_shift.contiguous()
    sums = q.new_empty(b * kv_heads, total, rep * t, d, dtype=torch.float32)
    tops = q.new_empty(b * kv_heads, total, rep * t, 2, dtype=torch.float32)
    out = _empty(q)
    # fmt: off
    _decode[(b * kv_heads, total, tiles)](
        q, queries.contiguous(), k, k_scales, k_biases, v, v_scales, v_biases, positions, sink_q, sink_kv, sink_mask,
        shift, sums, tops, *q.stride()[:3], *sink_q.stride()[:3], *strides, positions.stride(0), slots, apart, total,
        sink_ranges, EVERYTHING if window is None else window, sinks, scale, softcap or 1.0, KV_HEADS=kv_heads, REP=rep,
        T=t, D=d, WIDTH=width, ROWS=rows, BLOCK=block, K_BITS=k_bits, V_BITS=v_bits, GROUP=group_size, SINKS=apart > 0,
        SHIFTED=shift is not None, SOFTCAP=softcap is not None, num_warps=8 if rows * width > TILE else 4, num_stages=2,
    )
    _combine[(b * kv_heads, rep * t)](
        sums, tops, sink_logits, out, total, KV_HEADS=kv_heads, REP=rep, T=t, D=d, WIDTH=width,
        PARTS=power_of_two(total), SINK_LOGITS=sink_logits is not None,
    )
    # fmt: on
    return out


def _slots_together(kv: Tensor) -> Tensor:
    """kv (2, B, H, S, D), a copy unless the slots of a head lie side by side."""
    return kv if kv.stride()[3:] == (kv.shape[4], 1) else kv.contiguous()


def _splits(programs: int, blocks: int, device: torch.device) -> int:
    """Ranges of slots with which so many programs become two for each processor of the GPU, of a block at least."""
    return max(min(ceil_div(2 * _processors(device), programs), blocks), 1)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
