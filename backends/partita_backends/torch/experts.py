"""Products with the matrices of experts: the rows of each expert brought together, one product for every one present.

An expert is an ordinary weight (`weights.py`), so it has the same kernels; it is a view of the stack, not a copy. On
GPUs a kernel finds each row's expert in the stack (`cuda.py`), so that the host reads no index; without triton, the few
rows of a decode step gather copies of their experts' weights instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from partita.brief import Brief
from partita.quantization import Packed

from . import graphs, weights
from .recorded import run

Tensor = torch.Tensor


@dataclass(frozen=True)
class Experts(Brief):
    """each: a matrix (out, in) of every expert, as `weights.product` takes them. stacked: all of them in one piece,
    (experts, out, in), of which those are slices, or None where nothing is gathered. factors: float32 (experts, out),
    what outputs of `stacked` are multiplied by; the matrices in `each` have them."""

    stacked: Tensor | Packed[Tensor] | None
    each: tuple[Any, ...]
    factors: Tensor | None = None


def prepare(weight: np.ndarray | Packed, device: torch.device, decode: torch.dtype) -> Experts:
    """Expert matrices (experts, out, in) on the device."""
    if isinstance(weight, Packed) and device.type == "cpu":
        slices = (weight.map(lambda part, e=e: part[e]) for e in range(weight.shape[0]))
        return Experts(None, tuple(weights.prepare(part, device, decode) for part in slices))
    return stack(weight, device, decode)


def stack(weight: np.ndarray | Packed, device: torch.device, decode: torch.dtype) -> Experts:
    """The same in one piece, from which `gathered` takes some."""
    plain = weights.without_codes(weight) if isinstance(weight, Packed) else weight
    if not isinstance(plain, Packed):
        stacked = weights.from_numpy(plain).to(device=device, dtype=decode)
        return Experts(stacked, stacked.unbind(0))
    kernels = weights.gpu_kernels() if device.type == "cuda" else None
    if kernels is not None and kernels.fits(plain):
        packed = plain.map(lambda part: weights.from_numpy(part).to(device))
        each = [kernels.Words(packed.map(lambda part, e=e: part[e])) for e in range(len(packed.weight))]
    else:
        packed = weights.widened(plain).map(lambda part: weights.from_numpy(part).to(device))
        parts = [packed.map(lambda part, e=e: part[e]) for e in range(packed.shape[0])]
        each = [weights.Quantized(part, plain.bits, decode) for part in parts]
    if not isinstance(weight, Packed) or weight.factors is None:
        return Experts(packed, tuple(each))
    factors = weights.from_numpy(weight.factors[..., 0]).to(device)
    return Experts(packed, tuple(weights.Factored(one, factors[e]) for e, one in enumerate(each)), factors)


def product(x: Tensor, experts: Experts, index: Tensor, decode: torch.dtype) -> Tensor:
    """See `Backend.moe_linear`; without the bias."""
    if x.is_cuda and experts.stacked is not None:
        kernels = weights.gpu_kernels()
        if kernels is not None and kernels.chooses(experts.stacked):
            return _times(kernels.chosen(x, experts.stacked, index, decode), experts, index)
        graphs.refuse("no kernel takes the groups of its experts' weights, of which a graph would hold dense copies")
        if index.numel() <= weights.KERNEL_ROWS:
            return gathered(x, experts, index, decode)
    y = x.new_empty(*index.shape, experts.each[0].shape[0])
    run(_fill, x, experts.each, index, decode, y)
    return y


def _fill(x: Tensor, each: Sequence[Any], index: Tensor, decode: torch.dtype, y: Tensor) -> None:
    y.copy_(grouped(x, each, index, lambda rows, expert: weights.product(rows, expert, decode)))


def grouped(x: Tensor, each: Sequence[Any], index: Tensor, multiply: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """The same with any product, multiply(rows, expert). Reads the index on the host."""
    flat = index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    rows = x.reshape(-1, x.shape[-1]).index_select(0, _source(x, index, order))
    counts = torch.bincount(flat, minlength=len(each)).tolist()
    products: list[Tensor] = []
    start = 0
    for expert, count in zip(each, counts, strict=True):
        if count:
            products.append(multiply(rows[start : start + count], expert))
            start += count
    y = torch.cat(products).index_select(0, torch.argsort(order))
    return y.view(*index.shape, -1)


def gathered(x: Tensor, experts: Experts, index: Tensor, decode: torch.dtype) -> Tensor:
    """The same with a copy of every chosen matrix: for few rows, without a look at the index on the host."""
    flat = index.reshape(-1)
    source = _source(x, index, torch.arange(len(flat), device=x.device))
    rows = x.reshape(-1, x.shape[-1]).index_select(0, source).to(decode)
    if isinstance(experts.stacked, Packed):
        chosen = weights.dequantize(experts.stacked.map(lambda part: part.index_select(0, flat)), decode)
    else:
        assert experts.stacked is not None  # only a CPU has none
        chosen = experts.stacked.index_select(0, flat)
    y = torch.bmm(chosen, rows[:, :, None])[:, :, 0]
    return _times(y.to(x.dtype).view(*index.shape, -1), experts, index)


def _times(y: Tensor, experts: Experts, index: Tensor) -> Tensor:
    """What `stacked` gave, times the factors of the experts that index names."""
    return y if experts.factors is None else (y * experts.factors[index]).to(y.dtype)


def _source(x: Tensor, index: Tensor, entries: Tensor) -> Tensor:
    """Rows of x (B, T, K or 1, in), flattened, that belong to entries of the flat index (B, T, K)."""
    return torch.div(entries, index.shape[2] // x.shape[2], rounding_mode="floor")
