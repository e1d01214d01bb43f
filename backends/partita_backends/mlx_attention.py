"""Attention over cache slots, and the packing of keys and values, on MLX.

Scores of sinks and of the ring are joined before one softmax in float32. What is alive at once is bounded (`TILE`), so
a packed cache is never unpacked as a whole.
"""

from __future__ import annotations

import mlx.core as mx

from partita.backend import Sinks
from partita.quantization import Packed

Array = mx.array

# On the CPU device a dequantized product wins from here on; Metal's packed product is tiled and always wins.
PACKED_ROWS = 4

TILE = 2**21  # scores, or values of unpacked keys, that are alive at once: 8 MiB in float32


def cached(
    q: Array,
    k: Array | Packed[Array],
    v: Array | Packed[Array],
    mask: Array,
    *,
    scale: float,
    sinks: Sinks[Array] | None,
    softcap: float | None,
    sink_logits: Array | None,
) -> Array:
    """See `Backend.cached_attention`."""
    b, heads, t, d = q.shape
    kv_heads, slots = k.shape[1:3]
    if t <= PACKED_ROWS or max(heads * t, kv_heads * d) * b * slots <= TILE:
        return _attend(q, k, v, mask, scale, sinks, softcap, sink_logits)
    # a chunk over many slots: one group of heads that read the same keys, and so many queries of it, at a time
    rep = heads // kv_heads
    rows = max(TILE // (b * rep * slots), 1)
    groups: list[Array] = []
    for h in range(kv_heads):
        group, one = slice(h * rep, (h + 1) * rep), slice(h, h + 1)
        key, value = _dense(k, q.dtype, one), _dense(v, q.dtype, one)
        extra = None if sink_logits is None else sink_logits[group]
        tiles: list[Array] = []
        for start in range(0, t, rows):
            part = slice(start, start + rows)
            first = sinks and Sinks(sinks.q[:, group, part], sinks.k[:, one], sinks.v[:, one], sinks.mask[:, part])
            tiles.append(_attend(q[:, group, part], key, value, mask[:, part], scale, first, softcap, extra))
        groups.append(mx.concatenate(tiles, 2))
    return mx.concatenate(groups, 1)


def _dense(x: Array | Packed[Array], dtype: mx.Dtype, heads: slice = slice(None)) -> Array:
    return (dequantize(x.map(lambda a: a[:, heads])) if isinstance(x, Packed) else x[:, heads]).astype(dtype)


def _attend(
    q: Array,
    k: Array | Packed[Array],
    v: Array | Packed[Array],
    mask: Array,
    scale: float,
    sinks: Sinks[Array] | None,
    softcap: float | None,
    sink_logits: Array | None,
) -> Array:
    b, heads, t, d = q.shape
    kv_heads = k.shape[1]
    rep = heads // kv_heads
    if t > PACKED_ROWS:  # packed products would unpack every tile once a row
        k, v = _dense(k, q.dtype), _dense(v, q.dtype)

    def scores(q: Array, k: Array | Packed[Array], mask: Array) -> Array:  # B Hkv rep T C, float32
        grouped = (q * scale).reshape(b, kv_heads, rep * t, d)
        s = _times(grouped, k, transpose=True).astype(mx.float32).reshape(b, kv_heads, rep, t, -1)
        if softcap is not None:
            s = softcap * mx.tanh(s / softcap)
        return s + mask[:, None, None]

    s, count = scores(q, k, mask), 0
    if sinks is not None:
        first = scores(sinks.q, sinks.k, sinks.mask)
        s, count = mx.concatenate([first, s], -1), first.shape[-1]
    p = mx.softmax(s, -1).astype(q.dtype).reshape(b, kv_heads, rep * t, -1)
    out = _times(p[..., count:] if count else p, v, transpose=False)
    if sinks is not None:
        out = _times(p[..., :count], sinks.v, transpose=False) + out
    out = out.reshape(b, heads, t, -1)
    if sink_logits is not None:  # a column without a value only scales the others: no need to append it
        share = mx.sigmoid(mx.logsumexp(s, -1) - sink_logits.reshape(kv_heads, rep, 1))
        out = out * share.reshape(b, heads, t, 1)
    return out.astype(q.dtype)


def _times(x: Array, y: Array | Packed[Array], *, transpose: bool) -> Array:
    """x times keys (transposed) or values, packed or not."""
    if isinstance(y, Packed):
        # scales of keys and values stay in half precision, converted where they are used
        scales, biases = y.grid
        scales, biases = scales.astype(x.dtype), biases.astype(x.dtype)
        return mx.quantized_matmul(x, y.weight, scales, biases, transpose, y.group_size, y.bits)
    y = y.astype(x.dtype)
    return x @ (y.swapaxes(2, 3) if transpose else y)


def quantize(x: Array, bits: int, group_size: int) -> Packed[Array]:
    """`partita.quantization.quantize_minmax`, operation for operation."""
    *leading, n = x.shape
    groups = x.astype(mx.float32).reshape(*leading, n // group_size, group_size)
    low, high = groups.min(-1), groups.max(-1)
    scales = ((high - low) / (2**bits - 1)).astype(mx.float16)
    biases = low.astype(mx.float16)
    step = scales.astype(mx.float32)
    step = mx.where(step == 0, 1.0, step)
    integers = mx.round((groups - biases.astype(mx.float32)[..., None]) / step[..., None])
    integers = mx.clip(integers, 0, 2**bits - 1) * (scales != 0)[..., None]
    per_word = 32 // bits
    words = integers.astype(mx.uint32).reshape(*leading, n // per_word, per_word)
    weight = (words << (mx.arange(per_word, dtype=mx.uint32) * bits)).sum(-1).astype(mx.uint32)
    return Packed(weight, scales, biases, bits, group_size)


def dequantize(packed: Packed[Array]) -> Array:
    """q * scale + bias in float32."""
    scales, biases = (part.astype(mx.float32) for part in packed.grid)
    return mx.dequantize(packed.weight, scales, biases, packed.group_size, packed.bits)
