"""What MLX does as any array library: arrays in and out, shapes, reductions, numbers one by one.

Not here: what a model needs besides (`mlx`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import mlx.core as mx
import numpy as np

from partita.backend import Memory

from . import mlx_training, process_memory

Array = mx.array

SUM_BLOCK = 256


class MlxArrays:
    """A part of `mlx.MlxBackend`; see `partita.backend.Backend`."""

    device: str

    # Host boundary
    def array(self, x: np.ndarray, dtype: str | None = None) -> Array:
        if x.dtype == ml_dtypes.bfloat16:
            x_mx = mx.array(np.ascontiguousarray(x).view(np.uint16)).view(mx.bfloat16)
        else:
            x_mx = mx.array(x)
        return x_mx.astype(getattr(mx, dtype)) if dtype else x_mx

    def to_numpy(self, x: Array) -> np.ndarray:
        return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        return mx.zeros(tuple(shape), _dtype(dtype))

    def full(self, shape: Sequence[int], value: int | float, dtype: str) -> Array:
        return mx.full(tuple(shape), value, _dtype(dtype))

    def launch(self, *arrays: Array) -> None:
        mx.async_eval(*arrays)

    def fetch(self, x: Array) -> Callable[[], np.ndarray]:
        mx.async_eval(x)
        return lambda: self.to_numpy(x)

    def sync(self) -> None:
        mx.synchronize()

    def memory(self) -> Memory:
        machine = process_memory.read()
        if self.device == "cpu":
            return machine
        limit = int(mx.device_info()["max_recommended_working_set_size"])
        active = mx.get_active_memory()
        return Memory(limit, min(machine.free, limit - active), active, mx.get_peak_memory())

    def reset_peak(self) -> None:
        if self.device == "cpu":
            process_memory.reset_peak()
        else:
            mx.reset_peak_memory()

    # Shape
    def cast(self, x: Array, dtype: str) -> Array:
        return x.astype(_dtype(dtype))

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return mx.concatenate(list(arrays), axis)

    def take(self, x: Array, index: Array, axis: int) -> Array:
        return mx.take(x, index, axis)

    def copy(self, x: Array) -> Array:
        own = mx.contiguous(x)  # a part of a larger buffer would keep the whole buffer; `write` changes nobody's arrays
        mx.async_eval(own)
        return own

    def assign(self, buffer: Array, x: Array) -> Array:
        return x  # MLX keeps freed memory by itself, and by size

    def place(self, buffer: Array, x: Array, start: Sequence[int]) -> Array:
        return mx.slice_update(buffer, x, mx.array(list(start)), list(range(x.ndim)))

    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array:
        return mx.where(condition, x, y)

    def split(self, x: Array, sizes: Sequence[int], axis: int) -> Sequence[Array]:
        return list(mx.split(x, np.cumsum(sizes)[:-1].tolist(), axis))

    # Reduce, sample, numbers one by one
    def sum(self, x: Array, axis: int) -> Array:
        return _summed(x, axis % x.ndim) if self.device == "cpu" else x.sum(axis)

    def max(self, x: Array, axis: int) -> Array:
        return x.max(axis)

    def argmax(self, x: Array, axis: int) -> Array:
        return mx.stop_gradient(x).argmax(axis).astype(mx.int32)

    def topk(self, x: Array, k: int) -> tuple[Array, Array]:
        index = mx.argsort(-mx.stop_gradient(x), -1)[..., :k]
        return mx.take_along_axis(x, index, -1), index.astype(mx.int32)

    def softmax(self, x: Array, axis: int) -> Array:
        return mx.softmax(x, axis)

    def logsumexp(self, x: Array, axis: int) -> Array:
        return mlx_training.logsumexp(mx.moveaxis(x, axis, -1))

    def cumsum(self, x: Array, axis: int) -> Array:
        return mx.cumsum(x, axis)

    def exp(self, x: Array) -> Array:
        return mx.exp(x)

    def log(self, x: Array) -> Array:
        return mx.log(x)

    def tanh(self, x: Array) -> Array:
        return mx.tanh(x)

    def sigmoid(self, x: Array) -> Array:
        return mx.sigmoid(x)

    def softplus(self, x: Array) -> Array:
        return mx.logaddexp(x, mx.zeros((), x.dtype))

    def scatter_add(self, x: Array, index: Array, value: float) -> Array:
        rows = mx.arange(x.shape[0])[:, None]
        return x.at[rows, index].add(value)

    def pick(self, x: Array, index: Array) -> Array:
        return mx.take_along_axis(x, index[:, None], -1)[:, 0]

    # Training
    def unflatten(self, flat: Array, shapes: Sequence[tuple[int, ...]], dtype: str) -> Sequence[Array]:
        return mlx_training.unflatten(flat, shapes, _dtype(dtype))

    def stop_gradient(self, x: Array) -> Array:
        return mx.stop_gradient(x)


def _summed(x: Array, axis: int) -> Array:
    """A sum in blocks: the CPU device adds one number after another, and is off by 1e-5 after some ten thousand."""
    size = x.shape[axis]
    blocks = size // SUM_BLOCK
    if blocks < 2:
        return x.sum(axis)
    whole, rest = mx.split(x, [blocks * SUM_BLOCK], axis)
    inner = whole.reshape(*x.shape[:axis], blocks, SUM_BLOCK, *x.shape[axis + 1 :]).sum(axis + 1)
    return _summed(inner, axis) + rest.sum(axis)


def _dtype(name: str) -> mx.Dtype:
    return mx.bool_ if name == "bool" else getattr(mx, name)
