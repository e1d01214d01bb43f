"""Compiles every Triton kernel for a GPU of the compute capability given (80, 90), in a few shapes, or in many where
"many" follows, and prints what came out, as JSON.

The operations are called with tensors of the CPU; where they would launch a kernel, it is compiled and left at that.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from partita.backend import Rule, Sinks
from partita.quantization import quantize_weight
from partita_backends.torch import attention, triton_attention, triton_pointwise, triton_products, triton_write
from partita_backends.torch.weights import from_numpy

FOUND: list[dict[str, Any]] = []
ROUNDS = re.compile(r"add(?:\.rn)?\.f32\s+\S+,\s*\S+,\s*0fCB400000")


class NoGpu:
    """What compiling asks the driver for."""

    def __init__(self, capability: int):
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    kernel = run(self, *arguments, grid=grid, warmup=True, **options)
    code = kernel.asm["ptx"]
    FOUND.append(
        {
            "name": self.fn.__name__,
            "bytes": len(kernel.asm["cubin"]),
            "shared": kernel.metadata.shared,
            "sixteen": arguments[0] is not None and arguments[0].dtype.itemsize == 2,
            "mma": "mma" in code,
            "divisions": sorted(set(re.findall(r"\bdiv\.\S+", code)) - {"div.s32", "div.u32"}),
            "rounds": bool(ROUNDS.search(code)),
        }
    )
    return kernel


def attend(dtype: torch.dtype, key_bits: int, value_bits: int, d: int, tokens: int, rep: int) -> None:
    k, z = torch.zeros(1, 2, 128, d, dtype=dtype), torch.zeros(1, 128, dtype=torch.int32)
    keys, values = (k if bits >= 16 else attention.quantize(k, bits, 32) for bits in (key_bits, value_bits))
    q = torch.zeros(1, 2 * rep, tokens, d, dtype=dtype)
    mask = torch.zeros(1, tokens, 5)
    sinks, logits = Sinks(q, torch.stack([k, k])[:, :, :, :5], mask, mask, q[..., 0].float()), torch.zeros(2 * rep)
    options: dict[str, Any] = {"sinks": sinks, "softcap": 20.0, "sink_logits": logits}
    triton_attention.attend(q, keys, values, Rule(z[:, :tokens], z, 90, 5, z == 0), scale=0.1, **options)


def write(dtype: torch.dtype, key_bits: int, value_bits: int, d: int) -> None:
    k, z = torch.zeros(1, 2, 128, d, dtype=dtype), torch.zeros(1, 1, dtype=torch.int32)
    keys, values = (attention.quantize(k, bits, 32) if bits < 16 else k for bits in (key_bits, value_bits))
    x, angles = torch.zeros(1, 1, 4, d, dtype=dtype), torch.zeros(1, 1, d // 2)
    triton_write.rotate(x, angles, angles, 3)
    triton_write.rotate(x, angles, angles, 3, True)
    triton_write.store(keys, values, x, z)
    if d & (d - 1) == 0:
        triton_write.hadamard(x)


def pointwise(dtype: torch.dtype, n: int) -> None:
    x = torch.zeros(1, 1, 2 * n, dtype=dtype)
    triton_pointwise.rms_norm(x[..., :n], x[0, 0, :n], 1e-5)
    triton_pointwise.rms_norm_back(x[..., :n], x[..., n:], x[0, 0, :n], 1e-5)
    for activation in triton_pointwise.ACTIVATIONS:
        triton_pointwise.glu(x[..., :n], x[..., n:], activation)
        triton_pointwise.glu_back(x[..., :n], x[..., :n], x[..., n:], activation)


def multiply(dtype: torch.dtype, bits: int, group: int, rows: Sequence[int] = (1, 32, 256)) -> None:
    stack = quantize_weight(np.ones((2, 40, 1024), np.float32), bits, group).map(from_numpy)
    weight = stack.map(lambda part: part[0])
    for count in rows:
        triton_products.product(torch.zeros(count, 1024, dtype=dtype), weight)
        triton_products.product_back(torch.zeros(count, 40, dtype=dtype), weight)
    triton_products.rows(weight, torch.zeros(3, dtype=torch.int32), dtype)
    for tokens in (1, 40):
        index = torch.zeros(1, tokens, 4, dtype=torch.int32)
        triton_products.chosen(torch.zeros(1, tokens, 1, 1024, dtype=dtype), stack, index)


def few() -> None:
    """Every kernel, in 16 bits where it has matrix units to use, in 32 where it has to do without."""
    attend(torch.bfloat16, 8, 4, 64, 1, 3)
    attend(torch.bfloat16, 16, 16, 256, 8, 8)
    attend(torch.float32, 8, 4, 64, 1, 4)
    write(torch.bfloat16, 8, 4, 64)
    pointwise(torch.bfloat16, 576)
    multiply(torch.bfloat16, 4, 64)
    multiply(torch.float32, 4, 32, rows=(32,))


def many() -> None:
    for case in ((4, 8, 128, 8, 8), (16, 4, 96, 1, 4)):
        attend(torch.bfloat16, *case)
    write(torch.bfloat16, 4, 8, 96)
    write(torch.bfloat16, 8, 16, 128)
    pointwise(torch.bfloat16, triton_pointwise.WIDEST)
    for case in ((8, 32), (6, 16)):
        multiply(torch.bfloat16, *case)
    multiply(torch.float32, 4, 32)


def main() -> None:
    driver.set_active(NoGpu(int(sys.argv[1])))
    few()
    if sys.argv[2:] == ["many"]:
        many()
    print(json.dumps(FOUND))


if __name__ == "__main__":
    run = JITFunction.run
    JITFunction.run = compile_only
    main()
