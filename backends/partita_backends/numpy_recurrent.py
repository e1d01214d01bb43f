"""Recurrent operations in numpy, token after token: the oracle of the others."""

from __future__ import annotations

import numpy as np


def _wide(x: np.ndarray) -> np.dtype:
    """What is computed in: float32, or float64 where numbers come in it."""
    return np.result_type(x.dtype, np.float32) if x.dtype.kind == "f" else np.dtype(np.float32)


def causal_conv(
    x: np.ndarray,
    weight: np.ndarray,
    tail: np.ndarray,
    bias: np.ndarray | None,
    lengths: np.ndarray | None,
    positions: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """See `Backend.causal_conv`."""
    (b, t, _), taps = x.shape, weight.shape[1]
    read = np.concatenate([tail, x.astype(_wide(x))], 1)
    y = np.zeros(x.shape, _wide(x))
    for back in range(taps):
        part = read[:, taps - 1 - back :][:, :t] * weight[:, taps - 1 - back]
        y += part if positions is None else np.where((positions >= back)[:, :, None], part, 0)
    y = y if bias is None else y + bias
    ends = np.full(b, t) if lengths is None else lengths
    tail = np.stack([read[row, end : end + taps - 1] for row, end in enumerate(ends)])
    return y.astype(x.dtype), tail


def gated_delta(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    decay: np.ndarray,
    beta: np.ndarray,
    state: np.ndarray,
    fresh: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """See `Backend.gated_delta`."""
    each = v.shape[2] // k.shape[2]
    q, k = (np.repeat(part.astype(_wide(part)), each, 2) for part in (q, k))
    y = np.empty(v.shape, _wide(v))
    for i in range(v.shape[1]):
        kept = np.exp(decay[:, i])
        kept = kept if fresh is None else np.where(fresh[:, i, None], 0, kept)
        state = state * kept[:, :, None, None]
        known = np.einsum("bhvk,bhk->bhv", state, k[:, i])
        change = (v[:, i].astype(_wide(v)) - known) * beta[:, i, :, None]
        state = state + change[..., None] * k[:, i, :, None, :]
        y[:, i] = np.einsum("bhvk,bhk->bhv", state, q[:, i])
    return y.astype(v.dtype), state.astype(_wide(v))
