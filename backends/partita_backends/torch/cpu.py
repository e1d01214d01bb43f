"""What the kernels of `partita_backends.kernels` do for torch on a CPU: tensors as numpy arrays over the same memory.

Importing this imports numba: `weights.cpu_kernels` does, where there is one.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from partita.backend import Sinks
from partita.brief import Brief
from partita.quantization import Packed, Stored

from ..kernels import attention, blocks, delta, ggml, matrices, pointwise, products, slots
from .recorded import run

Tensor = torch.Tensor


@dataclass(frozen=True)
class Blocked(Brief):
    """See `weights.PackedWeight`. A few rows are rounded to 8 bits, unless they are to be computed in float32; more of
    them are a prompt, which stays exact: its last row decides the first word of a reply."""

    blocks: blocks.Blocks

    @property
    def shape(self) -> tuple[int, ...]:
        return self.blocks.shape

    def product(self, x: Tensor, decode: torch.dtype) -> Tensor:
        if len(x) > FEW_ROWS:
            return self.multiply(x)
        multiply = products.float_product if decode == torch.float32 else products.integer_product
        return self._into(x, self.shape[0], multiply)

    def multiply(self, x: Tensor) -> Tensor:
        return self._into(x, self.shape[0], matrices.forward).to(x.dtype)

    def multiply_packed(self, x: Tensor) -> Tensor:
        return self.multiply(x)

    def multiply_back(self, grad: Tensor) -> Tensor:
        return self._into(grad, self.shape[1], matrices.back).to(grad.dtype)

    def _into(self, x: Tensor, size: int, multiply: Any) -> Tensor:
        return _computed(multiply, x, self.blocks, size)

    def rows(self, index: Tensor) -> Tensor:
        y = torch.empty(len(index), self.shape[1])
        run(blocks.rows, self.blocks, index.numpy(), y.numpy())
        return y


_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.uint16}  # what kernels call them


def multiplies(x: Tensor, weight: Tensor) -> bool:
    """Whether `multiply` and `multiply_back` take a dense weight: many rows, on one thread."""
    rows = x.numel() // x.shape[-1]
    alike = x.dtype == weight.dtype == torch.float32 and weight.is_contiguous()
    return alike and rows > FEW_ROWS and torch.get_num_threads() == 1


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., in) times a dense weight (out, in), transposed, float32."""
    y = _computed(matrices.forward, x.reshape(-1, x.shape[-1]), weight.detach().numpy(), weight.shape[0])
    return y.view(*x.shape[:-1], -1)


def widens(x: Tensor, weight: Tensor) -> bool:
    """Whether `multiply_wide` takes a dense weight: one of 16 bits, and many rows of float32."""
    fits = x.dtype == torch.float32 and weight.dtype in _BITS and weight.is_contiguous()
    return fits and x.numel() // x.shape[-1] > FEW_ROWS and weight.shape[-1] % blocks.UNIT == 0


