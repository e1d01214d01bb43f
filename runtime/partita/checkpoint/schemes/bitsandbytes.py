"""bitsandbytes: 4-bit codes of a table of sixteen numbers (nf4, fp4), and int8 with a scale a row.

Forms, by the tensors beside X.weight:
    4 bits   X.weight: two codes a byte, the first in the high half, whatever dtype the bytes are kept in. absmax: a
             multiplier for so many numbers of the flattened matrix; quant_map: the table; quant_state.bitsandbytes__nf4
             or __fp4: JSON with shape, blocksize, dtype. Doubly quantized: absmax is uint8, codes of nested_quant_map,
             times nested_absmax for so many of them, plus nested_offset
    8 bits   X.weight int8, X.SCB: 127 times the scale of each row. weight_format, if there, says that rows are in order

The sixteen numbers of nf4 (arXiv 2305.14314, appendix E) are not evenly spaced: the matrix becomes dense, in the dtype
of its quant_state, as the library computes it. Not here: columns of outliers, which are a way of computing. Invariant:
a table of JSON in a tensor is bounded and checked like a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...files.bounded import is_list, is_table, parse_object
from ...files.safetensors import StoredTensor
from .compressed import byte_weight
from .stored import Found, ReadTensor, Scheme, StoredWeight

METHOD = "bitsandbytes"
_STATE = ".quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_DTYPES = ("float32", "bfloat16", "float16")
_MAX_STATE = 1 << 16
_LARGEST = float(np.finfo(np.float32).max)
_VALUES = 1 << 22  # numbers made float32 at a time


@dataclass(frozen=True, kw_only=True)
class TableWeight(StoredWeight):
    """block: numbers to a multiplier. nested: (multipliers to one of theirs, what is added to them), where they are
    codes too. dtype: of the result."""

    block: int
    nested: tuple[int, float] | None
    dtype: np.dtype

    def read(self, tensor: ReadTensor) -> np.ndarray:
        codes = np.ascontiguousarray(tensor(self.name)).reshape(-1).view(np.uint8)
        table, scales = tensor(f"{self.name}.quant_map"), self._scales(tensor)
        byte = np.arange(256)
        both = np.stack([table[byte >> 4], table[byte & 15]], -1)
        count = math.prod(self.shape)
        result = np.empty(len(codes) * 2, self.dtype)
        step = max(_VALUES // self.block, 1) * self.block
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, count, step):
                part = both[codes[start // 2 : (start + step + 1) // 2]].reshape(-1)
                owner = np.arange(start, start + len(part)) // self.block
                result[start : start + len(part)] = part * scales[np.minimum(owner, len(scales) - 1)]
        return result[:count].reshape(self.shape)

    def _scales(self, tensor: ReadTensor) -> np.ndarray:
        scales = tensor(f"{self.name}.absmax").reshape(-1)
        if self.nested is None:
            return scales
        block, offset = self.nested
        own = tensor(f"{self.name}.nested_absmax").reshape(-1)[np.arange(len(scales)) // block]
        return tensor(f"{self.name}.nested_quant_map")[scales] * own + np.float32(offset)


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`. Reads the tables of JSON that 4-bit weights have, which alone say their shapes."""
    block = config.get("quantization_config")
    if not is_table(block) or block.get("quant_method") != METHOD:
        return {}
    found: Found = {}
    for name in tensors:
        weight, state, kind = name.partition(_STATE)
        if state:
            if kind not in _KINDS:
                raise CheckpointError(f"{where}: {weight} is in bitsandbytes' {kind!r}; nf4 and fp4 are read")
            found[weight] = _table_weight(weight, kind, name, tensors, where, read)
            found |= dict.fromkeys(_beside(weight, kind))
        elif name.endswith(".SCB"):
            module = name.removesuffix(".SCB")
            found[f"{module}.weight"] = _row_weight(module, tensors, config, where, read)
            found |= {name: None, f"{module}.weight_format": None}
    return found


def _beside(weight: str, kind: str) -> tuple[str, ...]:
    parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", f"quant_state.bitsandbytes__{kind}")
    return tuple(f"{weight}.{part}" for part in parts)


