"""Attention over cache slots, and the packing of keys and values, on torch.

One query row is two plain batched products: torch's fused attention costs several times more there on a CPU. Scores of
sinks and of the ring are joined before one softmax in float32.
"""

from __future__ import annotations

from typing import Any

import torch

from partita.backend import Sinks
from partita.quantization import Packed

from .weights import KERNEL_ROWS, dequantize

Tensor = torch.Tensor


def cached(
    q: Tensor,
    k: Any,
    v: Any,
    mask: Tensor,
    *,
    scale: float,
    sinks: Sinks | None,
    softcap: float | None,
    decode: torch.dtype,
) -> Tensor:
    """See `Backend.cached_attention`. A few rows are computed in `decode`; softmax in float32."""
    b, heads, t, d = q.shape
    product = decode if t <= KERNEL_ROWS else q.dtype
    k, v = (dequantize(x, product) if isinstance(x, Packed) else x.to(product) for x in (k, v))
    kv_heads = k.shape[1]
    shape = (b, kv_heads, heads // kv_heads, t)

    def scores(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:  # B Hkv rep T C, float32
        grouped = (q * scale).to(product).reshape(b, kv_heads, -1, d)
        s = (grouped @ k.transpose(2, 3)).float().view(*shape, -1)
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        return s + mask[:, None, None]

    s = scores(q, k, mask)
    if sinks is None:
        p = s.softmax(-1).to(product).view(b, kv_heads, -1, s.shape[-1])
        return (p @ v).view(b, heads, t, -1).to(q.dtype)
    first = scores(sinks.q, sinks.k.to(product), sinks.mask)
    count = first.shape[-1]
    p = torch.cat([first, s], -1).softmax(-1).to(product).view(b, kv_heads, shape[2] * t, -1)
    out = p[..., :count] @ sinks.v.to(product) + p[..., count:] @ v
    return out.view(b, heads, t, -1).to(q.dtype)


def quantize(x: Tensor, bits: int, group_size: int) -> Packed:
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
