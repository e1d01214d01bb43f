"""Operations of a decode step on a GPU, followed on tensors without numbers: the same on every machine, without a GPU.

Tensors have shapes, dtypes and a device, and no memory behind them. What computes something counts, an operation of our
own or `scaled_dot_product_attention` as one, however many kernels it launches; views, and memory that nothing has been
written to, do not.

The source of this module is also what transformers' program begins with, so it imports nothing of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Tensor = torch.Tensor

NOTHING = ("aten::empty", "aten::new_empty")
"""Beginnings of the names of what gives memory alone."""
ROWS = ("aten::embedding", "aten::gather", "aten::index", "partita::packed_rows")
"""Of what reads as many numbers of its inputs as it gives."""


@dataclass(frozen=True)
class Call:
    """One operation. given: tensors read or written, or both. read: bytes of those that it does not write."""

    name: str
    given: list[Tensor]
    results: list[Tensor]
    read: int


@contextmanager
def without_numbers() -> Iterator[None]:
    """Tensors on a GPU that is not there, and no way from or to the host."""
    with FakeTensorMode(), _Operations(), torch.no_grad():
        yield


class Followed(TorchDispatchMode):
    """Operations that compute something, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given, results = tensors((args, kwargs)), tensors(found)
        view = not function._schema.is_mutable and {memory(x) for x in results} <= {memory(x) for x in given}
        if not view and not function.name().startswith(NOTHING):
            self.calls.append(Call(function.name(), given, results, _read(function, given, args, results)))
        return found

    def summary(self) -> dict[str, Any]:
        """As JSON: operations by name, and bytes that they read in all."""
        names = Counter(call.name for call in self.calls)
        return {"operations": dict(names), "read": sum(call.read for call in self.calls)}


def _read(function: Any, given: list[Tensor], args: Any, results: list[Tensor]) -> int:
    if function.name().split(".")[0] in ROWS:
        return sum(x.nbytes for x in results)
    declared = zip(function._schema.arguments, args, strict=False)
    written = {id(x) for argument, value in declared if _writes(argument) for x in tensors(value)}
    return sum(x.nbytes for x in {id(x): x for x in given}.values() if id(x) not in written)


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def memory(x: Tensor) -> int:
    """Equal for tensors of one piece of memory."""
    return x.untyped_storage()._cdata


def tensors(x: Any) -> list[Tensor]:
    """All in it, of containers too."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, dict):
        x = tuple(x.values())
    return [found for each in x for found in tensors(each)] if isinstance(x, (list, tuple)) else []


class _Operations(TorchFunctionMode):
    """Parts of tensors by integers, slices, None and an ellipsis, read or written, and copies, by operations: Python's
    way to them asks the device for more than one has that is not there. Attention stays whole."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.__getitem__:
            return _part(*args)
        if function is Tensor.__setitem__:
            return torch.ops.aten.copy_.default(_part(*args[:2]), args[2])
        if function is Tensor.contiguous:
            return _contiguous(*args)
        if function is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return (torch.ops.aten.copy_.default if function is Tensor.copy_ else function)(*args, **(kwargs or {}))


def _contiguous(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else torch.ops.aten.clone.default(x, memory_format=torch.contiguous_format)


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """One operation: the one that takes a mask on a GPU."""
    return torch.ops.aten._scaled_dot_product_efficient_attention.default(q, k, v, attn_mask, False)[0]


def differentiable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """In the place of `scaled_dot_product_attention`: what a GPU takes for causal attention in 16 bits, one operation
    forward and one back."""
    del attn_mask, enable_gqa
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]


def _part(x: Tensor, wanted: Any) -> Tensor:
    """x[wanted], a view."""
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    if ... not in wanted:
        wanted = (*wanted, ...)
    middle, dim = wanted.index(...), 0
    rest = x.ndim - sum(part is not None for part in wanted) + 1
    for part in (*wanted[:middle], *[slice(None)] * rest, *wanted[middle + 1 :]):
        if part is None:
            x = x.unsqueeze(dim)
        elif isinstance(part, slice):
            x = torch.ops.aten.slice.Tensor(x, dim, part.start, part.stop, part.step or 1)
        else:
            x = x.select(dim, part)
            dim -= 1
        dim += 1
    return x
