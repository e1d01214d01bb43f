"""torch on CUDA, on ROCm and on the CPU.

On a CPU "auto" computes in float32, except that products of a few rows (decoding) round the rows to 8 bits where the
weight is packed (`cpu`), and run in bfloat16 where it is not; `--dtype float32` computes everything in float32. CUDA
runs the same code in bfloat16, and so does ROCm, which torch calls "cuda" too; this is written from the documentation
and has not been measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch

from partita import quantization, rings
from partita.backend import Rule, Sinks
from partita.quantization import Packed, Stored

from . import (
    attention,
    experts,
    gpu,
    gpu_training,
    graphs,
    pointwise,
    recorded,
    recurrent,
    training,
    training_attention,
    weights,
)
from .arrays import Tensor, TorchArrays


class TorchBackend(TorchArrays):
    """See `partita.backend.Backend`."""

    name = "torch"
    smallest_group = 16
    modes: tuple[str, ...] = ()

    def __init__(self, device: str | None = None, dtype: str = "auto", threads: int | None = None):
        if device is None:
            device = gpu.name() if torch.cuda.is_available() else "cpu"
        self._given = threads or _threads_of_environment()
        torch.set_num_threads(self._given or default_threads())
        if device != "cpu":
            gpu.open_device(device)
        self.device = device
        default = "float32" if device == "cpu" else "bfloat16"
        self.dtype = default if dtype == "auto" else dtype
        self.decode_dtype = "bfloat16" if dtype == "auto" else dtype
        self.asynchronous = device != "cpu"
        self._device = torch.device("cpu" if device == "cpu" else "cuda")
        self._float = getattr(torch, self.dtype)
        self._decode = getattr(torch, self.decode_dtype)
        self._kernels = weights.cpu_kernels() if device == "cpu" else None
        self._hadamard: dict[int, Tensor] = {}
        self._reader = gpu.Reader()

    @property
    def exact(self) -> TorchBackend:
        return _Exact(self)

    @property
    def rough(self) -> TorchBackend:
        if self.device != "cpu":
            return self
        return _Rough(self) if _has_bfloat16_products() else self if self._kernels is None else _Narrow(self)

    @property
    def compiles(self) -> bool:
        return self._kernels is not None or self.captures  # without them products choose their form by calls

    @property
    def captures(self) -> bool:
        return self._gpu is not None

    @property
    def _gpu(self) -> Any:
        """The module `cuda`, or None on a CPU and where triton does not work."""
        return None if self.device == "cpu" else weights.gpu_kernels()

    def write(self, buffer: Tensor, x: Tensor, index: Tensor, head: int = 0) -> Tensor:
        own = buffer[:, head : head + x.shape[1]]
        if self._kernels is not None and self._kernels.writes(own, x):
            self._kernels.write(own, x, index)
            return buffer
        x, index = x.to(buffer.dtype), index.to(torch.int64)
        if buffer.shape[0] == 1:
            own.index_copy_(2, index[0], x)
        else:
            own.scatter_(2, index[:, None, :, None].expand(x.shape), x)
        return buffer

    # Model
    def prepare(self, weight: np.ndarray | Packed | Stored) -> Any:
        if isinstance(weight, Stored):
            if self._kernels is not None and (blocked := self._kernels.stored(weight)) is not None:
                return blocked
            weight = weight.repacked(self.smallest_group)
        if isinstance(weight, Packed):
            return weights.prepare(weight, self._device, self._decode)
        return weights.from_numpy(weight).to(device=self._device, dtype=self._decode)

    def prepare_experts(self, weight: np.ndarray | Packed) -> experts.Experts:
        return experts.prepare(weight, self._device, self._decode)

    def prepare_vector(self, x: np.ndarray) -> Tensor:
        return weights.from_numpy(x).to(device=self._device, dtype=self._float)

    def embed(self, weight: Any, tokens: Tensor) -> Tensor:
        return weights.rows(weight, tokens).to(self._float)

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        return _plus(weights.product(x, weight, self._decode), bias)

    def adapted_linear(self, x: Tensor, weight: Any, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return self.linear(x, weight) + self.linear(self.linear(x, a) * scale, b)

    def moe_linear(self, x: Tensor, weight: Any, index: Tensor, bias: Tensor | None = None) -> Tensor:
        y = experts.product(x, weight, index, self._decode)
        return _plus(y, None if bias is None else bias[index])

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if self._kernels is not None and self._kernels.takes(x, x.numel() // x.shape[-1]):
            return self._kernels.rms_norm(x, weight, eps)
        if self._gpu is not None and self._gpu.normalizes(x):
            return self._gpu.rms_norm(x, weight, eps)
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)

    def turns(self, cos: Tensor, sin: Tensor, heads: int, plain: int, *, packs: bool = False) -> pointwise.Turns:
        return cos, sin, heads

    def rotate(self, x: Tensor, turns: pointwise.Turns) -> Tensor:
        return pointwise.rotate(x, *turns) if self._gpu is None else self._gpu.rotate(x, *turns)

    def glu(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        if self._kernels is not None and self._kernels.gates(gate):
            return self._kernels.glu(gate, up, activation)
        if self._gpu is not None:
            return self._gpu.glu(gate, up, activation)
        if activation == "silu":
            return torch.nn.functional.silu(gate) * up
        if activation == "swiglu_clamped":
            gate, up = gate.clamp(max=7), up.clamp(-7, 7)
            return gate * torch.sigmoid(1.702 * gate) * (up + 1)
        return torch.nn.functional.gelu(gate, approximate="tanh") * up

    def cached_attention(
        self,
        q: Tensor,
        k: Tensor | Packed[Tensor],
        v: Tensor | Packed[Tensor],
        mask: Tensor,
        *,
        scale: float,
        sinks: Sinks[Tensor] | None,
        softcap: float | None,
        sink_logits: Tensor | None = None,
        rule: Rule[Tensor] | None = None,
    ) -> Tensor:
        return attention.cached(
            q,
            k,
            v,
            mask,
            scale=scale,
            sinks=sinks,
            softcap=softcap,
            sink_logits=sink_logits,
            rule=rule,
            decode=self._decode,
            gpu=self._gpu,
        )

    # Quantized keys and values
    def quantize(self, x: Tensor, bits: int, group_size: int) -> Packed[Tensor]:
        return attention.quantize(x, bits, group_size)

    def store(self, kv: Any, x: Tensor, index: Tensor) -> Any:
        if self._gpu is not None:
            self._gpu.store(*rings.sides(kv), x, index)
            return kv
        for side, new in zip(rings.sides(kv), x.chunk(2, 2), strict=True):
            self._store(side, new.transpose(1, 2), index)
        return kv

    def _store(self, side: Tensor | Packed[Tensor], x: Tensor, index: Tensor) -> None:
        """Keys or values x (B, H, T, D), in place."""
        if isinstance(side, Tensor):
            self.write(side, x, index)
        elif self._kernels is not None and self._kernels.writes(side, x):
            self._kernels.write(side, x, index)
        else:
            new = self.quantize(x, side.bits, side.group_size)
            quantization.joined([side, new], lambda pair: self.write(pair[0], pair[1], index))

    def put_keys(self, kv: Tensor, k: Tensor) -> Tensor:
        kv[0, :, :, : k.shape[2]] = k
        return kv

    def dequantize(self, packed: Packed[Tensor]) -> Tensor:
        return weights.dequantize(packed, torch.float32)

    def hadamard(self, x: Tensor) -> Tensor:
        if self._gpu is not None:
            return self._gpu.hadamard(x)
        size = x.shape[-1]
        if size not in self._hadamard:
            self._hadamard[size] = self.array(quantization.hadamard_matrix(size))
        return (x.float() @ self._hadamard[size]).to(x.dtype)

    # Recurrent layers
    def causal_conv(
        self,
        x: Tensor,
        weight: Tensor,
        tail: Tensor,
        *,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return recurrent.causal_conv(x, weight, tail, bias, lengths, positions)

    def gated_delta(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        decay: Tensor,
        beta: Tensor,
        state: Tensor,
        *,
        fresh: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self._kernels is not None and fresh is None and v.shape[1] <= recurrent.FEW:
            return self._kernels.gated_delta(q, k, v, decay, beta, state)
        return recurrent.gated_delta(q, k, v, decay, beta, state, fresh)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compiles:
            return function
        return recorded.recorded(function) if self.device == "cpu" else graphs.captured(function)

    # Training
    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: Tensor | None = None,
    ) -> Tensor:
        return training_attention.attention(q, k, v, mask, scale=scale, softcap=softcap, sink_logits=sink_logits)

    def value(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        return training.value(partial(loss, TorchTraining(self)))

    def value_and_grad(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        return training.value_and_grad(partial(loss, TorchTraining(self)))

    def checkpoint(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return training.checkpoint(function)

    def chunked_sum(self, function: Callable[..., Tensor], rows: int) -> Callable[..., Tensor]:
        return training.chunked_sum(function, rows)

    def elementwise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return pointwise.cross_entropy(logits, targets)


class _Exact(TorchBackend):
    """What computes with packed weights as in a prompt, whatever the number of rows."""

    def __init__(self, ops: TorchBackend):
        vars(self).update(vars(ops))

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Tensor):
            return super().linear(x, weight, bias)
        return _plus(weights.multiply(x, weight), bias)


class _Rough(TorchBackend):
    """What computes in bfloat16 throughout."""

    def __init__(self, ops: TorchBackend):
        vars(self).update(vars(ops))
        self.dtype = self.decode_dtype = "bfloat16"
        self._float = self._decode = torch.bfloat16


class _Narrow(TorchBackend):
    """What leaves dense weights in the 16 bits of a file: they are made float32 in the processor's cache, where they
    are multiplied, by every core. The numbers are those of one thread's products in float32."""

    def __init__(self, ops: TorchBackend):
        vars(self).update(vars(ops))
        self._threads = self._given or every_core()
        self._pool = ThreadPoolExecutor(self._threads)  # its threads end with the last reference to it

    def prepare(self, weight: np.ndarray | Packed | Stored) -> Any:
        return weights.from_numpy(weight) if isinstance(weight, np.ndarray) else super().prepare(weight)

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        if self._kernels is not None and isinstance(weight, Tensor) and self._kernels.widens(x, weight):
            return _plus(self._kernels.multiply_wide(x, weight, self._pool, self._threads), bias)
        return super().linear(x, weight, bias)


