"""Products with a packed weight of which some rows at a time are dense: for many rows of x, forward and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

Tensor = torch.Tensor

GPU_DENSE_AT_ONCE = 2**24
"""Numbers of a weight that are dense at once on a GPU: 32 MiB in 16 bits, enough rows to give all of it work."""


class InParts(ABC):
    """The products with many rows of `weights.PackedWeight`, for weights that say what their parts are."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @abstractmethod
    def parts(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some after the other, dense: where they stand, and the rows (n, in)."""
        ...

    def multiply(self, x: Tensor) -> Tensor:
        y = None
        for part, dense in self.parts(x.dtype):
            if len(dense) == self.shape[0]:
                return torch.nn.functional.linear(x, dense)
            y = x.new_empty(len(x), self.shape[0]) if y is None else y
            torch.mm(x, dense.t(), out=y[:, part])
        assert y is not None  # a weight has rows
        return y

    def multiply_packed(self, x: Tensor) -> Tensor:
        return self.multiply(x)

    def multiply_back(self, grad: Tensor) -> Tensor:
        x = None
        for part, dense in self.parts(grad.dtype):
            if len(dense) == self.shape[0]:
                return grad @ dense
            x = grad.new_zeros(len(grad), self.shape[1]) if x is None else x
            x.addmm_(grad[:, part], dense)
        assert x is not None
        return x


def slices(rows: int, columns: int, at_once: int) -> Iterator[slice]:
    """Of rows of a matrix, each of at most `at_once` numbers, or of one row."""
    step = max(at_once // columns, 1)
    for start in range(0, rows, step):
        yield slice(start, start + step)
