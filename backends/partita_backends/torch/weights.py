"""Weights on torch: dense tensors, and packed ones in a form that the device is fast with (`PackedWeight`).

On a CPU that form is `cpu.Blocked`, on a GPU `cuda.Words`, and there is no other copy of the weight; without numba or
triton, and for groups that those kernels do not take, it is `Quantized` here, which knows the int4 kernel of torch's
CPU build.

`_weight_int4pack_mm_for_cpu` computes x (rows, in) in bfloat16 against (q - 8) * scale + zero, so an affine weight maps
by zero = bias + 8 * scale, both rounded to bfloat16: a lossy fast path, used only where products are in bfloat16
anyway. A wider integer is 16 * high + low, so two int4 products give it exactly. Many rows are dequantized and
multiplied instead: the kernel's cost grows with every row. Integers of 2, 3, 5 and 6 bits are kept as bytes: taking
them out of a bit stream costs more than any product.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import torch

from partita import small_floats
from partita.brief import Brief
from partita.quantization import Packed, require_affine, require_known
from partita.quantization import unpack as unpack_words

from .dense_parts import GPU_DENSE_AT_ONCE, InParts, slices

Tensor = torch.Tensor

KERNEL_ROWS = 8  # up to here the int4 kernel beats dequantize + matmul (docs/experiments.md)
KERNEL_GROUPS = (32, 64, 128, 256)
DENSE_AT_ONCE = 2**20
"""Values of a weight that are dense at once on a CPU: they stay in the processor's cache between being made and being
multiplied; the whole would be new pages each time (docs/experiments.md)."""


@dataclass(frozen=True)
class Kernel(Brief):
    """One operand of the int4 kernel: integers in its own layout; (in / group, out, 2) bfloat16 scales and zeros."""

    integers: Tensor
    scales_zeros: Tensor

    def product(self, x: Tensor, group_size: int) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.integers, group_size, self.scales_zeros)


class PackedWeight(Protocol):
    """A packed weight (out, in)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def product(self, x: Tensor, decode: torch.dtype) -> Tensor | None:
        """x (rows, in) times the weight, transposed, in a float dtype of the weight's choice; computed in `decode`, or
        as exactly. None where `multiply` is the better way."""
        ...

    def rows(self, index: Tensor) -> Tensor:
        """Chosen rows, float32 (n, in)."""
        ...

    def multiply(self, x: Tensor) -> Tensor:
        """x (rows, in) times the weight, transposed, computed in x's dtype or as exactly, and in x's dtype."""
        ...

    def multiply_packed(self, x: Tensor) -> Tensor:
        """The same for training, where the device's kernels take many rows too: no part of the weight is dense then."""
        ...

    def multiply_back(self, grad: Tensor) -> Tensor:
        """grad (rows, out) times the weight; in grad's dtype, as above."""
        ...


