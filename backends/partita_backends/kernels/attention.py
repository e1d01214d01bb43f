"""Attention of a few queries over cache slots, in float32, over keys and values as they are stored.

Slots are taken 32 at a time. A block is turned into float32 once for all queries that read it, and stays in the
processor's nearest cache meanwhile; blocks that no query sees are not read. Scores of the queries of one head of keys
are alive at once, no more. One compiled kernel does for every format: compiling costs a user seconds, a comparison per
block nothing. Not here: many queries, for which products of matrices are better.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from .compiled import Call, inner_kernel, kernel, parallel_kernel, threaded
from .lanes import (
    WIDTH,
    exponential,
    float_at,
    floats,
    from_half,
    fused,
    larger,
    load,
    load_bfloat,
    load_floats,
    load_half,
    load_nibbles,
    load_single,
    splat,
    store,
    total,
)
from .room import new_floats, new_indices
from .sums import all_above, any_above, load_shorter, no_floats, store_totals

ZERO, ONE, BELOW = np.float32(0), np.float32(1), np.float32(-np.inf)
HIDDEN = np.float32(-1e29)
"""A mask below this hides a slot: the seam's own is -1e30."""
FLOAT32, FLOAT16, BFLOAT16 = 32, 16, -16
"""Kinds of stored numbers; packed ones are of the kind that their bits are, 8 or 4."""

Side = tuple[np.ndarray, np.ndarray, np.ndarray, int, int]
"""Keys or values (B, Hkv, C, D) as they are stored: bytes, bits of float16 scales and biases (uint16) where there are
some, all flat; their kind, and the group size."""


def fits(head_dim: int, group_size: int = WIDTH) -> bool:
    """Whether rows of keys, and groups of packed ones, are whole lanes."""
    return head_dim % WIDTH == 0 and group_size % WIDTH == 0


