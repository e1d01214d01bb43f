"""Attention over cache slots, and the packing of keys and values, on torch.

One query row is two plain batched products: torch's fused attention costs several times more there on a CPU. Scores of
sinks and of the ring are joined before one softmax in float32.
"""

from __future__ import annotations

from typing import Any

import torch

from partita.backend import Rule, Sinks
from partita.quantization import Packed

from .weights import KERNEL_ROWS, cpu_kernels, dequantize

Tensor = torch.Tensor

TILE = 2**21  # scores, or values of unpacked keys, that are alive at once: 8 MiB in float32


def cached(
    q: Tensor,
    k: Tensor | Packed[Tensor],
    v: Tensor | Packed[Tensor],
    mask: Tensor,
    *,
    scale: float,
    sinks: Sinks[Tensor] | None,
    softcap: float | None,
    sink_logits: Tensor | None,
    rule: Rule[Tensor] | None,
    decode: torch.dtype,
    gpu: Any,
) -> Tensor:
    """See `Backend.cached_attention`. A few rows are computed in `decode`; softmax in float32.

    gpu: the module `cuda`, or None.

    What is alive at once is bounded: one group of heads that read the same keys, and as many queries of it as make
    TILE scores. So a packed cache is never unpacked as a whole, and scores of a chunk cost little beside the cache.
    """
    if gpu is not None and rule is not None and gpu.attends(q):
        return gpu.attend(q, k, v, rule, scale=scale, sinks=sinks, softcap=softcap, sink_logits=sink_logits)
    b, heads, t, d = q.shape
    kv_heads, slots = k.shape[1:3]
    kernels = cpu_kernels() if q.device.type == "cpu" and t <= KERNEL_ROWS else None
    if kernels is not None and kernels.attends(k, v):
        return kernels.attend(q, k, v, mask, scale=scale, sinks=sinks, softcap=softcap, sink_logits=sink_logits)
    product = decode if t <= KERNEL_ROWS else q.dtype
    unpacked = 0 if all(isinstance(x, Tensor) and x.dtype == product for x in (k, v)) else kv_heads * d
    if max(heads * t, unpacked) * b * slots <= TILE:
        return _attend(q, k, v, mask, scale, sinks, softcap, sink_logits, product)
    rep = heads // kv_heads
    rows = max(TILE // (b * rep * slots), 1)
    out = torch.empty_like(q)
    for h in range(kv_heads):
        group, one = slice(h * rep, (h + 1) * rep), slice(h, h + 1)
        key, value = _part(k, one, product), _part(v, one, product)
        extra = None if sink_logits is None else sink_logits[group]
        for start in range(0, t, rows):
            part = slice(start, start + rows)
            first = sinks and sinks.some(group, part, one)
            tile = _attend(q[:, group, part], key, value, mask[:, part], scale, first, softcap, extra, product)
            out[:, group, part] = tile
    return out


def _part(x: Tensor | Packed[Tensor], heads: slice, dtype: torch.dtype) -> Tensor:
    """Keys or values of some heads, dense."""
    return _dense(x.map(lambda a: a[:, heads].contiguous()) if isinstance(x, Packed) else x[:, heads], dtype)


def _dense(x: Tensor | Packed[Tensor], dtype: torch.dtype) -> Tensor:
    return dequantize(x, dtype) if isinstance(x, Packed) else x.to(dtype)


def _attend(
    q: Tensor,
    k: Tensor | Packed[Tensor],
    v: Tensor | Packed[Tensor],
    mask: Tensor,
    scale: float,
    sinks: Sinks[Tensor] | None,
    softcap: float | None,
    sink_logits: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    b, heads, t, d = q.shape
    k, v = _dense(k, dtype), _dense(v, dtype)
    kv_heads = k.shape[1]
    shape = (b, kv_heads, heads // kv_heads, t)

    def scores(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:  # B Hkv rep T C, float32
        grouped = (q * scale).to(dtype).reshape(b, kv_heads, -1, d)
        s = (grouped @ k.transpose(2, 3)).float().view(*shape, -1)
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        return s.add_(mask[:, None, None])  # the product is nobody else's

    s, count = scores(q, k, mask), 0
    if sinks is not None:
        first = scores(sinks.q, sinks.k.to(dtype), sinks.mask)
        if sinks.shift is not None:
            first = first + sinks.shift.view(*shape, 1)
        s, count = torch.cat([first, s], -1), first.shape[-1]
    p = s.softmax(-1).to(dtype).view(b, kv_heads, shape[2] * t, -1)
    out = p[..., count:] @ v
    if sinks is not None:
        out = p[..., :count] @ sinks.v.to(dtype) + out
    out = out.view(b, heads, t, -1)
    if sink_logits is not None:  # a column without a value only scales the others: no need to append it
        share = torch.sigmoid(s.logsumexp(-1) - sink_logits.view(kv_heads, shape[2], 1))
        out = out * share.view(b, heads, t, 1)
    return out.to(q.dtype)


def quantize(x: Tensor, bits: int, group_size: int) -> Packed[Tensor]:
    """`partita.quantization.quantize_minmax`, operation for operation."""
    *leading, n = x.shape
    groups = x.float().reshape(*leading, n // group_size, group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / (2**bits - 1)).to(torch.float16)
    biases = low.to(torch.float16)
    step = scales.float()
    step = torch.where(step == 0, 1.0, step)
    integers = torch.round((groups - biases.float()[..., None]) / step[..., None])
    integers = integers.clamp(0, 2**bits - 1) * (scales != 0)[..., None]
    stream = integers.to(torch.uint8).reshape(*leading, n)
    if bits == 4:
        stream = stream[..., 0::2] | (stream[..., 1::2] << 4)
    return Packed(stream.contiguous().view(torch.int32), scales, biases, bits, group_size)
