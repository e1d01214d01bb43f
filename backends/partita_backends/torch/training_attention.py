"""Causal attention over whole sequences on torch, differentiable, without scores kept for the backward pass.

torch's fused attention where it can say what is asked; soft caps and sink logits tile by tile otherwise, each tile
computed again when its gradient is wanted. Not here: the cache (`attention.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from partita.backend import MASKED

Tensor = torch.Tensor

TILE = 2**21  # scores that are alive at once in a tile: 8 MiB in float32


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Tensor:
    """See `Backend.attention`."""
    if softcap is None and sink_logits is None:
        return _fused(q, k, v, mask, scale)
    b, heads, t, _ = q.shape
    kv_heads = k.shape[1]
    rep = heads // kv_heads
    if mask is None:
        mask = torch.full((1, t, t), MASKED, device=q.device).triu_(1)
    rows = max(TILE // (b * rep * t), 1)
    groups = []
    for h in range(kv_heads):
        group = slice(h * rep, (h + 1) * rep)
        logits = [] if sink_logits is None else [sink_logits[group]]
        tiles = []
        for start in range(0, t, rows):
            part, seen = slice(start, start + rows), slice(0, min(start + rows, t))  # later keys are hidden
            tile = _Tile(mask[:, part, seen], scale, softcap)
            tiles.append(_Recomputed.apply(tile, q[:, group, part], k[:, h, seen], v[:, h, seen], *logits))
        groups.append(torch.cat(tiles, 2))
    return torch.cat(groups, 1)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if q.is_cuda and grouped and mask is not None:  # CUDA's kernels that take a mask have no grouped heads
        rep = q.shape[1] // k.shape[1]
        k, v, grouped = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1), False
    if mask is None:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    mask = mask[:, None].clamp(min=torch.finfo(q.dtype).min).to(q.dtype) if q.dtype != mask.dtype else mask[:, None]
    if not q.is_cuda and q.shape[-1] == v.shape[-1]:
        # the kernel that the public function would call, which there may not be told to skip what the mask hides:
        # 0.6 times the work at 2,048 tokens
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(q, k, v, 0.0, True, attn_mask=mask, scale=scale)[0]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


class _Tile:
    """Attention of the heads that read one head of keys: q (B, rep, t, D), k and v (B, S, D), mask (B, t, S)."""

    def __init__(self, mask: Tensor, scale: float, softcap: float | None):
        self.mask, self.scale, self.softcap = mask, scale, softcap

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None = None) -> Tensor:
        b, rep, t, d = q.shape
        s = ((q * self.scale).reshape(b, rep * t, d) @ k.transpose(1, 2)).float().view(b, rep, t, -1)
        if self.softcap is not None:
            s = self.softcap * torch.tanh(s / self.softcap)
        s = s + self.mask[:, None]
        out = (s.softmax(-1).to(q.dtype).view(b, rep * t, -1) @ v).view(b, rep, t, -1)
        if logits is None:
            return out
        share = torch.sigmoid(s.logsumexp(-1, keepdim=True) - logits.float().view(rep, 1, 1))
        return (out * share).to(q.dtype)


class _Recomputed(Function):
    """A function of tensors that keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Any:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        needs = ctx.needs_input_grad[1:]
        inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needs, strict=True)]
        with torch.enable_grad():
            out = ctx.function(*inputs)
        found = iter(torch.autograd.grad(out, [x for x in inputs if x.requires_grad], grads[0]))
        return None, *(next(found) if need else None for need in needs)
