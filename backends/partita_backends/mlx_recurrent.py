"""Recurrent operations on MLX: a short convolution, and the gated delta rule."""

from __future__ import annotations

import mlx.core as mx

Array = mx.array


def causal_conv(
    x: Array,
    weight: Array,
    tail: Array,
    bias: Array | None,
    lengths: Array | None,
    positions: Array | None,
) -> tuple[Array, Array]:
    """See `Backend.causal_conv`."""
    t, taps = x.shape[1], weight.shape[1]
    read = mx.concatenate([tail, x.astype(mx.float32)], 1)
    y = read[:, taps - 1 :] * weight[:, -1]
    for back in range(1, taps):
        part = read[:, taps - 1 - back :][:, :t] * weight[:, taps - 1 - back]
        y = y + (part if positions is None else mx.where((positions >= back)[:, :, None], part, 0.0))
    y = y if bias is None else y + bias
    if lengths is None:
        tail = read[:, t:]
    else:
        index = lengths[:, None] + mx.arange(taps - 1)
        tail = mx.take_along_axis(read, index[:, :, None], 1)
    return y.astype(x.dtype), tail


def gated_delta(
    q: Array, k: Array, v: Array, decay: Array, beta: Array, state: Array, fresh: Array | None
) -> tuple[Array, Array]:
    """See `Backend.gated_delta`."""
    each = v.shape[2] // k.shape[2]
    q, k = (mx.repeat(part.astype(mx.float32), each, 2) for part in (q, k))
    outputs: list[Array] = []
    for i in range(v.shape[1]):
        kept = mx.exp(decay[:, i])
        kept = kept if fresh is None else mx.where(fresh[:, i, None], 0.0, kept)
        state = state * kept[:, :, None, None]
        known = (state @ k[:, i, :, :, None])[..., 0]
        change = (v[:, i].astype(mx.float32) - known) * beta[:, i, :, None]
        state = state + change[..., None] * k[:, i, :, None]
        outputs.append((state @ q[:, i, :, :, None])[..., 0])
    return mx.stack(outputs, 1).astype(v.dtype), state
