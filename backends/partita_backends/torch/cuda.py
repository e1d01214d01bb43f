"""What the Triton kernels do for torch on a GPU: packed weights and stacks of experts that stay as they are stored;
norms, gates, rotations, writes into a cache, and the attention of a few queries to it.

Importing this imports triton: `weights.gpu_kernels` does, where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from partita.brief import Brief
from partita.quantization import Packed

from . import triton_attention, triton_pointwise, triton_write
from . import triton_products as products
from .dense_parts import GPU_DENSE_AT_ONCE, InParts, slices

Tensor = torch.Tensor

FEW_ROWS = 32  # up to here a product waits for the weight to be read, and reads it packed
FEW_QUERIES = 8  # of a row: a step, or a draft; for a prompt there are products of whole tiles
fits = products.fits
normalizes = triton_pointwise.normalizes
rms_norm = triton_pointwise.rms_norm
rms_norm_back = triton_pointwise.rms_norm_back
glu = triton_pointwise.glu
glu_back = triton_pointwise.glu_back
rotate = triton_write.rotate
hadamard = triton_write.hadamard
store = triton_write.store
attend = triton_attention.attend


@dataclass(frozen=True)
class Words(Brief, InParts):
    """See `weights.PackedWeight`. packed: as stored, the only copy of the weight."""

    packed: Packed[Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape

    def product(self, x: Tensor, decode: torch.dtype) -> Tensor | None:
        return products.product(x.to(decode), self.packed) if len(x) <= FEW_ROWS else None

    def multiply_packed(self, x: Tensor) -> Tensor:
        return products.product(x, self.packed)

    def multiply_back(self, grad: Tensor) -> Tensor:
        return products.product_back(grad, self.packed)

    def rows(self, index: Tensor) -> Tensor:
        return products.rows(self.packed, index, torch.float32)

    def parts(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        rows, columns = self.shape
        for part in slices(rows, columns, GPU_DENSE_AT_ONCE):
            yield part, products.rows(self.packed.map(lambda x, part=part: x[part]), None, dtype)


def chooses(stacked: Tensor | Packed[Tensor]) -> bool:
    """Whether `chosen` takes a stack of experts."""
    return fits(stacked) if isinstance(stacked, Packed) else stacked.is_contiguous()


def chosen(x: Tensor, stacked: Tensor | Packed[Tensor], index: Tensor, decode: torch.dtype) -> Tensor:
    """As `Backend.moe_linear`, without the bias, computed in `decode`."""
    return products.chosen(x.to(decode), stacked, index).to(x.dtype)


def attends(q: Tensor) -> bool:
    """Whether `attend` takes such queries."""
    return q.shape[2] <= FEW_QUERIES and q.shape[3] <= triton_attention.LARGEST


def check() -> None:
    """Compile a kernel and run it, so that what is missing (a C compiler, a GPU that triton knows) shows now. Raises
    what triton raises."""
    words, scales = torch.zeros(1, 8, dtype=torch.int32, device="cuda"), torch.zeros(1, 1, device="cuda")
    products.rows(Packed(words, scales, scales, 8, 32), None, torch.float32)