@inner_kernel
def _unpack(side, start, size, out, grid):  # pragma: no cover
    """`size` numbers of a side, from the number `start` on, as float32: whole lanes, and whole groups of packed ones.
    grid: scratch for the scales and biases of 32 rows."""
    stored, scales, biases, kind, group = side
    if kind == FLOAT32:
        for i in range(0, size, WIDTH):
            store(out, i, load_single(stored, (start + i) * 4))
    elif kind == FLOAT16:
        for i in range(0, size, WIDTH):
            store(out, i, load_half(stored, (start + i) * 2))
    elif kind == BFLOAT16:
        for i in range(0, size, WIDTH):
            store(out, i, load_bfloat(stored, (start + i) * 2))
    else:
        _as_floats(scales, start // group, size // group, grid, 0)
        _as_floats(biases, start // group, size // group, grid, len(grid) // 2)
        for g in range(size // group):
            scale, bias = splat(grid[g]), splat(grid[len(grid) // 2 + g])
            for i in range(g * group, (g + 1) * group, WIDTH):
                if kind == 8:
                    store(out, i, fused(floats(load(stored, start + i)), scale, bias))
                else:
                    store(out, i, fused(floats(load_nibbles(stored, (start + i) // 2)), scale, bias))


@inner_kernel
def _as_floats(bits, start, count, out, at):  # pragma: no cover
    """So many float16 from `start` on, into out from `at` on."""
    whole = count // WIDTH * WIDTH
    for i in range(0, whole, WIDTH):
        store(out, at + i, load_floats(bits, start + i))
    for i in range(whole, count):
        out[at + i] = from_half(bits[start + i])


@inner_kernel
def _see(mask, row, tokens, slots, seen, count):  # pragma: no cover
    """Blocks of mask (B, T, C) that a token of a row of the batch sees, onto seen from `count` on: twice the block, and
    one more if every token sees all of it. How many there are then."""
    for first in range(0, slots, WIDTH):
        if first + WIDTH <= slots:
            some, whole = False, True
            for t in range(tokens):
                x = load(mask, (row * tokens + t) * slots + first)
                some = some or any_above(x, splat(HIDDEN))
                whole = whole and all_above(x, splat(HIDDEN))
        else:
            some, whole = True, False
        if some:
            seen[count] = first // WIDTH * 2 + whole
            count += 1
    return count


@inner_kernel
def _score(q, place, queries, size, rows, scratch, at, width):  # pragma: no cover
    """Products of queries, q from `place` on, with 32 rows of keys, into scratch: from `at` on, a query `width` behind
    the other. Four keys at a time: what they have in common is one load, and one reduction."""
    for r in range(queries):
        for i in range(0, WIDTH, 4):
            a, b, c, d = no_floats(), no_floats(), no_floats(), no_floats()
            for k in range(0, size, WIDTH // 2):
                x = load_shorter(q, place + r * size + k)
                a = fused(x, load_shorter(rows, i * size + k), a)
                b = fused(x, load_shorter(rows, (i + 1) * size + k), b)
                c = fused(x, load_shorter(rows, (i + 2) * size + k), c)
                d = fused(x, load_shorter(rows, (i + 3) * size + k), d)
            store_totals(scratch, at + r * width + i, a, b, c, d)


@inner_kernel
def _weigh(scores, at, width, largest):  # pragma: no cover
    """A query's scores, from `at` on, to e to the score minus the largest of them and `largest`; what was subtracted,
    and their sum."""
    top = splat(BELOW)
    for i in range(0, width, WIDTH):
        top = larger(top, load(scores, at + i))
    rest = new_floats(WIDTH)
    store(rest, 0, top)
    for j in range(WIDTH):
        if not rest[j] <= largest:  # also what is no number
            largest = rest[j]
    acc = splat(ZERO)
    for i in range(0, width, WIDTH):
        p = exponential(load(scores, at + i) - splat(largest))
        store(scores, at + i, p)
        acc = acc + p
    return largest, total(acc)


@inner_kernel
def _add_values(scores, at, width, queries, size, rows, y, place):  # pragma: no cover
    """32 rows of values by their weights onto y from `place` on."""
    for r in range(queries):
        for d in range(0, size, WIDTH):
            even, odd = load(y, place + r * size + d), splat(ZERO)
            for i in range(0, WIDTH, 2):
                even = fused(splat(scores[at + r * width + i]), load(rows, i * size + d), even)
                odd = fused(splat(scores[at + r * width + i + 1]), load(rows, (i + 1) * size + d), odd)
            store(y, place + r * size + d, even + odd)


@inner_kernel
def _clear_hidden(mask, place, tokens, slots, there, size, rows):  # pragma: no cover
    """Zeros in place of values that no token sees: a weight of 0 does not undo what is not finite."""
    for j in range(there):
        some = False
        for t in range(tokens):
            some = some or float_at(mask, place + t * slots + j) > HIDDEN
        if not some:
            for d in range(j * size, (j + 1) * size, WIDTH):
                store(rows, d, splat(ZERO))


@inner_kernel
def _score_side(q, side, mask, slots, seen, first, stop, where, sizes, scaling, scratch, scores):  # pragma: no cover
    """Scores of a head's queries, q float32 (B, Hq, T, D), with blocks `first` to `stop` of those seen, of sinks or of
    the ring. where: the head, its row of the batch; sizes: queries, tokens, numbers of a query, its scores."""
    (head, row), (queries, tokens, size, width), (scale, softcap), (rows, grid) = where, sizes, scaling, scratch
    for n in range(first, stop):
        begin, full = seen[n] // 2 * WIDTH, seen[n] % 2 == 1
        there = _read(side, head, slots, begin, size, rows, grid)
        _score(q, head * queries * size, queries, size, rows, scores, n * WIDTH, width)
        for r in range(queries):
            at, its = r * width + n * WIDTH, (row * tokens + r % tokens) * slots + begin
            store(scores, at, load(scores, at) * splat(scale))
            if softcap > 0:
                for j in range(at, at + WIDTH):
                    scores[j] = softcap * math.tanh(scores[j] / softcap)
            if full:
                store(scores, at, load(scores, at) + load(mask, its))
            else:
                _hide(mask, its, there, scores, at)


@inner_kernel
def _read(side, head, slots, first, size, rows, grid):  # pragma: no cover
    """32 slots of a head as float32, from `first` on; zeros beyond the last. How many there are."""
    there = min(WIDTH, slots - first)
    _unpack(side, (head * slots + first) * size, there * size, rows, grid)
    for i in range(there * size, WIDTH * size, WIDTH):
        store(rows, i, splat(ZERO))
    return there


@inner_kernel
def _hide(mask, place, there, scores, at):  # pragma: no cover
    """Add a mask to 32 scores, of which some are hidden, or beyond the last slot."""
    for j in range(WIDTH):
        m = float_at(mask, place + j) if j < there else BELOW
        scores[at + j] = scores[at + j] + m if m > HIDDEN else m


@inner_kernel
def _value_side(side, mask, slots, seen, first, stop, where, sizes, scratch, scores, y):  # pragma: no cover
    """Values of those blocks by their weights onto y."""
    (head, row), (queries, tokens, size, width), (rows, grid) = where, sizes, scratch
    for n in range(first, stop):
        begin = seen[n] // 2 * WIDTH
        there = _read(side, head, slots, begin, size, rows, grid)
        if seen[n] % 2 == 0:
            _clear_hidden(mask, row * tokens * slots + begin, tokens, slots, there, size, rows)
        _add_values(scores, n * WIDTH, width, queries, size, rows, y, head * queries * size)


@kernel
def _heads(
    q, anchored, k, ks, kb, k_kind, k_group, v, vs, vb, v_kind, v_group, mask,
    sink_k, sink_v, sink_kind, sink_mask, shift, scale, softcap, logits, y, kv_heads, begin, end,
):  # pragma: no cover  # fmt: skip
    """Heads of keys from `begin` on up to `end`, counted over all rows of the batch. Sinks come first, then the ring;
    queries are heads of tokens, tokens fastest."""
    tokens, size, heads = q.shape[2], q.shape[3], q.shape[1] // kv_heads
    queries, slots, firsts = heads * tokens, mask.shape[2], sink_mask.shape[2]
    scratch, scaling = (new_floats(WIDTH * size), new_floats(2 * size)), (scale, softcap)
    seen = new_indices((slots + WIDTH - 1) // WIDTH + (firsts + WIDTH - 1) // WIDTH)
    scores, sums = new_floats(queries * len(seen) * WIDTH), new_floats(queries)
    sink_keys, sink_values = (sink_k, ks, kb, sink_kind, WIDTH), (sink_v, vs, vb, sink_kind, WIDTH)
    keys, values = (k, ks, kb, k_kind, k_group), (v, vs, vb, v_kind, v_group)
    for head in range(begin, end):
        row, place = head // kv_heads, head * queries * size
        kept = _see(sink_mask, row, tokens, firsts, seen, 0)
        count = _see(mask, row, tokens, slots, seen, kept)
        width = count * WIDTH
        where, sizes = (head, row), (queries, tokens, size, width)
        _score_side(anchored, sink_keys, sink_mask, firsts, seen, 0, kept, where, sizes, scaling, scratch, scores)
        _score_side(q, keys, mask, slots, seen, kept, count, where, sizes, scaling, scratch, scores)
        for r in range(queries if len(shift) else 0):
            for i in range(r * width, r * width + kept * WIDTH, WIDTH):
                store(scores, i, load(scores, i) + splat(shift[head * queries + r]))
        for r in range(queries):
            extra = logits[head % kv_heads * heads + r // tokens] if len(logits) else BELOW
            largest, whole = _weigh(scores, r * width, width, extra)
            if len(logits):
                whole += math.exp(extra - largest)
            sums[r] = whole if whole != 0 else ONE  # padding sees nothing: anything finite
        for i in range(place, place + queries * size, WIDTH):
            store(y, i, splat(ZERO))
        _value_side(sink_values, sink_mask, firsts, seen, 0, kept, where, sizes, scratch, scores, y)
        _value_side(values, mask, slots, seen, kept, count, where, sizes, scratch, scores, y)
        for r in range(queries):
            for d in range(place + r * size, place + (r + 1) * size, WIDTH):
                store(y, d, load(y, d) * splat(ONE / sums[r]))


@parallel_kernel
def _heads_parallel(
    q, anchored, k, ks, kb, k_kind, k_group, v, vs, vb, v_kind, v_group, mask,
    sink_k, sink_v, sink_kind, sink_mask, shift, scale, softcap, logits, y, kv_heads, begin, end,
):  # pragma: no cover  # fmt: skip
    for head in numba.prange(begin, end):
        _heads(
            q, anchored, k, ks, kb, k_kind, k_group, v, vs, vb, v_kind, v_group, mask,
            sink_k, sink_v, sink_kind, sink_mask, shift, scale, softcap, logits, y, kv_heads, head, head + 1,
        )  # fmt: skip


def attend(
    q: np.ndarray,
    k: Side,
    v: Side,
    mask: np.ndarray,
    sinks: tuple[np.ndarray, Side, Side, np.ndarray, np.ndarray],
    y: np.ndarray,
    *,
    scale: float,
    softcap: float | None,
    sink_logits: np.ndarray,
    kv_heads: int,
    threads: int = 1,
) -> Call:
    """The call for `Backend.cached_attention` into y, float32 (B, Hq, T, D).

    q: float32 (B, Hq, T, D). mask: float32 (B, T, C). sinks: their queries, keys, values (dense ones, of one kind) and
    mask, of no slot where there are none, and what is added to their scores, float32 (B, Hq, T), or nothing.
    sink_logits: float32 (Hq,), or none. All contiguous.
    """
    anchored, sink_k, sink_v, sink_mask, shift = sinks
    numbers = np.float32(scale), np.float32(softcap or 0)
    given = q, anchored, *k, *v, mask, sink_k[0], sink_v[0], sink_k[3], sink_mask
    given = *given, shift.reshape(-1), *numbers, sink_logits, y
    span = kv_heads, 0, len(q) * kv_heads
    if threads == 1:
        return _heads, (*given, *span)
    return threaded, (threads, _heads_parallel, *given, *span)
