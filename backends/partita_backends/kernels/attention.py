"""Attention of a few queries over cache slots, in float32, over keys and values as they are stored.

Slots that no query sees are not read. A row of keys is turned into float32 once for all queries that read it; scores of
the queries of one head of keys are alive at once, no more. Not here: many queries, for which products of matrices are
better.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from .compiled import Call, kernel, parallel_kernel, threaded
from .lanes import (
    WIDTH,
    exponential,
    floats,
    from_half,
    fused,
    larger,
    load,
    load_floats,
    load_nibbles,
    splat,
    store,
    total,
)

HIDDEN = np.float32(-1e29)
"""A mask below this hides a slot: the seam's own is -1e30."""


def fits(head_dim: int, group_size: int = WIDTH) -> bool:
    """Whether rows of keys, and groups of packed ones, are whole lanes."""
    return head_dim % WIDTH == 0 and group_size % WIDTH == 0


def _row(side: Any, at: int, out: np.ndarray) -> None:
    """A slot as float32, out (head_dim,). side: an array as `load_floats` takes it, or, packed, (bytes, scales, biases,
    bits, group size); at: the slot, all leading dimensions in one."""
    raise NotImplementedError  # compiled code calls what follows


@overload(_row)
def _row_of(side, at, out):
    if isinstance(side, types.Array):

        def dense(side, at, out):
            for d in range(0, len(out), WIDTH):
                store(out, d, load_floats(side, at * len(out) + d))

        return dense

    def packed(side, at, out):
        words, scales, biases, bits, group = side
        size = len(out)
        for d in range(0, size, WIDTH):
            place = at * (size // group) + d // group
            q = load(words, at * size + d) if bits == 8 else load_nibbles(words, (at * size + d) // 2)
            scale, bias = splat(from_half(scales[place])), splat(from_half(biases[place]))
            store(out, d, fused(floats(q), scale, bias))

    return packed


@kernel
def _scores(q, side, first, seen, count, mask, softcap, row, scores, start):  # pragma: no cover
    """Into scores (queries, places) from `start` on: of q (queries, head_dim), scaled, and the slots `seen`, which
    begin at `first` in side. mask: (tokens, slots); queries are heads of tokens, tokens fastest."""
    size, tokens = q.shape[1], mask.shape[0]
    for i in range(count):
        slot = seen[i]
        _row(side, first + slot, row)
        for r in range(q.shape[0]):
            acc = splat(np.float32(0))
            for d in range(0, size, WIDTH):
                acc = fused(load(q, r * size + d), load(row, d), acc)
            s = total(acc)
            if softcap > 0:
                s = softcap * np.tanh(s / softcap)
            scores[r, start + i] = s + mask[r % tokens, slot]


@kernel
def _weigh(scores, sums, logits, tokens):  # pragma: no cover
    """Scores to e to the score minus the row's largest, and their sums; logits: one a head, or none."""
    for r in range(scores.shape[0]):
        top = splat(np.float32(-np.inf))
        base = r * scores.shape[1]
        for i in range(0, scores.shape[1], WIDTH):
            top = larger(top, load(scores, base + i))
        store(sums, r * WIDTH, top)
        largest = np.float32(-np.inf)
        if len(logits):
            largest = logits[r // tokens]
        for j in range(WIDTH):
            x = sums[r, j]
            if not x <= largest:  # also what is no number
                largest = x
        acc = splat(np.float32(0))
        for i in range(0, scores.shape[1], WIDTH):
            p = exponential(load(scores, base + i) - splat(largest))
            store(scores, base + i, p)
            acc = acc + p
        whole = total(acc)
        if len(logits):
            whole += np.exp(logits[r // tokens] - largest)
        sums[r, 0] = whole if whole != 0 else np.float32(1)  # padding sees nothing: anything finite


@kernel
def _add_values(scores, start, side, first, seen, count, row, out):  # pragma: no cover
    """Rows of values by their weights onto out (queries, head_dim)."""
    size = out.shape[1]
    for i in range(count):
        _row(side, first + seen[i], row)
        for r in range(out.shape[0]):
            p = splat(scores[r, start + i])
            for d in range(0, size, WIDTH):
                store(out, r * size + d, fused(p, load(row, d), load(out, r * size + d)))


@kernel
def _visible(mask, seen):  # pragma: no cover
    """The slots of mask (tokens, slots) that a token sees, into seen; how many."""
    count = 0
    for c in range(mask.shape[1]):
        there = False
        for t in range(mask.shape[0]):
            there = there or mask[t, c] > HIDDEN
        if there:
            seen[count] = c
            count += 1
    return count


@kernel
def _scaled(q, b, h, heads, scale):  # pragma: no cover
    """The queries (heads * tokens, head_dim) of q (B, Hq, T, D) that read the keys of head h."""
    tokens, size = q.shape[2], q.shape[3]
    out = np.empty((heads * tokens, size), np.float32)
    for r in range(heads):
        for t in range(tokens):
            for d in range(size):
                out[r * tokens + t, d] = q[b, h * heads + r, t, d] * scale
    return out


@kernel
def _head(
    q, k, v, mask, anchored, sink_k, sink_v, sink_mask, scale, softcap, logits, y, b, h, kv_heads
):  # pragma: no cover
    """One head of keys of one row of the batch."""
    tokens, size, heads, slots, first = (
        q.shape[2],
        q.shape[3],
        q.shape[1] // kv_heads,
        mask.shape[2],
        sink_mask.shape[2],
    )
    seen, some, row = np.empty(slots, np.int64), np.empty(first, np.int64), np.empty(size, np.float32)
    count, kept = _visible(mask[b], seen), _visible(sink_mask[b], some)
    places = (kept + count + WIDTH - 1) // WIDTH * WIDTH
    scores = np.empty((heads * tokens, places), np.float32)
    for r in range(heads * tokens):
        for i in range(kept + count, places):
            scores[r, i] = np.float32(-np.inf)
    ring, sinks = (b * kv_heads + h) * slots, (b * kv_heads + h) * first
    if kept > 0:
        turned = _scaled(anchored, b, h, heads, scale)
        _scores(turned, sink_k, sinks, some, kept, sink_mask[b], softcap, row, scores, 0)
    turned = _scaled(q, b, h, heads, scale)
    _scores(turned, k, ring, seen, count, mask[b], softcap, row, scores, kept)
    sums, out = np.empty((heads * tokens, WIDTH), np.float32), np.empty((heads * tokens, size), np.float32)
    for r in range(heads * tokens):
        for d in range(0, size, WIDTH):
            store(out, r * size + d, splat(np.float32(0)))
    _weigh(scores, sums, logits[h * heads : (h + 1) * heads], tokens)
    if kept > 0:
        _add_values(scores, 0, sink_v, sinks, some, kept, row, out)
    _add_values(scores, kept, v, ring, seen, count, row, out)
    for r in range(heads):
        for t in range(tokens):
            for d in range(size):
                y[b, h * heads + r, t, d] = out[r * tokens + t, d] / sums[r * tokens + t, 0]


@kernel
def _heads(q, k, v, mask, anchored, sink_k, sink_v, sink_mask, scale, softcap, logits, y, kv_heads):  # pragma: no cover
    for b in range(q.shape[0]):
        for h in range(kv_heads):
            _head(q, k, v, mask, anchored, sink_k, sink_v, sink_mask, scale, softcap, logits, y, b, h, kv_heads)


@parallel_kernel
def _heads_parallel(
    q, k, v, mask, anchored, sink_k, sink_v, sink_mask, scale, softcap, logits, y, kv_heads
):  # pragma: no cover
    for i in numba.prange(q.shape[0] * kv_heads):
        b, h = i // kv_heads, i % kv_heads
        _head(q, k, v, mask, anchored, sink_k, sink_v, sink_mask, scale, softcap, logits, y, b, h, kv_heads)


def attend(
    q: np.ndarray,
    k: Any,
    v: Any,
    mask: np.ndarray,
    sinks: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    y: np.ndarray,
    *,
    scale: float,
    softcap: float | None,
    sink_logits: np.ndarray,
    kv_heads: int,
    threads: int = 1,
) -> Call:
    """The call for `Backend.cached_attention` into y, float32 (B, Hq, T, D).

    q: float32 (B, Hq, T, D). k, v: (B, Hkv, C, D), as `load_floats` takes it, or, packed, (uint8, scales, biases, bits,
    group size), all flat. mask: float32 (B, T, C). sinks: their queries, keys, values and mask, of no slot where there
    are none. sink_logits: float32 (Hq,), or none. All contiguous.
    """
    given = q, k, v, mask, *sinks, np.float32(scale), np.float32(softcap or 0), sink_logits, y, kv_heads
    return (_heads, given) if threads == 1 else (threaded, (threads, _heads_parallel, *given))
