"""Attention over cache slots on MLX.

Scores of sinks and of the ring are joined before one softmax in float32. What is alive at once is bounded (`TILE`), so
a packed cache is never unpacked as a whole.
"""

from __future__ import annotations

import mlx.core as mx

from partita.backend import Sinks
from partita.quantization import Packed
from partita.rings import part

from .mlx_rings import dequantize

Array = mx.array

# On the CPU device a dequantized product wins from here on; Metal's packed product is tiled and always wins.
PACKED_ROWS = 4

FEW_QUERIES = 8  # Metal's kernel for few queries takes so many
FUSED_SIZES = (64, 80, 96, 128)  # head sizes of its kernel for many queries

FEW_SINKS = 5  # the usual ones and the spare slot: more are a product

LEAST = -6e4  # float16 ends at -65,504

TILE = 2**21  # scores, or values of unpacked keys, that are alive at once: 8 MiB in float32


def fuses(q: Array, sinks: Sinks[Array] | None, softcap: float | None) -> bool:
    """Whether `fused` is for dense keys and values: those of one part, and few queries, or on Metal more of them where
    its kernel takes the head's size; without a kernel it would make all scores of a chunk at once."""
    if sinks is not None or softcap is not None:
        return False
    return q.shape[2] <= FEW_QUERIES or (mx.default_device() == mx.gpu and q.shape[-1] in FUSED_SIZES)


def fused(q: Array, k: Array, v: Array, seen: Array, scale: float, sink_logits: Array | None) -> Array:
    """One launch. seen: bool (B, T, C)."""
    k, v = k.astype(q.dtype), v.astype(q.dtype)
    logits = None if sink_logits is None else sink_logits.astype(q.dtype)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=seen[:, None], sinks=logits)


def cached(
    q: Array,
    k: Array | Packed[Array],
    v: Array | Packed[Array],
    mask: Array,
    dtype: mx.Dtype,
    *,
    scale: float,
    sinks: Sinks[Array] | None,
    softcap: float | None,
    sink_logits: Array | None,
) -> Array:
    """See `Backend.cached_attention`. dtype: of the residual stream."""
    b, heads, t, d = q.shape
    kv_heads, slots = k.shape[1:3]
    if t <= PACKED_ROWS or max(heads * t, kv_heads * d) * b * slots <= TILE:
        return _attend(q, k, v, mask, dtype, scale, sinks, softcap, sink_logits)
    # a chunk over many slots: one group of heads that read the same keys, and so many queries of it, at a time
    rep = heads // kv_heads
    rows = max(TILE // (b * rep * slots), 1)
    groups: list[Array] = []
    for h in range(kv_heads):
        group, one = slice(h * rep, (h + 1) * rep), slice(h, h + 1)
        key, value = _dense(k, dtype, one), _dense(v, dtype, one)
        extra = None if sink_logits is None else sink_logits[group]
        tiles: list[Array] = []
        for start in range(0, t, rows):
            part = slice(start, start + rows)
            first = sinks and sinks.some(group, part, one)
            tiles.append(_attend(q[:, group, part], key, value, mask[:, part], dtype, scale, first, softcap, extra))
        groups.append(mx.concatenate(tiles, 2))
    return mx.concatenate(groups, 1)


def _dense(x: Array | Packed[Array], dtype: mx.Dtype, heads: slice = slice(None)) -> Array:
    return (dequantize(x.map(lambda a: a[:, heads])) if isinstance(x, Packed) else x[:, heads]).astype(dtype)


def _attend(
    q: Array,
    k: Array | Packed[Array],
    v: Array | Packed[Array],
    mask: Array,
    stream: mx.Dtype,
    scale: float,
    sinks: Sinks[Array] | None,
    softcap: float | None,
    sink_logits: Array | None,
) -> Array:
    b, heads, t, d = q.shape
    kv_heads = k.shape[1]
    rep = heads // kv_heads
    if t > PACKED_ROWS:  # packed products would unpack every tile once a row
        k, v = _dense(k, stream), _dense(v, stream)
    dtype = packed_dtype(stream) if isinstance(k, Packed) or isinstance(v, Packed) else stream

    def scores(q: Array, k: Array | Packed[Array]) -> Array:  # B Hkv rep T C
        grouped = q.astype(dtype).reshape(b, kv_heads, rep * t, d)
        return _times(grouped, k, transpose=True).reshape(b, kv_heads, rep, t, -1)

    s, count, values, added = scores(q, k), 0, None, mask[:, None, None]
    if sinks is not None:
        firsts = sinks.kv if sinks.kv.shape[3] <= FEW_SINKS else sinks.kv.astype(dtype)
        keys, values = part(firsts, 0), part(firsts, 1)
        first, added = scores(sinks.q, keys), sinks.both[:, None, None]
        if sinks.shift is not None:
            moved = sinks.mask[:, None, None] + sinks.shift.reshape(b, kv_heads, rep, t, 1)
            added = mx.concatenate([moved, mx.broadcast_to(mask[:, None, None], s.shape)], -1)
        s, count = mx.concatenate([first, s], -1), first.shape[-1]
    s = s.astype(mx.float32) * scale
    if softcap is not None:
        s = softcap * mx.tanh(s / softcap)
    s = s + added
    p = _weights(s, dtype).reshape(b, kv_heads, rep * t, -1)
    out = _times(p[..., count:] if count else p, v, transpose=False)
    if values is not None:
        out = _plus_sinks(out, p[..., :count], values, stream)
    out = out.reshape(b, heads, t, -1)
    if sink_logits is not None:  # a column without a value only scales the others: no need to append it
        share = mx.sigmoid(mx.logsumexp(s, -1) - sink_logits.reshape(kv_heads, rep, 1))
        out = out * share.reshape(b, heads, t, 1)
    return out.astype(stream)


def packed_dtype(stream: mx.Dtype) -> mx.Dtype:
    """Of products with packed numbers: that of their scales, of which a 16-bit stream loses nothing."""
    return mx.float32 if stream == mx.float32 else mx.float16


def _plus_sinks(out: Array, p: Array, values: Array, stream: mx.Dtype) -> Array:
    """out (B, H, rows, D) + p (B, H, rows, S) times the sinks' values (B, H, S, D), in the dtype of either."""
    if values.dtype == out.dtype:
        return mx.addmm(out, p, values)
    y = out.astype(mx.float32)  # one pass: `mx.compile` takes the casts into it, which a product would stand between
    for i in range(p.shape[-1]):
        y = y + p[..., i : i + 1] * values[:, :, i : i + 1].astype(mx.float32)
    return y.astype(stream)


def _weights(s: Array, dtype: mx.Dtype) -> Array:
    """The softmax of float32 scores, computed in float32; of few bits they are rounded before it, as the product gave
    them. What is masked stays finite."""
    if dtype != mx.float16:
        return mx.softmax(s, -1).astype(dtype)
    return mx.softmax(mx.maximum(s, LEAST).astype(dtype), -1, precise=True)


def _times(x: Array, y: Array | Packed[Array], *, transpose: bool) -> Array:
    """x times keys (transposed) or values, packed or not."""
    if isinstance(y, Packed):
        # scales of keys and values stay in half precision, converted where they are used
        scales, biases = y.grid
        scales, biases = scales.astype(x.dtype), biases.astype(x.dtype)
        return mx.quantized_matmul(x, y.weight, scales, biases, transpose, y.group_size, y.bits)
    y = y.astype(x.dtype)
    return x @ (y.swapaxes(2, 3) if transpose else y)
