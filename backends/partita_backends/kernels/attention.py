"""Attention of a few queries over cache slots, in float32, over keys and values as they are stored.

Slots are taken 32 at a time. A block is turned into float32 once for all queries that read it, and stays in the
processor's nearest cache meanwhile; blocks that no query sees are not read. Scores of the queries of one head of keys
are alive at once, no more. One compiled kernel does for every format: compiling costs a user seconds, a comparison per
block nothing. Not here: many queries, for which products of matrices are better.
"""

from __future__ import annotations

import numba
import numpy as np

from .compiled import Call, inner_kernel, kernel, parallel_kernel, threaded
from .lanes import (
    WIDTH,
    exponential,
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
from .sums import all_above, any_above, load_shorter, no_floats, store_totals

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
def _scratch(size):  # pragma: no cover
    """float32 (size,), not yet set, from a multiple of 64 bytes on: no vector of it crosses a line of the cache."""
    made = np.empty(size + 16, np.float32)
    first = (-made.ctypes.data % 64) // 4
    return made[first : first + size]


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
    top = splat(np.float32(-np.inf))
    for i in range(0, width, WIDTH):
        top = larger(top, load(scores, at + i))
    rest = np.empty(WIDTH, np.float32)
    store(rest, 0, top)
    for j in range(WIDTH):
        if not rest[j] <= largest:  # also what is no number
            largest = rest[j]
    acc = splat(np.float32(0))
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
            even, odd = load(y, place + r * size + d), splat(np.float32(0))
            for i in range(0, WIDTH, 2):
                even = fused(splat(scores[at + r * width + i]), load(rows, i * size + d), even)
                odd = fused(splat(scores[at + r * width + i + 1]), load(rows, (i + 1) * size + d), odd)
            store(y, place + r * size + d, even + odd)


@inner_kernel
def _clear_hidden(mask, row, first, there, size, rows):  # pragma: no cover
    """Zeros in place of values that no token sees: a weight of 0 does not undo what is not finite."""
    for j in range(there):
        some = False
        for t in range(mask.shape[1]):
            some = some or mask[row, t, first + j] > HIDDEN
        if not some:
            for d in range(0, size, WIDTH):
                store(rows, j * size + d, splat(np.float32(0)))


@kernel
def _heads(
    q, anchored, k, ks, kb, k_kind, k_group, v, vs, vb, v_kind, v_group, mask,
    sink_k, sink_v, sink_kind, sink_mask, scale, softcap, logits, y, kv_heads, begin, end,
):  # pragma: no cover  # fmt: skip
    """Heads of keys from `begin` on up to `end`, counted over all rows of the batch. Part 0 are the sinks, part 1 the
    ring; queries are heads of tokens, tokens fastest."""
    tokens, size, heads = q.shape[2], q.shape[3], q.shape[1] // kv_heads
    queries, slots, firsts = heads * tokens, mask.shape[2], sink_mask.shape[2]
    rows, grid = _scratch(WIDTH * size), _scratch(2 * size)
    seen = np.empty((slots + WIDTH - 1) // WIDTH + (firsts + WIDTH - 1) // WIDTH, np.int64)
    scores = _scratch(queries * len(seen) * WIDTH)
    for head in range(begin, end):
        b, h, place = head // kv_heads, head % kv_heads, head * queries * size
        kept = _see(sink_mask, b, tokens, firsts, seen, 0)
        count = _see(mask, b, tokens, slots, seen, kept)
        width = count * WIDTH
        for n in range(count):
            first, full = seen[n] // 2 * WIDTH, seen[n] % 2 == 1
            part = (sink_k, ks, kb, sink_kind, WIDTH) if n < kept else (k, ks, kb, k_kind, k_group)
            hidden, length = (sink_mask, firsts) if n < kept else (mask, slots)
            there = min(WIDTH, length - first)
            _unpack(part, (head * length + first) * size, there * size, rows, grid)
            for i in range(there * size, WIDTH * size, WIDTH):
                store(rows, i, splat(np.float32(0)))
            _score(anchored if n < kept else q, place, queries, size, rows, scores, n * WIDTH, width)
            for r in range(queries):
                at, its = r * width + n * WIDTH, (b * tokens + r % tokens) * length + first
                store(scores, at, load(scores, at) * splat(scale))
                if softcap > 0:
                    for j in range(WIDTH):
                        scores[at + j] = softcap * np.tanh(scores[at + j] / softcap)
                if full:
                    store(scores, at, load(scores, at) + load(hidden, its))
                else:
                    for j in range(WIDTH):
                        m = hidden[b, r % tokens, first + j] if j < there else np.float32(-np.inf)
                        scores[at + j] = scores[at + j] + m if m > HIDDEN else m
        for i in range(place, place + queries * size, WIDTH):
            store(y, i, splat(np.float32(0)))
        sums = np.empty(queries, np.float32)
        for r in range(queries):
            extra = logits[h * heads + r // tokens] if len(logits) else np.float32(-np.inf)
            largest, whole = _weigh(scores, r * width, width, extra)
            if len(logits):
                whole += np.exp(extra - largest)
            sums[r] = whole if whole != 0 else np.float32(1)  # padding sees nothing: anything finite
        for n in range(count):
            first, full = seen[n] // 2 * WIDTH, seen[n] % 2 == 1
            part = (sink_v, vs, vb, sink_kind, WIDTH) if n < kept else (v, vs, vb, v_kind, v_group)
            hidden, length = (sink_mask, firsts) if n < kept else (mask, slots)
            there = min(WIDTH, length - first)
            _unpack(part, (head * length + first) * size, there * size, rows, grid)
            if not full:
                _clear_hidden(hidden, b, first, there, size, rows)
            _add_values(scores, n * WIDTH, width, queries, size, rows, y, place)
        for r in range(queries):
            for d in range(place + r * size, place + (r + 1) * size, WIDTH):
                store(y, d, load(y, d) * splat(np.float32(1) / sums[r]))


@parallel_kernel
def _heads_parallel(
    q, anchored, k, ks, kb, k_kind, k_group, v, vs, vb, v_kind, v_group, mask,
    sink_k, sink_v, sink_kind, sink_mask, scale, softcap, logits, y, kv_heads, begin, end,
):  # pragma: no cover  # fmt: skip
    for head in numba.prange(begin, end):
        _heads(
            q, anchored, k, ks, kb, k_kind, k_group, v, vs, vb, v_kind, v_group, mask,
            sink_k, sink_v, sink_kind, sink_mask, scale, softcap, logits, y, kv_heads, head, head + 1,
        )  # fmt: skip


def attend(
    q: np.ndarray,
    k: Side,
    v: Side,
    mask: np.ndarray,
    sinks: tuple[np.ndarray, Side, Side, np.ndarray],
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
    mask, of no slot where there are none. sink_logits: float32 (Hq,), or none. All contiguous.
    """
    anchored, sink_k, sink_v, sink_mask = sinks
    numbers = np.float32(scale), np.float32(softcap or 0)
    given = q, anchored, *k, *v, mask, sink_k[0], sink_v[0], sink_k[3], sink_mask, *numbers, sink_logits, y
    span = kv_heads, 0, len(q) * kv_heads
    if threads == 1:
        return _heads, (*given, *span)
    return threaded, (threads, _heads_parallel, *given, *span)
