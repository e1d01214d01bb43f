"""The oracle: every operation in plain numpy, float32, forward only. Slow and readable on purpose.

The other backends are tested against this one. It holds no tricks: what a formula says is what is computed. In float64,
where every float dtype that is asked for is float64, finite differences of it judge the others' gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from partita import quantization, rings
from partita.backend import MASKED, Memory, Rule, Sinks
from partita.errors import BackendUnavailable, DataError
from partita.quantization import Packed, Stored

from . import numpy_recurrent, process_memory


class NumpyBackend:
    """float32 on the CPU, whatever the checkpoint holds, or float64 for tests."""

    name = "numpy"
    smallest_group = 1
    modes: tuple[str, ...] = ()
    asynchronous = False
    compiles = False
    captures = False

    def __init__(self, device: str | None = None, dtype: str = "auto", threads: int | None = None):
        if dtype not in ("auto", "float32", "float64"):
            raise DataError(
                f"the numpy backend computes in float32 only, not {dtype}: use `dtype` float32", field="dtype"
            )
        self.device = "cpu"
        self.dtype = self.decode_dtype = "float32" if dtype == "auto" else dtype
        self._float = np.dtype(self.dtype)

    @property
    def exact(self) -> NumpyBackend:
        return self

    @property
    def rough(self) -> NumpyBackend:
        return self

    # Host boundary
    def array(self, x: np.ndarray, dtype: str | None = None) -> np.ndarray:
        return np.asarray(x, dtype=self._dtype(dtype or np.asarray(x).dtype.name))

    def to_numpy(self, x: np.ndarray) -> np.ndarray:
        return x

    def zeros(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        return np.zeros(shape, self._dtype(dtype))

    def full(self, shape: Sequence[int], value: int | float, dtype: str) -> np.ndarray:
        return np.full(shape, value, self._dtype(dtype))

    def launch(self, *arrays: Any) -> None:
        pass

    def fetch(self, x: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: x

    def sync(self) -> None:
        pass

    def memory(self) -> Memory:
        return process_memory.read()

    def reset_peak(self) -> None:
        process_memory.reset_peak()

    # Shape
    def cast(self, x: np.ndarray, dtype: str) -> np.ndarray:
        return x.astype(self._dtype(dtype), copy=False)

    def concat(self, arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
        return np.concatenate(arrays, axis)

    def take(self, x: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
        return np.take(x, index, axis)

    def copy(self, x: np.ndarray) -> np.ndarray:
        return x.copy()

    def assign(self, buffer: np.ndarray, x: np.ndarray) -> np.ndarray:
        return x

    def place(self, buffer: np.ndarray, x: np.ndarray, start: Sequence[int]) -> np.ndarray:
        buffer[tuple(slice(at, at + size) for at, size in zip(start, x.shape, strict=True))] = x
        return buffer

    def where(self, condition: np.ndarray, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        chosen: np.ndarray = np.where(condition, x, y)
        return chosen.astype(self._float) if chosen.dtype == np.float64 else chosen

    def split(self, x: np.ndarray, sizes: Sequence[int], axis: int) -> Sequence[np.ndarray]:
        return np.split(x, np.cumsum(sizes)[:-1], axis)

    def write(self, buffer: np.ndarray, x: np.ndarray, index: np.ndarray, head: int = 0) -> np.ndarray:
        out = buffer.copy()
        for row in range(buffer.shape[0]):
            out[row, head : head + x.shape[1]][:, index[row]] = x[row]
        return out

    # Model
    def prepare(self, weight: np.ndarray | Packed | Stored) -> np.ndarray:
        if isinstance(weight, Stored):
            weight = weight.repacked(self.smallest_group)
        if isinstance(weight, Packed):
            weight = quantization.dequantize(quantization.require_known(weight, "the numpy backend"))
        return np.asarray(weight, self._float)

    def prepare_experts(self, weight: np.ndarray | Packed) -> np.ndarray:
        return self.prepare(weight)

    def prepare_vector(self, x: np.ndarray) -> np.ndarray:
        return x.astype(self._float)

    def embed(self, weight: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return weight[tokens]

    def linear(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        y = x @ weight.T
        return y if bias is None else y + bias

    def adapted_linear(
        self, x: np.ndarray, weight: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float
    ) -> np.ndarray:
        return self.linear(x, weight) + self.linear(self.linear(x, a) * scale, b)

    def moe_linear(
        self, x: np.ndarray, weight: np.ndarray, index: np.ndarray, bias: np.ndarray | None = None
    ) -> np.ndarray:
        x = np.broadcast_to(x, (*index.shape, x.shape[-1]))
        y = np.zeros((*index.shape, weight.shape[1]), x.dtype)
        for expert in np.unique(index):
            chosen = index == expert
            y[chosen] = x[chosen] @ weight[expert].T
        return y if bias is None else y + bias[index]

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + np.float32(eps)) * weight

    def turns(self, cos: np.ndarray, sin: np.ndarray, heads: int, plain: int, *, packs: bool = False) -> Any:
        return cos[:, :, None], sin[:, :, None], heads  # B T 1 d/2

    def rotate(self, x: np.ndarray, turns: Any) -> np.ndarray:
        cos, sin, heads = turns
        half = cos.shape[-1]
        turned, plain = x[:, :, :heads], x[:, :, heads:]
        low, high, rest = turned[..., :half], turned[..., half : 2 * half], turned[..., 2 * half :]
        return np.concatenate([np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], -1), plain], 2)

    def glu(self, gate: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
        if activation == "silu":
            return gate / (1 + np.exp(-gate)) * up
        if activation == "swiglu_clamped":
            gate, up = np.minimum(gate, np.float32(7)), np.clip(up, np.float32(-7), np.float32(7))
            return gate / (1 + np.exp(np.float32(-1.702) * gate)) * (up + 1)
        inner = np.float32(np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3)
        return np.float32(0.5) * gate * (1 + np.tanh(inner)) * up

    def cached_attention(
        self,
        q: np.ndarray,
        k: np.ndarray | Packed[np.ndarray],
        v: np.ndarray | Packed[np.ndarray],
        mask: np.ndarray,
        *,
        scale: float,
        sinks: Sinks[np.ndarray] | None,
        softcap: float | None,
        sink_logits: np.ndarray | None = None,
        rule: Rule[np.ndarray] | None = None,
    ) -> np.ndarray:
        k, v = (self.dequantize(x) if isinstance(x, Packed) else x.astype(self._float) for x in (k, v))
        heads = q.shape[1] // k.shape[1]

        def scores(q: np.ndarray, k: np.ndarray, mask: np.ndarray) -> np.ndarray:  # B Hq T C
            s = np.float32(scale) * (q @ np.repeat(k.astype(self._float), heads, 1).swapaxes(2, 3))
            if softcap is not None:
                s = np.float32(softcap) * np.tanh(s / np.float32(softcap))
            return s + mask[:, None]

        s = scores(q, k, mask)
        if sinks is not None:
            first = scores(sinks.q, sinks.k, sinks.mask)
            s = np.concatenate([first if sinks.shift is None else first + sinks.shift[..., None], s], -1)
            v = np.concatenate([sinks.v.astype(self._float), v], 2)
        if sink_logits is None:
            return self.softmax(s, -1) @ np.repeat(v, heads, 1)
        column = np.broadcast_to(sink_logits[:, None, None], (*s.shape[:-1], 1))
        return self.softmax(np.concatenate([s, column], -1), -1)[..., :-1] @ np.repeat(v, heads, 1)

    # Quantized keys and values
    def quantize(self, x: np.ndarray, bits: int, group_size: int) -> Packed:
        return quantization.quantize_minmax(x, bits, group_size)

    def store(self, kv: Any, x: np.ndarray, index: np.ndarray) -> Any:
        new = [part.swapaxes(1, 2) for part in np.split(x, 2, 2)]
        first, second = rings.sides(kv)
        return rings.joined(kv, self._written(first, new[0], index), self._written(second, new[1], index), np.stack)

    def _written(self, side: np.ndarray | Packed[np.ndarray], x: np.ndarray, index: np.ndarray) -> Any:
        if not isinstance(side, Packed):
            return self.write(side, x, index)
        new = self.quantize(x, side.bits, side.group_size)
        return quantization.joined([side, new], lambda pair: self.write(pair[0], pair[1], index))

    def put_keys(self, kv: np.ndarray, k: np.ndarray) -> np.ndarray:
        out = kv.copy()
        out[0, :, :, : k.shape[2]] = k
        return out

    def dequantize(self, packed: Packed) -> np.ndarray:
        return quantization.dequantize(packed).astype(self._float, copy=False)

    def hadamard(self, x: np.ndarray) -> np.ndarray:
        return x @ quantization.hadamard_matrix(x.shape[-1])

    # Recurrent layers
    def sigmoid(self, x: np.ndarray) -> np.ndarray:
        return (1 / (1 + np.exp(-np.maximum(x, -80)))).astype(x.dtype)

    def softplus(self, x: np.ndarray) -> np.ndarray:
        return np.logaddexp(x, np.zeros((), x.dtype))

    def causal_conv(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        tail: np.ndarray,
        *,
        bias: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        return numpy_recurrent.causal_conv(x, weight, tail, bias, lengths, positions)

    def gated_delta(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        decay: np.ndarray,
        beta: np.ndarray,
        state: np.ndarray,
        *,
        fresh: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        return numpy_recurrent.gated_delta(q, k, v, decay, beta, state, fresh)

    # Reduce and sample
    def sum(self, x: np.ndarray, axis: int) -> np.ndarray:
        return x.sum(axis)

    def max(self, x: np.ndarray, axis: int) -> np.ndarray:
        return x.max(axis)

    def argmax(self, x: np.ndarray, axis: int) -> np.ndarray:
        return x.argmax(axis).astype(np.int32)

    def topk(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.argsort(-x, -1, kind="stable")[..., :k]
        return np.take_along_axis(x, index, -1), index.astype(np.int32)

    def softmax(self, x: np.ndarray, axis: int) -> np.ndarray:
        e = np.exp(x - x.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)

    def logsumexp(self, x: np.ndarray, axis: int) -> np.ndarray:
        high = x.max(axis, keepdims=True)
        return np.squeeze(high, axis) + np.log(np.exp(x - high).sum(axis))

    def cumsum(self, x: np.ndarray, axis: int) -> np.ndarray:
        return np.cumsum(x, axis, dtype=x.dtype)

    def exp(self, x: np.ndarray) -> np.ndarray:
        return np.exp(x)

    def log(self, x: np.ndarray) -> np.ndarray:
        return np.log(x)

    def tanh(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def scatter_add(self, x: np.ndarray, index: np.ndarray, value: float) -> np.ndarray:
        out = x.copy()
        for row in range(x.shape[0]):
            np.add.at(out[row], index[row], np.float32(value))
        return out

    # Training
    def attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        mask: np.ndarray | None,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: np.ndarray | None = None,
    ) -> np.ndarray:
        if mask is None:
            mask = np.triu(np.full((1, q.shape[2], q.shape[2]), MASKED, self._float), 1)
        return self.cached_attention(q, k, v, mask, scale=scale, sinks=None, softcap=softcap, sink_logits=sink_logits)

    def value(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        return partial(loss, self)

    def value_and_grad(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        raise BackendUnavailable("the numpy backend cannot train: use `backend` torch or mlx", field="backend")

    def checkpoint(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def chunked_sum(self, function: Callable[..., Any], rows: int) -> Callable[..., Any]:
        def run(trainables: dict[str, np.ndarray], *arrays: np.ndarray) -> Any:
            starts = range(0, len(arrays[0]), rows)
            values = [function(trainables, *(x[start : start + rows] for x in arrays)) for start in starts]
            return np.sum(values, dtype=self._float)

        return run

    def unflatten(self, flat: np.ndarray, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[np.ndarray]:
        parts = np.split(flat.astype(self._dtype(dtype)), np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def elementwise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def stop_gradient(self, x: np.ndarray) -> np.ndarray:
        return x

    def pick(self, x: np.ndarray, index: np.ndarray) -> np.ndarray:
        return x[np.arange(len(x)), index]

    def cross_entropy(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self.logsumexp(logits, -1) - self.pick(logits, targets)

    def _dtype(self, name: str) -> Any:
        if name.startswith(("float", "bfloat")) and self.dtype == "float64":
            return np.dtype(np.float64)
        return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
