"""Triton's kernels where there is no GPU: in its interpreter."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

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


@pytest.fixture
def fake_cuda(triton_device: str) -> Iterator[None]:
    """A GPU that is not there, with Triton's kernels: shapes and dtypes without numbers, and no way from or to the
    host."""
    del triton_device
    from partita_apps.bench import gpu_steps
    from partita_backends.torch import cuda

    with gpu_steps.gpu_with(cuda):
        yield
