"""Recurrent operations on torch: a short convolution, and the gated delta rule, token by token and in chunks.

In chunks (arXiv 2412.06464, section 3.3): a token of a chunk changes the state by what its key did not hold yet, which
depends on the changes of the tokens before it; that is one triangular system a chunk. Then a chunk costs a few products
whatever its length, and only the states between chunks follow each other. Plain operations throughout, so that each is
differentiated as any other. Not measured on CUDA.
"""

from __future__ import annotations

import torch
from torch.nn import functional

Tensor = torch.Tensor

FEW = 8  # tokens that are cheaper one after the other
CHUNK = 64  # tokens of a triangular system


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


def softplus(x: Tensor) -> Tensor:
    """See `Backend.softplus`."""
    return functional.softplus(x)


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `Backend.gated_delta`."""
    wide = (q.float(), k.float(), v.float(), decay, beta, state)
    y, state = (_by_token if v.shape[1] <= FEW else _in_chunks)(*wide, fresh)
    return y.to(v.dtype), state


def _by_token(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    each = v.shape[2] // k.shape[2]
    q, k = (part.repeat_interleave(each, 2) for part in (q, k))
    kept = decay.exp() if fresh is None else torch.where(fresh[:, :, None], 0.0, decay.exp())
    outputs: list[Tensor] = []
    for i in range(v.shape[1]):
        state = state * kept[:, i, :, None, None]
        known = (state @ k[:, i, :, :, None])[..., 0]
        change = (v[:, i] - known) * beta[:, i, :, None]
        state = torch.baddbmm(state.flatten(0, 1), change.flatten(0, 1)[..., None], k[:, i].flatten(0, 1)[:, None])
        state = state.view(*change.shape, -1)
        outputs.append((state @ q[:, i, :, :, None])[..., 0])
    return torch.stack(outputs, 1), state


def _in_chunks(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    t, size, groups = v.shape[1], v.shape[3], k.shape[2]
    q, k = (_chunks(part)[:, :, None] for part in (q, k))  # B Hk 1 N C Dk
    v, decay, beta = (_chunks(part).unflatten(1, (groups, -1)) for part in (v, decay, beta))  # B Hk G N C …
    order = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=v.device)
    seen, left = order.tril(), decay.cumsum(-1).exp()
    if fresh is not None:
        document = _chunks(fresh[:, :, None]).cumsum(-1)[:, :, None]  # B 1 1 N C
        seen = seen & (document[..., :, None] == document[..., None, :])
        left = torch.where(document == 0, left, 0.0)
    # What is left at i of what was written at j. Each sum by itself: a difference of sums from the chunk's first token
    # loses the digits of small decays behind a large one.
    between = torch.where(order.tril(-1), decay[..., None], 0.0).cumsum(-2)
    share = torch.where(seen, between, -torch.inf).exp()
    earlier = torch.where(order.tril(-1), share * (k @ k.mT) * beta[..., None], 0.0)
    read = beta[..., None] * torch.cat([v, k * left[..., None]], -1)
    eye = torch.eye(CHUNK, device=v.device)
    solved = torch.linalg.solve_triangular(eye + earlier, read, upper=False, unitriangular=True)
    new, known = solved[..., :size], solved[..., size:]
    q_left, within = q * left[..., None], share * (q @ k.mT)
    k_left, kept = k * share[..., -1, :, None], left[..., -1]
    state = state.unflatten(1, (groups, -1))
    outputs: list[Tensor] = []
    for i in range(v.shape[3]):
        change = new[:, :, :, i] - known[:, :, :, i] @ state.mT
        outputs.append(q_left[:, :, :, i] @ state.mT + within[:, :, :, i] @ change)
        state = state * kept[:, :, :, i, None, None] + change.mT @ k_left[:, :, :, i]
    y = torch.stack(outputs, 3).flatten(3, 4).flatten(1, 2)[:, :, :t]  # B Hv T Dv
    return y.transpose(1, 2), state.flatten(1, 2)


def _chunks(x: Tensor) -> Tensor:
    """(B, T, H, …) as (B, H, N, C, …), zeros behind the last token: they write nothing and forget nothing."""
    rest = -x.shape[1] % CHUNK
    x = functional.pad(x, (*([0] * 2 * (x.dim() - 2)), 0, rest))
    return x.transpose(1, 2).unflatten(2, (-1, CHUNK))
