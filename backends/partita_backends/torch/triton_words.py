"""Pieces of Triton kernels: packed integers and their scales taken apart in registers.

A kernel is Python that Triton compiles for the GPU when it is first launched; with TRITON_INTERPRET=1, set before
triton is imported, it runs in numpy instead, which is how it is tested without a GPU. Sizes of tiles are powers of two;
what lies beyond a size is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from partita.quantization import Packed

Tensor = torch.Tensor
Side = Tensor | Packed[Tensor]
"""The keys, or the values, of one layer's ring (B, H, C, D)."""

kernel: Callable[..., Any] = triton.jit
"""Makes a kernel of a function, or a piece of one: kernel[programs along up to three axes](arguments)."""


@kernel
def on_grid(words, scales, biases, ROWS: tl.constexpr, COUNT: tl.constexpr, BITS: tl.constexpr):
    """q * scale + bias for the integers q of int32 words (ROWS, COUNT), of 2, 4 or 8 bits: float32 (ROWS, COUNT * 32 /
    BITS). scales, biases: a pair for each word; stretched over integers, they would be loaded again for each."""
    shifts = tl.arange(0, 32 // BITS) * BITS
    integers = (words[:, :, None] >> shifts[None, None, :]) & (2**BITS - 1)
    values = integers.to(tl.float32) * scales.to(tl.float32)[:, :, None] + biases.to(tl.float32)[:, :, None]
    return tl.reshape(values, (ROWS, COUNT * (32 // BITS)))


def parts(side: Side) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """What kernels take: words, scales, biases and bits; of a dense side its numbers, nothing, and 16 for any width.

    ValueError: not contiguous."""
    found = (side.weight, *side.grid, side.bits) if isinstance(side, Packed) else (side, None, None, 16)
    if not all(part.is_contiguous() for part in found[:3] if part is not None):
        raise ValueError("kernels take contiguous buffers of a cache")
    return found


def rows_together(x: Tensor) -> Tensor:
    """x, a copy unless the numbers of its last dimension lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()


def group_size(*sides: Side) -> int:
    """Numbers a group of the sides that are packed, the same in all of them; 32 where none is."""
    return next((side.group_size for side in sides if isinstance(side, Packed)), 32)