class Quantized(InParts):
    """A packed weight (out, in) and, where the kernel takes it, its operands: one up to 4 bits, two up to 8.

    packed: 4 or 8 bits as stored; bits: of the integers in it. Operands are made for the second product of few rows:
    the first belongs to the first token, which need not wait for the conversion of every weight.
    """

    def __init__(self, packed: Packed[Tensor], bits: int, decode: torch.dtype):
        self.packed, self.bits = packed, bits
        fits = packed.group_size in KERNEL_GROUPS and packed.shape[0] % 16 == 0
        self._fits = fits and decode == torch.bfloat16 and packed.weight.device.type == "cpu"
        self._asked = False
        self._kernels: tuple[Kernel, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.packed.shape

    def product(self, x: Tensor, decode: torch.dtype) -> Tensor | None:
        kernels = self._operands() if len(x) <= KERNEL_ROWS else ()
        if not kernels:
            return None
        x = x.to(decode)
        y = kernels[0].product(x, self.packed.group_size).float()
        for kernel in kernels[1:]:
            y += kernel.product(x, self.packed.group_size)
        return y

    def rows(self, index: Tensor) -> Tensor:
        return dequantize(self.packed.map(lambda part: part.index_select(0, index)), torch.float32)

    def parts(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        rows, columns = self.shape
        cpu = self.packed.weight.device.type == "cpu"
        for part in slices(rows, columns, DENSE_AT_ONCE if cpu else GPU_DENSE_AT_ONCE):
            yield part, dequantize(self.packed.map(lambda x, part=part: x[part]), dtype)

    def _operands(self) -> tuple[Kernel, ...]:
        if self._fits and self._asked and not self._kernels:
            self._kernels = _kernels(self.packed, self.bits)
        self._asked = True
        return self._kernels


class Factored:
    """A packed weight whose rows are multiplied by factors, (out,) float32: see `PackedWeight`."""

    def __init__(self, weight: PackedWeight, factors: Tensor):
        self.weight, self.factors = weight, factors

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def product(self, x: Tensor, decode: torch.dtype) -> Tensor | None:
        y = self.weight.product(x, decode)
        return None if y is None else y * self.factors

    def rows(self, index: Tensor) -> Tensor:
        return self.weight.rows(index) * self.factors[index, None]

    def multiply(self, x: Tensor) -> Tensor:
        return _scaled(self.weight.multiply(x), self.factors)

    def multiply_packed(self, x: Tensor) -> Tensor:
        return _scaled(self.weight.multiply_packed(x), self.factors)

    def multiply_back(self, grad: Tensor) -> Tensor:
        return self.weight.multiply_back(_scaled(grad, self.factors))


def _scaled(x: Tensor, factors: Tensor) -> Tensor:
    return (x * factors).to(x.dtype)


def prepare(weight: Packed[np.ndarray], device: torch.device, decode: torch.dtype) -> PackedWeight | Tensor:
    """A packed weight (out, in) on the device: of small floats as the integers, or the dense tensor, that say the same
    (`small_floats.without_codes`). UnsupportedModel: another mode."""
    plain = without_codes(weight)
    if not isinstance(plain, Packed):
        return from_numpy(plain).to(device=device, dtype=decode)
    found = _prepare(plain, device, decode)
    return found if weight.factors is None else Factored(found, from_numpy(weight.factors[:, 0]).to(device))


def without_codes(weight: Packed[np.ndarray]) -> Packed[np.ndarray] | np.ndarray:
    """What every kernel knows; without the factors. UnsupportedModel: an unknown mode."""
    return small_floats.without_codes(replace(require_known(weight, "the torch backend"), factors=None))


def _prepare(weight: Packed[np.ndarray], device: torch.device, decode: torch.dtype) -> PackedWeight:
    if device.type == "cpu" and (kernels := cpu_kernels()) is not None:
        blocked = kernels.blocked(weight)
        if blocked is not None:
            return blocked
    if device.type == "cuda" and (kernels := gpu_kernels()) is not None and kernels.fits(weight):
        return kernels.Words(weight.map(lambda part: from_numpy(part).to(device)))
    packed = widened(weight).map(lambda part: from_numpy(part).to(device))
    return Quantized(packed, weight.bits, decode)


def cpu_kernels() -> Any:
    """The module `cpu`, or None where numba cannot be imported."""
    return _found()[0]


def gpu_kernels() -> Any:
    """The module `cuda`, or None where triton cannot be imported or compiles nothing for the GPU."""
    return _found_on_gpu()[0]


def without_kernels(device: str) -> str | None:
    """Why this device computes more slowly than it could, in a line."""
    if device == "cpu":
        (_, error), what, how = _found(), "numba", ": pip install numba"
    else:
        (_, error), what, how = _found_on_gpu(), "triton", ""
    return None if error is None else f"products with packed weights are slow, as {what} cannot be used ({error}){how}"


def cold_kernels() -> str | None:
    """That kernels are compiled while the first reply is computed, in a line."""
    if cpu_kernels() is None:
        return None
    from ..kernels import compiled

    if not compiled.COLD:
        return None
    how = "once" if compiled.KEPT else f"for each process, as {compiled.folder().parent} cannot be written"
    return f"compiling kernels for this CPU, {how}: the first reply waits some seconds for it"


@functools.cache
def _found() -> tuple[Any, str | None]:
    try:
        from . import cpu
    except ImportError as error:  # a numba that is too old for this numpy raises it too
        return None, " ".join(str(error).split())[:200]
    return cpu, None


@functools.cache
def _found_on_gpu() -> tuple[Any, str | None]:
    try:
        from . import cuda

        cuda.check()
    except Exception as error:  # from a missing compiler to a GPU too old: triton has no error of its own for it
        return None, " ".join(str(error).split())[:200] or type(error).__name__
    return cuda, None


def from_numpy(x: np.ndarray) -> Tensor:
    """A tensor over the same numbers; bfloat16 through its bits, read-only memory maps by a copy."""
    if x.dtype == ml_dtypes.bfloat16:
        return from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    if x.dtype == np.uint32:  # torch has few operations for unsigned words; the bits are the same
        x = x.view(np.int32)
    x = np.ascontiguousarray(x)
    return torch.from_numpy(x if x.flags.writeable else x.copy())


def widened(packed: Packed) -> Packed:
    """The same numbers, integers of odd widths as bytes. On the host. UnsupportedModel: a mode other than affine."""
    require_affine(packed, "the torch backend")
    if packed.bits in (4, 8):
        return packed
    return replace(packed, weight=unpack_words(packed.weight, packed.bits).view(np.uint32), bits=8)


def _kernels(packed: Packed[Tensor], bits: int) -> tuple[Kernel, ...]:
    q = unpack(packed).view(packed.shape)
    scales, biases = (part.float() for part in packed.grid)
    # the kernel subtracts 8: integers are moved so that this is their middle, which keeps zeros small and their
    # rounding to bfloat16 cheap
    if bits <= 4:
        middle = 2 ** (bits - 1)
        return (_kernel(q + (8 - middle), scales, biases + middle * scales),)
    # q = 16 * high + low: the first product takes 16 * (high - middle), the second the rest and the whole offset
    middle = 2 ** (bits - 5)
    high = _kernel((q >> 4) + (8 - middle), 16 * scales, torch.zeros_like(scales))
    low = _kernel(q & 15, scales, biases + (8 + 16 * middle) * scales)
    return (high, low)


def _kernel(q: Tensor, scales: Tensor, zeros: Tensor) -> Kernel:
    integers = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1)
    both = torch.stack([scales, zeros], -1).transpose(0, 1).contiguous().to(torch.bfloat16)  # groups, out, 2
    return Kernel(integers, both)


def product(x: Tensor, weight: Tensor | PackedWeight, decode: torch.dtype) -> Tensor:
    """x (..., in) times weight (out, in), transposed; in x's dtype. A few rows are computed in `decode`."""
    count = x.numel() // x.shape[-1]
    if isinstance(weight, Tensor):
        dtype = decode if count <= KERNEL_ROWS else x.dtype
        return torch.nn.functional.linear(x.to(dtype), weight.to(dtype)).to(x.dtype)
    y = weight.product(x.reshape(count, -1), decode)
    return multiply(x, weight) if y is None else y.to(x.dtype).view(*x.shape[:-1], -1)


def rows(weight: Tensor | PackedWeight, index: Tensor) -> Tensor:
    """Rows of a dense or packed weight, for embeddings: (*index.shape, in)."""
    flat = index.reshape(-1)
    taken = weight.index_select(0, flat) if isinstance(weight, Tensor) else weight.rows(flat)
    return taken.view(*index.shape, -1)


def unpack(packed: Packed[Tensor]) -> Tensor:
    """Integers of a tensor packed at 4 or 8 bits, uint8 (..., n / group_size, group_size)."""
    stream = packed.weight.view(torch.uint8)
    groups = (*packed.scales.shape, packed.group_size)
    if packed.bits == 8:
        return stream.view(groups)
    wide = stream.to(torch.int16)  # a byte's two values to the two bytes of a word, in three passes
    return torch.bitwise_or(wide, wide << 4).bitwise_and_(0x0F0F).view(torch.uint8).view(groups)


def multiply(x: Tensor, weight: PackedWeight) -> Tensor:
    """x (..., in) times the weight (out, in), transposed; in x's dtype."""
    return weight.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def multiply_packed(x: Tensor, weight: PackedWeight) -> Tensor:
    """x (..., in) times the weight, transposed, as `PackedWeight.multiply_packed`."""
    return weight.multiply_packed(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def multiply_back(grad: Tensor, weight: PackedWeight) -> Tensor:
    """grad (..., out) times the weight (out, in); in grad's dtype."""
    return weight.multiply_back(grad.reshape(-1, grad.shape[-1])).view(*grad.shape[:-1], -1)


def dequantize(packed: Packed[Tensor], dtype: torch.dtype) -> Tensor:
    """q * scale + bias in float32, as dtype."""
    values = unpack(packed).to(torch.float32)  # in place from here: a broadcasting addcmul is ten times slower
    scales, biases = packed.grid
    values = values.mul_(scales[..., None].float()).add_(biases[..., None].float())
    return values.view(packed.shape).to(dtype)
