"""Recurrent operations on torch: a short convolution, and the gated delta rule."""

from __future__ import annotations

import torch
from torch.nn import functional

Tensor = torch.Tensor


def causal_conv(
    x: Tensor,
    weight: Tensor,
    tail: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `Backend.causal_conv`."""
    t, taps = x.shape[1], weight.shape[1]
    read = torch.cat([tail, x.float()], 1)
    y = read[:, taps - 1 :] * weight[:, -1]
    for back in range(1, taps):
        part = read[:, taps - 1 - back :][:, :t] * weight[:, taps - 1 - back]
        y = y + (part if positions is None else torch.where((positions >= back)[:, :, None], part, 0.0))
    y = y if bias is None else y + bias
    if lengths is None:
        tail = read[:, t:]
    else:
        index = lengths[:, None] + torch.arange(taps - 1, device=x.device)
        tail = torch.take_along_dim(read, index[:, :, None].long(), 1)
    return y.to(x.dtype), tail


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `Backend.gated_delta`."""
    each = v.shape[2] // k.shape[2]
    q, k = (part.float().repeat_interleave(each, 2) for part in (q, k))
    outputs: list[Tensor] = []
    for i in range(v.shape[1]):
        kept = decay[:, i].exp()
        kept = kept if fresh is None else torch.where(fresh[:, i, None], 0.0, kept)
        state = state * kept[:, :, None, None]
        known = (state @ k[:, i, :, :, None])[..., 0]
        change = (v[:, i].float() - known) * beta[:, i, :, None]
        state = state + change[..., None] * k[:, i, :, None]
        outputs.append((state @ q[:, i, :, :, None])[..., 0])
    return torch.stack(outputs, 1).to(v.dtype), state


def softplus(x: Tensor) -> Tensor:
    """See `Backend.softplus`."""
    return functional.softplus(x)