def _row_weight(
    module: str, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor
) -> StoredWeight:
    weight, scale = tensors.get(f"{module}.weight"), tensors[f"{module}.SCB"]
    if weight is None or weight.dtype != "I8" or len(weight.shape) != 2 or not weight.shape[1]:
        raise CheckpointError(f"{where}: {module}.SCB goes with a matrix in I8, and {module}.weight is none")
    if scale.dtype != "F32" or scale.shape not in ((weight.shape[0],), (weight.shape[0], 1)):
        raise CheckpointError(
            f"{where}: {module}.SCB {scale.shape} in {scale.dtype} is no F32 of {weight.shape[0]} rows"
        )
    order = tensors.get(f"{module}.weight_format")
    if order is not None and (order.nbytes != 1 or int(read(f"{module}.weight_format").view(np.uint8).reshape(-1)[0])):
        raise CheckpointError(f"{where}: {module}.weight_format says that its rows are not in order, which is not read")
    return byte_weight(f"{module}.weight", weight.shape, weight.shape[1], config, f"{module}.SCB", factor=1 / 127)


def _table_weight(
    name: str, kind: str, state_name: str, tensors: Mapping[str, StoredTensor], where: str, read: ReadTensor
) -> TableWeight:
    what = f"{where}: {name}"
    if tensors[state_name].nbytes > _MAX_STATE:
        raise CheckpointError(f"{what}: a quant_state of {tensors[state_name].nbytes} bytes, the limit is {_MAX_STATE}")
    state = parse_object(read(state_name).tobytes(), f"{what}: quant_state")
    shape, dtype = state.get("shape"), state.get("dtype")
    block = _positive(state, "blocksize", what)
    if block % 2:
        raise CheckpointError(f"{what}: its quant_state has blocksize {block}, which splits bytes")
    if not is_list(shape) or not 0 < len(shape) < 5 or not all(type(n) is int and 0 < n < 1 << 31 for n in shape):
        raise CheckpointError(f"{what}: its quant_state has shape {shape!r}")
    if dtype not in _DTYPES:
        raise CheckpointError(f"{what}: its quant_state has dtype {dtype!r}, not one of {', '.join(_DTYPES)}")
    blocks = -(-math.prod(shape) // block)
    weight = tensors.get(name)
    if weight is None or weight.nbytes != (math.prod(shape) + 1) // 2:
        raise CheckpointError(f"{what}: its bytes are not the codes of shape {tuple(shape)}")
    nested = None
    if f"{name}.nested_absmax" in tensors:
        inner = _positive(state, "nested_blocksize", what)
        nested = inner, _offset(state, what)
        _check(f"{name}.nested_absmax", tensors, "F32", -(-blocks // inner), where)
        _check(f"{name}.nested_quant_map", tensors, "F32", 256, where)
    _check(f"{name}.absmax", tensors, "F32" if nested is None else "U8", blocks, where)
    _check(f"{name}.quant_map", tensors, "F32", 16, where)
    return TableWeight(
        name=name, shape=tuple(shape), stored_as=kind.upper(), block=block, nested=nested, dtype=_dtype(dtype)
    )


def _positive(state: Mapping[str, Any], key: str, what: str) -> int:
    value = state.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise CheckpointError(f"{what}: its quant_state has {key} {value!r}")
    return value


def _offset(state: Mapping[str, Any], what: str) -> float:
    value = state.get("nested_offset")
    if not isinstance(value, int | float) or not abs(value) <= _LARGEST:  # nor is NaN
        raise CheckpointError(f"{what}: its quant_state has nested_offset {value!r}")
    return float(value)


def _check(name: str, tensors: Mapping[str, StoredTensor], dtype: str, count: int, where: str) -> None:
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != dtype or math.prod(tensor.shape) != count:
        found = "is missing" if tensor is None else f"has shape {tensor.shape} in {tensor.dtype}"
        raise CheckpointError(f"{where}: {name} {found}, {count} numbers in {dtype} are needed")


def _dtype(name: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


SCHEME = Scheme(find, methods=(METHOD,))