def multiply_wide(x: Tensor, weight: Tensor, pool: Executor, threads: int) -> Tensor:
    """x (..., in) times a dense weight (out, in) of 16 bits, transposed, which is float32 a panel at a time; the same
    numbers by any number of the pool's threads. They wait asleep for the slowest, and take more parts than there are
    threads, so that a core that is busy with something else delays little."""
    y = torch.empty(x.numel() // x.shape[-1], weight.shape[0])
    rows, stored = _floats(x.reshape(len(y), -1)), weight.view(_BITS[weight.dtype]).numpy()
    calls = matrices.forward_parts(rows, stored, y.numpy(), 4 * threads if threads > 1 else 1)
    list(pool.map(lambda call: call[0](*call[1]), calls))
    return y.view(*x.shape[:-1], -1)


def multiply_back(grad: Tensor, weight: Tensor) -> Tensor:
    """grad (..., out) times a dense weight (out, in), float32."""
    y = _computed(matrices.back, grad.reshape(-1, grad.shape[-1]), weight.detach().numpy(), weight.shape[1])
    return y.view(*grad.shape[:-1], -1)


def _computed(multiply: Any, x: Tensor, weight: Any, size: int) -> Tensor:
    """(rows, size), float32, of x (rows, n) and one of the kernels."""
    y = torch.empty(len(x), size)
    function, arguments = multiply(_floats(x), weight, y.numpy(), torch.get_num_threads())
    run(function, *arguments)
    return y


FEW_ROWS = 16  # up to here a product waits for the weight to be read: the rows of a batch, or of a draft


def blocked(weight: Packed[np.ndarray]) -> Blocked | None:
    """The weight in blocks, or None for groups that kernels do not take."""
    return Blocked(blocks.arrange(weight)) if blocks.fits(weight) else None


def stored(weight: Stored) -> Blocked | None:
    """The same of a file's own blocks, or None for a type that kernels do not take."""
    return Blocked(ggml.arrange(weight)) if ggml.fits(weight) else None


def few(x: Tensor, rows: int) -> bool:
    """Whether the operations below are for x, which has so many rows: with more of them torch is faster on threads."""
    return rows <= FEW_ROWS and x.dtype == torch.float32


def takes(x: Tensor, rows: int) -> bool:
    """Whether those that go element by element are for x: also of many rows on one thread."""
    return few(x, rows) or (x.dtype == torch.float32 and torch.get_num_threads() == 1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `Backend.rms_norm`, of float32."""
    y = torch.empty(x.shape)
    size = x.shape[-1]
    run(pointwise.rms_norm, x.contiguous().view(-1, size).numpy(), weight.numpy(), eps, y.view(-1, size).numpy())
    return y


def gated_delta(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """As `Backend.gated_delta`, of a few tokens."""
    y, after = torch.empty(v.shape), torch.empty(state.shape)
    given = (part.float().contiguous().numpy() for part in (q, k, v, decay.exp(), beta, state))
    run(delta.gated_delta, *given, y.numpy(), after.numpy())
    return y.to(v.dtype), after


def gates(gate: Tensor) -> bool:
    """Whether `glu` takes it."""
    return gate.shape[-1] % pointwise.WIDTH == 0 and takes(gate, gate.numel() // gate.shape[-1])


def glu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """As `Backend.glu`, of float32 in whole lanes."""
    y, place = torch.empty(gate.shape), pointwise.ACTIVATIONS.index(activation)
    run(pointwise.glu, *_flat_rows(gate), *_flat_rows(up), place, _rows(y))
    return y


def glu_back(grad: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, of that of `glu`; not for "swiglu_clamped"."""
    found, place = (torch.empty(gate.shape), torch.empty(gate.shape)), pointwise.ACTIVATIONS.index(activation)
    pointwise.glu_back(_rows(grad), _rows(gate), _rows(up), place, *map(_rows, found))
    return found


def inverses(x: Tensor, eps: float) -> Tensor:
    """Of the root of each row's mean square, float32 (..., 1)."""
    y = torch.empty(*x.shape[:-1], 1)
    pointwise.inverses(_rows(x), eps, y.view(-1).numpy())
    return y


def normed(x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """x * inverse * weight, float32."""
    y = torch.empty(x.shape)
    pointwise.normed(_rows(x.detach()), weight.numpy(), inverse.view(-1).numpy(), _rows(y))
    return y


def normed_back(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of x, of that of its norm: `normed` with `inverses`."""
    y = torch.empty(x.shape)
    pointwise.normed_back(_rows(grad), _rows(x), weight.numpy(), inverse.view(-1).numpy(), _rows(y))
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """As `Backend.rotate`, of float32."""
    y = torch.empty(x.shape)
    rows = y.view(-1, *y.shape[2:]).numpy()
    run(pointwise.rotate, *map(_flat, (x, cos, sin)), heads, cos.shape[-1], rows)
    return y


def _rows(x: Tensor) -> np.ndarray:
    """All leading dimensions in one, numbers of a row side by side."""
    x = x.reshape(-1, x.shape[-1])
    return (x if x.stride(-1) == 1 else x.contiguous()).numpy()


def _flat_rows(x: Tensor) -> tuple[np.ndarray, int]:
    """The same, flat, and how many numbers lie between the first of a row and the first of the next."""
    x = x.reshape(-1, x.shape[-1])
    x = x if x.stride(-1) == 1 else x.contiguous()
    return _span(x), x.stride(0)


def _flat(x: Tensor) -> np.ndarray:
    return x.reshape(-1).numpy()


def _span(x: Tensor) -> np.ndarray:
    """All numbers from the first of x to its last, flat, also those between that are not x's: numba compiles a kernel
    again for arrays of another layout, and these are all of one."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1 if x.numel() else 0,), (1,)).numpy()


def attends(k: Any, v: Any) -> bool:
    """Whether `attend` takes such keys and values."""
    return all(attention.fits(x.shape[-1], x.group_size if isinstance(x, Packed) else attention.WIDTH) for x in (k, v))


def attend(
    q: Tensor,
    k: Any,
    v: Any,
    mask: Tensor,
    *,
    scale: float,
    sinks: Sinks[Tensor] | None,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Tensor:
    """As `Backend.cached_attention`, of few queries, in float32."""
    query, seen, nothing = _floats(q), _floats(mask), np.empty(0, np.float32)
    if sinks is None:
        none = _side(torch.empty(0))
        others = query, none, none, np.empty((*mask.shape[:2], 0), np.float32), nothing
    else:
        shift = nothing if sinks.shift is None else _floats(sinks.shift)
        others = _floats(sinks.q), _side(sinks.k), _side(sinks.v), _floats(sinks.mask), shift
    y = torch.empty(q.shape)
    function, arguments = attention.attend(
        query,
        _side(k),
        _side(v),
        seen,
        others,
        y.numpy(),
        scale=scale,
        softcap=softcap,
        sink_logits=nothing if sink_logits is None else _floats(sink_logits),
        kv_heads=k.shape[1],
        threads=torch.get_num_threads(),
    )
    run(function, *arguments)
    return y.to(q.dtype)


def writes(buffer: Any, x: Tensor) -> bool:
    """Whether `write` takes it."""
    if not few(x, x.shape[0] * x.shape[2]):
        return False
    if isinstance(buffer, Packed):
        return attention.fits(buffer.shape[-1], buffer.group_size) and all(
            part.is_contiguous() for part in _parts(buffer)
        )
    return attention.fits(buffer.shape[-1]) and buffer.dtype in _KINDS and buffer.is_contiguous()


def write(buffer: Any, x: Tensor, index: Tensor) -> None:
    """As `Backend.write`, dense or packed, of float32."""
    run(slots.write, _floats(x), index.to(torch.int32).contiguous().numpy(), *_side(buffer), buffer.shape[2])


def _parts(packed: Packed[Tensor]) -> tuple[Tensor, ...]:
    return packed.weight, *packed.grid


def _floats(x: Tensor) -> np.ndarray:
    return x.float().contiguous().numpy()


def _side(x: Any) -> attention.Side:
    """Keys or values as kernels take them."""
    if isinstance(x, Packed):
        scales, biases = (part.contiguous().view(torch.int16).reshape(-1).numpy().view(np.uint16) for part in x.grid)
        return _bytes(x.weight), scales, biases, x.bits, x.group_size
    none = np.empty(0, np.uint16)
    return _bytes(x), none, none, _KINDS[x.dtype], attention.WIDTH


_KINDS = {
    torch.float32: attention.FLOAT32,
    torch.float16: attention.FLOAT16,
    torch.bfloat16: attention.BFLOAT16,
}


def _bytes(x: Tensor) -> np.ndarray:
    return x.contiguous().view(torch.uint8).reshape(-1).numpy()
