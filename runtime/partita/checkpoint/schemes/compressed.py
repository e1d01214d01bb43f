"""compressed-tensors: integers in words or bytes; what its `config_groups` say of these and of 8-bit and 4-bit floats.

Formats, by the tensors of a module X, with `in` and `out` of its matrix (out, in):
    pack-quantized   X.weight_packed int32 (out, in * bits / 32), a stream of bits a row, of q + 2**(bits - 1).
                     X.weight_zero_point (out * bits / 32, groups), packed down each column in the same way; without
                     it zero is zero. X.weight_shape
    int-quantized,   X.weight int8 (out, in). X.weight_zero_point int8, like the scales
    naive-quantized
X.weight_scale is (out, groups), or (out, 1), or one number. `weight_g_idx` (in,), which `actorder` group writes, is the
group of each column; where it is not that of places, the matrix becomes dense (see `integers`).

Which group of the config a module belongs to is not asked: bits and groups follow from the shapes, and where several
would fit from weight_shape. Float forms are found in `fp8` and `fp4`. Not here: activations and caches, which these
files may scale as well: a way of computing, not of storing. Invariants: integers arrive as stored; a form that is not
read is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...files.safetensors import StoredTensor
from ...quantization import unpack
from . import integers
from .config_groups import METHOD, weight_groups
from .fp8 import target_dtype
from .integers import FLOATS, Integers, IntegerWeight
from .stored import Found, ReadTensor, Scheme

_BESIDE = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale", "input_zero_point")


@dataclass(frozen=True, kw_only=True)
class PackedWeight(IntegerWeight):
    """what: the folder and the module, for messages. parts: names of the tensors beside it that there are."""

    what: str
    parts: frozenset[str]

    def integers(self, tensor: ReadTensor) -> Integers:
        module = self.name.removesuffix(".weight")
        (out, size), scales = self.shape, tensor(f"{module}.weight_scale")
        scales = np.broadcast_to(scales.reshape(-1, scales.shape[-1] if scales.ndim == 2 else 1), self._grid(scales))
        if "weight_shape" in self.parts and tensor(f"{module}.weight_shape").tolist() != [out, size]:
            raise CheckpointError(f"{self.what}: weight_shape says another shape than {self.shape}")
        order = None
        if "weight_g_idx" in self.parts:
            index = tensor(f"{module}.weight_g_idx")
            if self.ordered or not (index == -1).all():  # which is how an index that is not used is written
                order = integers.in_order(index, size, self.step, scales.shape[-1], self.what)
            if order is not None and not self.ordered:
                raise CheckpointError(f"{self.what}: weight_g_idx orders columns, and config.json says no actorder")
        return Integers(tensor(f"{module}.weight_packed").view("<u4"), scales, self._zeros(tensor, module), order)

    def _grid(self, scales: np.ndarray) -> tuple[int, int]:
        return self.shape[0], scales.shape[-1] if scales.ndim == 2 else 1

    def _zeros(self, tensor: ReadTensor, module: str) -> np.ndarray | int:
        middle = 1 << (self.bits - 1)
        if "weight_zero_point" not in self.parts:
            return middle
        stored = tensor(f"{module}.weight_zero_point")
        if stored.dtype == np.int8:
            return stored.astype(np.int16) + np.int16(middle)
        words = np.ascontiguousarray(stored.T).view("<u4")
        whole = np.zeros((len(words), -words.shape[1] % self.bits), words.dtype)
        return unpack(np.concatenate([words, whole], -1), self.bits)[:, : self.shape[0]].T


@dataclass(frozen=True, kw_only=True)
class ByteWeight(IntegerWeight):
    """int8. scale, zero: names of the tensors; no zero: zero is zero. factor: what scales are multiplied by."""

    scale: str
    zero: str | None = None
    factor: float = 1.0

    def integers(self, tensor: ReadTensor) -> Integers:
        scales = tensor(self.scale)
        grid = (*self.shape[:-1], self.shape[-1] // self.step)
        if self.factor != 1:
            scales = scales.astype(np.float32) * np.float32(self.factor)
        zeros: np.ndarray | int = 128
        if self.zero is not None:
            stored = tensor(self.zero).astype(np.int16) + np.int16(128)
            zeros = np.broadcast_to(_columns(stored, grid), grid)
        words = np.ascontiguousarray(tensor(self.name)).view(np.uint8) ^ np.uint8(128)
        if whole := -words.shape[-1] % 4:
            words = np.concatenate([words, np.zeros((*words.shape[:-1], whole), np.uint8)], -1)
        return Integers(words.view("<u4"), np.broadcast_to(_columns(scales, grid), grid), zeros)


def _columns(scales: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Scales so that they can be spread over a grid: a number for each row stands in a column."""
    return scales[..., None] if scales.ndim == len(grid) - 1 and scales.ndim else scales


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`. Reads the shapes of modules that could be of several config groups."""
    groups = [group for group in weight_groups(config) if group.get("type", "int") == "int"]
    found: Found = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if not groups or (part, tensor.dtype) not in (("weight_packed", "I32"), ("weight", "I8")):
            continue
        what = f"{where}: {module}"
        beside = {own: tensors[f"{module}.{own}"] for own in _BESIDE if f"{module}.{own}" in tensors}
        if "weight_scale" not in beside or beside["weight_scale"].dtype not in FLOATS:
            raise CheckpointError(f"{what} has integers and no weight_scale in floats beside them")
        make = _bytes if part == "weight" else _packed
        found[f"{module}.weight"] = make(module, tensor, beside, groups, what, config, read)
        found |= {f"{module}.{own}": None for own in beside}
        if part != "weight":
            found[name] = None
    return found


def _packed(
    module: str,
    tensor: StoredTensor,
    beside: Mapping[str, StoredTensor],
    groups: list[Mapping[str, Any]],
    what: str,
    config: Mapping[str, Any],
    read: ReadTensor,
) -> PackedWeight:
    scale = beside["weight_scale"].shape
    if len(tensor.shape) != 2 or len(scale) > 2 or math.prod(scale) == 0:
        raise CheckpointError(f"{what}: weight_packed {tensor.shape} and weight_scale {scale} are not two matrices")
    forms = {form for group in groups if (form := _form(tensor.shape, scale, group)) is not None}
    if len(forms) > 1 and "weight_shape" in beside:
        said = read(f"{module}.weight_shape").tolist()
        forms = {form for form in forms if [tensor.shape[0], form[1]] == said}
    if len(forms) != 1:
        raise CheckpointError(
            f"{what}: weight_packed {tensor.shape} and weight_scale {scale} do not go with one of the config groups"
        )
    (bits, size, step), shape = forms.pop(), tensor.shape
    count = scale[-1] if len(scale) == 2 else 1
    zero = beside.get("weight_zero_point")
    fits = (("I32", (-(-shape[0] * bits // 32), count)), ("I8", (shape[0], count)))
    if zero is not None and (zero.dtype, zero.shape) not in fits:
        raise CheckpointError(f"{what}: weight_zero_point {zero.shape} in {zero.dtype} does not go with {scale}")
    ordered = any(group.get("actorder") in ("group", "dynamic", True) for group in groups)
    if ordered and "weight_g_idx" in beside:
        ordered = integers.in_order(read(f"{module}.weight_g_idx"), size, step, count, what) is not None
    else:
        ordered = False
    return PackedWeight(
        name=f"{module}.weight",
        shape=(shape[0], size),
        stored_as=integers.stored_as(bits, size, step, ordered=ordered),
        bits=bits,
        step=step,
        dtype=target_dtype(config),
        ordered=ordered,
        what=what,
        parts=frozenset(beside),
    )


def _form(packed: tuple[int, ...], scale: tuple[int, ...], group: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(bits, in, columns to a scale) of a matrix in words that a config group describes; None where it is not one."""
    bits, said, count = group.get("num_bits", 8), group.get("group_size"), scale[-1] if len(scale) == 2 else 1
    rows_fit = math.prod(scale) == 1 or scale[0] == packed[0]
    if type(said) is int and said > 0:
        size, step = count * said, said
    else:
        size = step = packed[1] * 32 // bits
        rows_fit = rows_fit and count == 1
    return (bits, size, step) if rows_fit and size and -(-size * bits // 32) == packed[1] else None


def _bytes(
    module: str,
    tensor: StoredTensor,
    beside: Mapping[str, StoredTensor],
    groups: list[Mapping[str, Any]],
    what: str,
    config: Mapping[str, Any],
    read: ReadTensor,
) -> ByteWeight:
    scale, zero = beside["weight_scale"].shape, beside.get("weight_zero_point")
    *lead, size = tensor.shape or (0,)
    rows = math.prod(scale) == 1 or tuple(scale) == tuple(lead)
    count = 1 if rows else scale[-1]
    fits = rows or (scale[:-1] == tuple(lead) and count > 0 and size % count == 0)
    if zero is not None:
        fits = fits and (zero.dtype, zero.shape) == ("I8", scale)
    if not fits or len(tensor.shape) < 2 or not size:
        zeros = "" if zero is None else f" and weight_zero_point {zero.shape} in {zero.dtype}"
        raise CheckpointError(f"{what}: weight {tensor.shape} does not go with weight_scale {scale}{zeros}")
    return byte_weight(
        f"{module}.weight", tensor.shape, size // count, config, f"{module}.weight_scale", zero=zero is not None
    )


def byte_weight(
    name: str,
    shape: tuple[int, ...],
    step: int,
    config: Mapping[str, Any],
    scale: str,
    *,
    zero: bool = False,
    factor: float = 1.0,
) -> ByteWeight:
    """int8 of this name, with the scales of that one."""
    return ByteWeight(
        name=name,
        shape=shape,
        stored_as=integers.stored_as(8, shape[-1], step),
        bits=8,
        step=step,
        dtype=target_dtype(config),
        scale=scale,
        zero=f"{name}_zero_point" if zero else None,
        factor=factor,
    )


SCHEME = Scheme(find, methods=(METHOD,))
