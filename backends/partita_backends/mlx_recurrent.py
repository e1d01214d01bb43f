"""Recurrent operations on MLX: a short convolution, and the gated delta rule."""

from __future__ import annotations

import mlx.core as mx

Array = mx.array

CHUNK = 64  # tokens of a triangular system; a power of two


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
    """See `Backend.gated_delta`; not differentiated."""
    if fresh is not None:
        return in_chunks(q, k, v, decay, beta, state, fresh)
    kind, wide = v.dtype, mx.float32
    q, k, v = q.astype(wide), k.astype(wide), v.astype(wide)
    y, state = mx.fast.gated_delta_update(q, k, v, mx.exp(decay), beta, state)
    return y.astype(kind), state


def in_chunks(
    q: Array, k: Array, v: Array, decay: Array, beta: Array, state: Array, fresh: Array | None
) -> tuple[Array, Array]:
    """The same by triangular systems of a chunk of tokens each (arXiv 2412.06464, section 3.3): products alone, which
    are differentiated as any others."""
    (b, t, heads, _), groups, kind = v.shape, k.shape[2], v.dtype
    q, k = (_chunks(part, part.shape[2])[:, :, 0, None] for part in (q, k))  # B Hk 1 N C Dk
    v, decay, beta = (_chunks(part, groups) for part in (v, decay, beta))  # B Hk G N C …
    seen, left = mx.tri(CHUNK, dtype=mx.bool_), mx.exp(mx.cumsum(decay, -1))
    if fresh is not None:
        document = mx.cumsum(_chunks(fresh[:, :, None], 1), -1)  # B 1 1 N C
        seen = seen & (document[..., :, None] == document[..., None, :])
        left = mx.where(document == 0, left, 0.0)
    # What is left at i of what was written at j. Each sum by itself: a difference of sums from the chunk's first token
    # loses the digits of small decays behind a large one.
    below = mx.tri(CHUNK, k=-1, dtype=mx.bool_)
    between = mx.cumsum(mx.where(below, decay[..., None], 0.0), -2)
    share = mx.exp(mx.where(seen, between, -mx.inf))
    inverse = _inverse(mx.where(below, share * (k @ k.swapaxes(-1, -2)) * beta[..., None], 0.0))
    new = inverse @ (v * beta[..., None])
    known = inverse @ (k * (beta * left)[..., None])
    q_left, within = q * left[..., None], share * (q @ k.swapaxes(-1, -2))
    k_left, kept = k * share[..., -1, :, None], left[..., -1]
    state = state.reshape(b, groups, heads // groups, *state.shape[2:])
    outputs: list[Array] = []
    for i in range(v.shape[3]):
        change = new[:, :, :, i] - known[:, :, :, i] @ state.swapaxes(-1, -2)
        outputs.append(q_left[:, :, :, i] @ state.swapaxes(-1, -2) + within[:, :, :, i] @ change)
        state = state * kept[:, :, :, i, None, None] + change.swapaxes(-1, -2) @ k_left[:, :, :, i]
    y = mx.stack(outputs, 3).reshape(b, heads, -1, v.shape[-1])[:, :, :t]
    return y.swapaxes(1, 2).astype(kind), state.reshape(b, heads, *state.shape[3:])


def _inverse(below: Array) -> Array:
    """Of I + below, (…, C, C), strictly lower: of blocks of 1, 2, 4 … rows, two of which make the next. As exact as
    solving row by row, unlike a product of powers, which grow."""
    lead, size = below.shape[:-2], 1
    found = mx.ones((*lead, CHUNK, 1, 1))
    while size < CHUNK:
        starts = range(0, CHUNK, 2 * size)
        corners = [below[..., at + size : at + 2 * size, at : at + size] for at in starts]
        upper, lower = found[..., 0::2, :, :], found[..., 1::2, :, :]
        corner = -(lower @ mx.stack(corners, -3) @ upper)
        above = mx.concatenate([upper, mx.zeros_like(upper)], -1)
        found = mx.concatenate([above, mx.concatenate([corner, lower], -1)], -2)
        size *= 2
    return found[..., 0, :, :]


def _chunks(x: Array, groups: int) -> Array:
    """(B, T, H, …) as float32 (B, groups, H / groups, N, C, …), zeros behind the last token: they write nothing and
    forget nothing."""
    b, t, heads, *rest = x.shape
    x = mx.pad(x.astype(mx.float32), [(0, 0), (0, -t % CHUNK), *[(0, 0)] * (1 + len(rest))])
    return x.swapaxes(1, 2).reshape(b, groups, heads // groups, -1, CHUNK, *rest)