def _has_bfloat16_products() -> bool:
    """Whether this CPU has instructions for them that torch may use; without, they are slower than float32."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


class TorchTraining(TorchBackend):
    """What a loss computes with: no shortcut that costs precision or memory, and forms that can be differentiated.

    It shares the device and all constants of the backend it is made from, which goes on decoding in its own way.
    """

    def __init__(self, ops: TorchBackend):
        vars(self).update(vars(ops))  # the device is open and the number of threads is set

    def embed(self, weight: Any, tokens: Tensor) -> Tensor:
        return training.embed(weight, tokens).to(self._float)

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        return _plus(training.linear(x, weight), bias)

    def adapted_linear(self, x: Tensor, weight: Any, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return training.adapted_linear(x, weight, a, b, scale)

    def moe_linear(self, x: Tensor, weight: Any, index: Tensor, bias: Tensor | None = None) -> Tensor:
        return _plus(training.moe_linear(x, weight, index), None if bias is None else bias[index])

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if self._gpu is not None and self._gpu.normalizes(x):
            return gpu_training.rms_norm(x, weight, eps)
        return pointwise.rms_norm(x, weight, eps)

    def gated_delta(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        decay: Tensor,
        beta: Tensor,
        state: Tensor,
        *,
        fresh: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return recurrent.gated_delta(q, k, v, decay, beta, state, fresh)

    def rotate(self, x: Tensor, turns: pointwise.Turns) -> Tensor:
        return (pointwise if self._gpu is None else gpu_training).Rotation.apply(x, *turns)

    def glu(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        return (pointwise if self._gpu is None else gpu_training).glu(gate, up, activation)


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype)


def default_threads() -> int:
    """All cores but one.

    Every product waits for its slowest thread. Where a core is busy with something else, that is a time slice of the
    system's scheduler hundreds of times a token: measured, 45 ms a token became more than a second.
    """
    return max(1, (psutil.cpu_count(logical=False) or 2) - 1)


def every_core() -> int:
    """Those that this process may use, which a container can make fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _threads_of_environment() -> int | None:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) or None if given.isdecimal() else None
