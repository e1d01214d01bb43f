"""Triton's kernels where there is no GPU: in its interpreter."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

REQUIRED = sys.platform == "linux" and platform.machine() == "x86_64"
"""Where triton belongs to the development tools: there, tests of its kernels fail without it."""


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Where kernels run: "cpu" in the interpreter, else "cuda"."""
    if not REQUIRED:
        pytest.importorskip("triton")
    if os.environ["TRITON_INTERPRET"] == "0":
        return "cuda"
    _repair_bfloat16()
    return "cpu"


def _repair_bfloat16() -> None:
    """The interpreter holds the bits of bfloat16 as integers: it would multiply those, and where it rounds to them, it
    truncates, or loses a carry."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert, multiply = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_float(x, source, target, mode):
        if tl.bfloat16 not in (source, target) or source == target:
            return convert(x, source, target, mode)
        held = {tl.bfloat16: ml_dtypes.bfloat16, tl.float16: np.float16, tl.float32: np.float32}
        bits = getattr(np, f"uint{target.primitive_bitwidth}")
        return np.ascontiguousarray(x).view(held[source]).astype(held[target]).view(bits)

    def widened(x):
        if x.dtype != tl.bfloat16:
            return x
        return interpreter.TensorHandle(convert_float(x.data, x.dtype, tl.float32, None).view(np.float32), tl.float32)

    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: multiply(self, widened(a), widened(b), *rest)


class Operations(TorchFunctionMode):
    """x[...] with integers, slices, None and an ellipsis, read or written, and copies into a tensor, by operations:
    Python's way to them asks the device for more than a fake one has."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__getitem__:
            return _part(*args)
        if function is torch.Tensor.__setitem__:
            return torch.ops.aten.copy_.default(_part(*args[:2]), args[2])
        return (torch.ops.aten.copy_.default if function is torch.Tensor.copy_ else function)(*args, **(kwargs or {}))


def _part(x: torch.Tensor, wanted: Any) -> torch.Tensor:
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


@pytest.fixture
def fake_cuda() -> Iterator[None]:
    """Tensors on a GPU that is not there: shapes and dtypes without numbers, and no way from or to the host."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), Operations(), torch.no_grad():
        yield
