"""What torch does as any array library: arrays in and out, shapes, reductions, numbers one by one.

Not here: what a model needs besides (`partita_backends.torch`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from partita.backend import Memory

from .. import process_memory
from . import gpu, recurrent, training, weights

Tensor = torch.Tensor


class TorchArrays:
    """A part of `TorchBackend`; see `partita.backend.Backend`."""

    device: str
    _device: torch.device
    _reader: gpu.Reader

    # Host boundary
    def array(self, x: np.ndarray, dtype: str | None = None) -> Tensor:
        tensor = weights.from_numpy(x)
        return tensor.to(device=self._device, dtype=_dtype(dtype) if dtype else None)

    def to_numpy(self, x: Tensor) -> np.ndarray:
        x = x.detach().cpu()
        return x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()

    def zeros(self, shape: Sequence[int], dtype: str) -> Tensor:
        return torch.zeros(tuple(shape), dtype=_dtype(dtype), device=self._device)

    def full(self, shape: Sequence[int], value: int | float, dtype: str) -> Tensor:
        return torch.full(tuple(shape), value, dtype=_dtype(dtype), device=self._device)

    def launch(self, *arrays: Tensor) -> None:
        pass  # torch starts work when an operation is called

    def fetch(self, x: Tensor) -> Callable[[], np.ndarray]:
        if self.device == "cpu":
            return lambda: self.to_numpy(x)
        return self._reader.fetch(x)

    def sync(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def memory(self) -> Memory:
        if self.device == "cpu":
            return process_memory.read()
        free, total = torch.cuda.mem_get_info()
        return Memory(total, free, torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())

    def reset_peak(self) -> None:
        if self.device == "cpu":
            process_memory.reset_peak()
        else:
            torch.cuda.reset_peak_memory_stats()

    # Shape
    def cast(self, x: Tensor, dtype: str) -> Tensor:
        return x.to(_dtype(dtype))

    def concat(self, arrays: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(arrays), axis)

    def take(self, x: Tensor, index: Tensor, axis: int) -> Tensor:
        axis = axis % x.ndim
        taken = x.index_select(axis, index.reshape(-1))
        return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])

    def copy(self, x: Tensor) -> Tensor:
        return x.clone()

    def assign(self, buffer: Tensor, x: Tensor) -> Tensor:
        return buffer.copy_(x)

    def place(self, buffer: Tensor, x: Tensor, start: Sequence[int]) -> Tensor:
        buffer[tuple(slice(at, at + size) for at, size in zip(start, x.shape, strict=True))].copy_(x)
        return buffer

    def where(self, condition: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
        return torch.where(condition, x, y)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
        return x.split(list(sizes), axis)

    # Reduce, sample, numbers one by one
    def sum(self, x: Tensor, axis: int) -> Tensor:
        return x.sum(axis)

    def max(self, x: Tensor, axis: int) -> Tensor:
        return x.amax(axis)

    def argmax(self, x: Tensor, axis: int) -> Tensor:
        return x.argmax(axis).to(torch.int32)

    def topk(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, index = x.topk(k, -1)
        return values, index.to(torch.int32)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        return x.softmax(axis)

    def logsumexp(self, x: Tensor, axis: int) -> Tensor:
        return x.logsumexp(axis)

    def cumsum(self, x: Tensor, axis: int) -> Tensor:
        return x.cumsum(axis)

    def exp(self, x: Tensor) -> Tensor:
        return x.exp()

    def log(self, x: Tensor) -> Tensor:
        return x.log()

    def tanh(self, x: Tensor) -> Tensor:
        return x.tanh()

    def sigmoid(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def softplus(self, x: Tensor) -> Tensor:
        return recurrent.softplus(x)

    def scatter_add(self, x: Tensor, index: Tensor, value: float) -> Tensor:
        added = torch.full(index.shape, value, dtype=x.dtype, device=x.device)
        return x.scatter_add(-1, index.to(torch.int64), added)

    def pick(self, x: Tensor, index: Tensor) -> Tensor:
        return x.gather(-1, index.to(torch.int64)[:, None])[:, 0]

    # Training
    def unflatten(self, flat: Tensor, shapes: Sequence[tuple[int, ...]], dtype: str) -> Sequence[Tensor]:
        return training.unflatten(flat, shapes, _dtype(dtype))

    def stop_gradient(self, x: Tensor) -> Tensor:
        return x.detach()


def _dtype(name: str) -> torch.dtype:
    # torch has few operations for unsigned words; packed words are the same bits either way
    return torch.int32 if name == "uint32" else getattr(torch, name)
