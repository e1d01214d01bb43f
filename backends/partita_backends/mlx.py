"""MLX: Metal on Apple Silicon, MLX's CPU device elsewhere.

On a CPU everything is float32: MLX's products are many times slower there in 16 bits. On Metal the residual stream is
bfloat16; that path is written from the documentation and has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from partita.backend import MASKED, Rule, Sinks
from partita.errors import BackendUnavailable
from partita.quantization import AFFINE, SMALL_FLOATS, Packed, Stored, require_known

from . import mlx_attention, mlx_recurrent, mlx_rings, mlx_training
from .mlx_arrays import Array, MlxArrays
from .mlx_attention import PACKED_ROWS

# From here on it pays on Metal to bring the rows of one expert together: its weights are then read once.
SORTED_ROWS = 64

KEPT_BYTES = 2**30  # of memory that MLX has freed and keeps for what comes next


class MlxBackend(MlxArrays):
    """See `partita.backend.Backend`."""

    name = "mlx"
    smallest_group = 32
    modes = tuple(SMALL_FLOATS)
    asynchronous = True
    captures = False
    _keeps_scores = True  # where no gradient is wanted, `attention` computes nothing again

    def __init__(self, device: str | None = None, dtype: str = "auto", threads: int | None = None):
        if device is None:
            device = "metal" if mx.metal.is_available() else "cpu"
        if device == "metal" and not mx.metal.is_available():
            raise BackendUnavailable("MLX finds no Metal device")
        mx.set_default_device(mx.Device(mx.gpu if device == "metal" else mx.cpu))
        self.device = device
        self.dtype = dtype if dtype != "auto" else ("bfloat16" if device == "metal" else "float32")
        self.decode_dtype = self.dtype
        self.compiles = device == "metal"  # on a CPU it calls a C++ compiler, and gains nothing over the products
        self._float = getattr(mx, self.dtype)
        if device == "metal":  # use it: what is missing shows now
            _settle()
            mx.eval(mx.ones(1).sum())
            self.memory()

    @property
    def exact(self) -> MlxBackend:
        return self

    @property
    def rough(self) -> MlxBackend:
        return self

    def write(self, buffer: Array, x: Array, index: Array, head: int = 0) -> Array:
        if x.shape[1] < buffer.shape[1]:
            own = slice(head, head + x.shape[1])
            part, buffer = self.write(buffer[:, own], x, index), buffer[:]
            buffer[:, own] = part
            return buffer
        return mlx_rings.written(buffer, x, index)

    # Model
    def prepare(self, weight: np.ndarray | Packed | Stored) -> Any:
        if isinstance(weight, Stored):
            weight = weight.repacked(self.smallest_group)
        if not isinstance(weight, Packed):
            return self.array(weight).astype(self._float)
        if require_known(weight, "the mlx backend").mode != AFFINE:
            return weight.map(mx.array)
        # a product whose scales differ from its input's dtype is promoted to float32 on every call: convert them once
        scales, biases = (self.array(part).astype(self._float) for part in weight.grid)
        return Packed(mx.array(weight.weight), scales, biases, weight.bits, weight.group_size)

    def prepare_experts(self, weight: np.ndarray | Packed) -> Any:
        return self.prepare(weight)

    def prepare_vector(self, x: np.ndarray) -> Array:
        return self.array(x).astype(self._float)

    def embed(self, weight: Any, tokens: Array) -> Array:
        if isinstance(weight, Packed):
            return mlx_rings.dequantize(weight.map(lambda part: part[tokens])).astype(self._float)
        return weight[tokens].astype(self._float)

    def linear(self, x: Array, weight: Any, bias: Array | None = None) -> Array:
        if not isinstance(weight, Packed):
            y = x @ weight.T.astype(x.dtype)
        elif self._made_dense(x.size // x.shape[-1]):
            y = mlx_training.packed_linear(x, weight)
        else:
            y = mlx_training.packed_product(x, weight)
        return y if bias is None else y + bias.astype(y.dtype)

    def adapted_linear(self, x: Array, weight: Any, a: Array, b: Array, scale: float) -> Array:
        return self.linear(x, weight) + self.linear(self.linear(x, a) * scale, b)

    def moe_linear(self, x: Array, weight: Any, index: Array, bias: Array | None = None) -> Array:
        if not isinstance(weight, Packed):
            weight = weight.astype(x.dtype)
        if self._made_dense(index.shape[1]):
            y = self._expert_by_expert(x, weight, index)
        elif self.device == "cpu" and not isinstance(weight, Packed) and weight.dtype != mx.float32:
            y = (x[..., None, :] @ weight[index].swapaxes(-1, -2))[..., 0, :]  # gather_mm is float32 only on a CPU
        elif self.device != "cpu" and index.size >= SORTED_ROWS:
            y = self._sorted_experts(x, weight, index)
        else:
            y = _gathered(x[..., None, :], weight, index)[..., 0, :]
        return y if bias is None else y + bias[index].astype(y.dtype)

    def _made_dense(self, rows: int) -> bool:
        """Whether products of so many rows make packed weights dense first, and take experts one by one."""
        return self.device == "cpu" and rows > PACKED_ROWS

    def _expert_by_expert(self, x: Array, weight: Any, index: Array) -> Array:
        """Many rows on a CPU: one product for every expert that is present. Reads the index on the host."""
        experts = np.array(index).reshape(-1)
        order = np.argsort(experts, kind="stable")
        rows = _rows_of(x, index, mx.array(order))
        present, starts = np.unique(experts[order], return_index=True)
        products = []
        # split, for gradients of single slices would each be as large as all
        each = None if isinstance(weight, Packed) else mx.split(weight, weight.shape[0])
        for expert, start, end in zip(present, starts, [*starts[1:], len(order)], strict=True):
            one = weight.map(lambda part, e=int(expert): part[e]) if each is None else each[int(expert)][0]
            products.append(self.linear(rows[int(start) : int(end)], one))
        return mx.concatenate(products)[mx.array(np.argsort(order))].reshape(*index.shape, -1)

    def _sorted_experts(self, x: Array, weight: Any, index: Array) -> Array:
        experts = index.reshape(-1)
        order = mx.argsort(experts)
        rows = _rows_of(x, index, order)[:, None]
        return _gathered(rows, weight, experts[order], in_order=True)[mx.argsort(order)].reshape(*index.shape, -1)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        return mx.fast.rms_norm(x, weight.astype(x.dtype), eps)

    def turns(self, cos: Array, sin: Array, heads: int, plain: int, *, packs: bool = False) -> mlx_rings.Turns:
        dtype = mlx_attention.packed_dtype(self._float) if packs else None
        return mlx_rings.Turns(cos[:, :, None], sin[:, :, None], heads, plain, dtype)

    def rotate(self, x: Array, turns: mlx_rings.Turns) -> Array:
        return mlx_rings.rotate(x, turns)

    def glu(self, gate: Array, up: Array, activation: str) -> Array:
        return mlx_training.activated(gate, up, activation)

    def cached_attention(
        self,
        q: Array,
        k: Array | Packed[Array],
        v: Array | Packed[Array],
        mask: Array,
        *,
        scale: float,
        sinks: Sinks[Array] | None,
        softcap: float | None,
        sink_logits: Array | None = None,
        rule: Rule[Array] | None = None,
    ) -> Array:
        if mlx_attention.fuses(q, sinks, softcap) and isinstance(k, Array) and isinstance(v, Array):
            seen = mask > MASKED / 2 if rule is None else rule.seen
            return mlx_attention.fused(q, k, v, seen, scale, sink_logits)
        about = {"scale": scale, "sinks": sinks, "softcap": softcap, "sink_logits": sink_logits}
        return mlx_attention.cached(q, k, v, mask, self._float, **about)

    # Quantized keys and values
    def quantize(self, x: Array, bits: int, group_size: int) -> Packed[Array]:
        return mlx_rings.quantize(x, bits, group_size)

    def store(self, kv: Any, x: Array, index: Array) -> Any:
        return mlx_rings.store(kv, x, index)

    def put_keys(self, kv: Array, k: Array) -> Array:
        kv = kv[:]  # another name for the same memory: the item assignment below is for it alone
        kv[0:1, :, :, : k.shape[2]] = k[None].astype(kv.dtype)
        return kv

    def dequantize(self, packed: Packed[Array]) -> Array:
        return mlx_rings.dequantize(packed)

    def hadamard(self, x: Array) -> Array:
        return mx.hadamard_transform(x)

    # Recurrent layers
    def causal_conv(
        self,
        x: Array,
        weight: Array,
        tail: Array,
        *,
        bias: Array | None = None,
        lengths: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, Array]:
        return mlx_recurrent.causal_conv(x, weight, tail, bias, lengths, positions)

    def gated_delta(
        self,
        q: Array,
        k: Array,
        v: Array,
        decay: Array,
        beta: Array,
        state: Array,
        *,
        fresh: Array | None = None,
    ) -> tuple[Array, Array]:
        return mlx_recurrent.gated_delta(q, k, v, decay, beta, state, fresh)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return mx.compile(function)

    # Training
    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: Array | None = None,
    ) -> Array:
        return mlx_training.attention(
            q, k, v, mask, scale=scale, softcap=softcap, sink_logits=sink_logits, keep=self._keeps_scores
        )

    def value(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        return partial(loss, self)  # every product is in the residual dtype as it is

    def value_and_grad(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        run = mlx_training.value_and_grad(partial(loss, MlxTraining(self)))
        return mx.compile(run) if self.compiles else run

    def checkpoint(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return mlx_training.checkpoint(function)

    def chunked_sum(self, function: Callable[..., Array], rows: int) -> Callable[..., Array]:
        return mlx_training.plain_sum(function, rows)

    def elementwise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return mlx_training.elementwise(function) if self.compiles else function

    def cross_entropy(self, logits: Array, targets: Array) -> Array:
        return mlx_training.cross_entropy(logits, targets)


class MlxTraining(MlxBackend):
    """What a differentiated loss computes with: rules of our own say what is kept for the backward pass.

    It shares the device and all settings of the backend it is made from, which goes on decoding in its own way.
    """

    _keeps_scores = False

    def __init__(self, ops: MlxBackend):
        vars(self).update(vars(ops))  # the device is open
        self._causal: dict[int, Array] = {}  # the layers of one loss share it

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None, **rest: Any) -> Array:
        if mask is None:
            tokens = q.shape[2]
            mask = self._causal.setdefault(tokens, mlx_training.causal(tokens))
        return super().attention(q, k, v, mask, **rest)

    def _made_dense(self, rows: int) -> bool:
        return self.device == "cpu"

    def adapted_linear(self, x: Array, weight: Any, a: Array, b: Array, scale: float) -> Array:
        return mlx_training.adapted_linear(
            x, a, b, scale, partial(self.linear, weight=weight), partial(self._product_back, weight)
        )

    def _product_back(self, weight: Any, grad: Array) -> Array:
        """grad (..., out) times a frozen weight."""
        if not isinstance(weight, Packed):
            return grad @ weight.astype(grad.dtype)
        if self._made_dense(grad.size // grad.shape[-1]):
            return mlx_training.packed_back(grad, weight)
        return mlx_training.packed_product(grad, weight, transpose=False)

    def gated_delta(
        self,
        q: Array,
        k: Array,
        v: Array,
        decay: Array,
        beta: Array,
        state: Array,
        *,
        fresh: Array | None = None,
    ) -> tuple[Array, Array]:
        return mlx_recurrent.in_chunks(q, k, v, decay, beta, state, fresh)

    def rotate(self, x: Array, turns: mlx_rings.Turns) -> Array:
        return mlx_training.rotate(x, turns)

    def glu(self, gate: Array, up: Array, activation: str) -> Array:
        return mlx_training.glu(gate, up, activation)

    def cross_entropy(self, logits: Array, targets: Array) -> Array:
        if self.device == "cpu":  # which would add one number after another
            return super().cross_entropy(logits, targets)
        return mx.fast.cross_entropy(logits, targets)

    def chunked_sum(self, function: Callable[..., Array], rows: int) -> Callable[..., Array]:
        return mlx_training.chunked_sum(function, rows)


def _settle() -> None:
    """For the life of the process, as mlx-lm does while it generates: weights stay where the GPU finds them, up to what
    the system recommends, and work has a stream of its own. What chunks of prompts leave behind is given back from a
    bound on, without waiting for the device."""
    mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    mx.set_cache_limit(KEPT_BYTES)
    mx.set_default_stream(mx.new_stream(mx.gpu))


def _gathered(x: Array, weight: Any, index: Array, *, in_order: bool = False) -> Array:
    """x (..., 1, in) times the matrices of the experts that index (...) names, transposed."""
    if not isinstance(weight, Packed):
        return mx.gather_mm(x, weight.swapaxes(-1, -2), rhs_indices=index, sorted_indices=in_order)
    y = mx.gather_qmm(
        x if weight.factors is None else x.astype(mx.float32),
        weight.weight,
        weight.scales,
        weight.biases,
        rhs_indices=index,
        transpose=True,
        group_size=weight.group_size,
        bits=weight.bits,
        mode=weight.mode,
        sorted_indices=in_order,
    )
    return y if weight.factors is None else (y * weight.factors[index].swapaxes(-1, -2)).astype(x.dtype)


def _rows_of(x: Array, index: Array, order: Array) -> Array:
    """Rows (n, in) of x (B, T, K or 1, in) that belong to the entries `order` of the flat index (B, T, K)."""
    return x.reshape(-1, x.shape[-1])[order // (index.shape[2] // x.shape[2])]
