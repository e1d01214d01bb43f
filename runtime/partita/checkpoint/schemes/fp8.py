"""Weights kept as 8-bit floats with scales beside them: how a folder says so, and the values that they stand for.

Not here: scaled activations and scaled key-value caches, which are a way of computing and not of storing; the tensors
that only they use are left out of a checkpoint's names. Invariant: a value is `float32(q) * float32(scale)`, rounded
once to the dtype that config.json names (bfloat16 where it names none), which is what transformers and vLLM compute.

Published forms, by `quantization_config`:
    fp8                 X_scale_inv beside X: one multiplier a block of weight_block_size (128 x 128, the last of a row
                        or column cut off), or a row, or a tensor
    fbgemm_fp8          X_scale beside X: one multiplier a row
    compressed-tensors  X_scale beside X: a tensor, a row or a block, by the strategy of each config group
    modelopt            X_scale beside X: a tensor, a row or a block
Multipliers may be exponents, E8M0: 2**(e - 127). They are uint8 where config.json says so: by `scale_fmt` ue8m0, the
format mxfp8-quantized, or modelopt, which have them for blocks of 32 columns.
The block form is DeepSeek-V3's (arXiv 2412.19437, section 3.3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...files.bounded import is_list, is_table
from ...files.safetensors import StoredTensor
from .config_groups import weight_groups
from .fp4 import MODELOPT, is_modelopt
from .stored import Found, ReadTensor, Scheme, StoredWeight

METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", *MODELOPT)
STORED = ("F8_E4M3", "F8_E5M2")
_SCALES = ("F32", "BF16", "F16", "F8_E8M0")
_SUFFIXES = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "k_scale", "v_scale", "output_scale", "q_scale")
_EXPONENTS = "U8"
_MX = (1, 32)  # blocks of microscaled floats
_ROWS = 1 << 22  # values made float32 at a time
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Fp8Weight(StoredWeight):
    """scale: the name of the multipliers, None where the values stand for themselves. block: (rows, columns) of one.
    dtype: of the values."""

    scale: str | None
    block: tuple[int, int]
    dtype: np.dtype

    def read(self, tensor: ReadTensor) -> np.ndarray:
        multipliers = None if self.scale is None else tensor(self.scale)
        if multipliers is not None and multipliers.dtype == np.uint8:
            multipliers = multipliers.view(_exponents())
        return dequantize(tensor(self.name), multipliers, self.block, self.dtype)


def _exponents() -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.float8_e8m0fnu)


def is_fp8(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that weights are 8-bit floats in a form read here. Errors as for `weight_groups`."""
    block = config.get("quantization_config")
    if not is_table(block) or block.get("quant_method") not in METHODS:
        return False
    if block["quant_method"] == "compressed-tensors":
        return any((group.get("type"), group.get("num_bits")) == ("float", 8) for group in weight_groups(config))
    return block["quant_method"] not in MODELOPT or is_modelopt(config)


def has_exponents(config: Mapping[str, Any]) -> bool:
    """Whether multipliers in uint8 are exponents."""
    block = config.get("quantization_config")
    if not is_table(block) or not is_fp8(config):
        return False
    groups = block.get("config_groups")
    formats = [
        block.get("format"),
        *(group.get("format") for group in (groups.values() if is_table(groups) else ()) if is_table(group)),
    ]
    return block.get("scale_fmt") == "ue8m0" or "mxfp8-quantized" in formats or block["quant_method"] in MODELOPT


def block_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size of a block that config.json gives, (rows, columns), or None."""
    if not is_fp8(config):
        return None
    block = config["quantization_config"]
    size: Any = block.get("weight_block_size")
    if block["quant_method"] == "compressed-tensors":
        sizes = [group.get("block_structure") for group in weight_groups(config)]
        size = next((found for found in sizes if found is not None), None)
    if size is None:
        return _MX if has_exponents(config) else None
    if not is_list(size) or len(size) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in size):
        raise CheckpointError(f"config.json: weight_block_size is {size!r}, not two sizes")
    return size[0], size[1]


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`: the 8-bit floats. No weights of their own are the multipliers, and tensors that only scaled
    activations use.

    CheckpointError: a scale that is missing in a quantized model, or does not go with its weight.
    """
    quantized, block, exponents = is_fp8(config), block_of(config), has_exponents(config)
    found: Found = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED or name.endswith(_SUFFIXES):
            continue
        scale = next((name + suffix for suffix in _SUFFIXES if name + suffix in tensors), None)
        if scale is None and quantized:
            raise CheckpointError(f"{where}: {name} has no {name}_scale_inv or {name}_scale beside it")
        found[name] = Fp8Weight(
            name=name,
            shape=tensor.shape,
            stored_as=tensor.dtype,
            scale=scale,
            block=_block(name, tensor.shape, tensors[scale], block, where, exponents) if scale else (1, 1),
            dtype=target_dtype(config),
        )
        if scale is not None:
            found[scale] = None
    if found:
        found |= {name: None for name in tensors if name.rpartition(".")[2] in _OF_ACTIVATIONS}
    return found


def _block(
    name: str, shape: tuple[int, ...], scale: StoredTensor, block: tuple[int, int] | None, where: str, exponents: bool
) -> tuple[int, int]:
    """Rows and columns that share a multiplier. A grid of multipliers has one place a block, cut-off ones included."""
    rows, columns = shape[-2:] if len(shape) > 1 else (1, *shape, 1)[:2]
    if scale.dtype not in _SCALES and not (exponents and scale.dtype == _EXPONENTS):
        raise CheckpointError(f"{where}: the scales of {name} are in {scale.dtype}, not floats")
    if all(size == 1 for size in scale.shape):
        return max(rows, 1), max(columns, 1)
    *lead, high, wide = scale.shape if len(scale.shape) > 1 else (*scale.shape, 1)
    if tuple(lead) == shape[:-2] and len(shape) > 1:
        if (high, wide) == (rows, 1):
            return 1, max(columns, 1)
        if (high, wide) == (1, 1):  # stacked experts, one multiplier each
            return max(rows, 1), max(columns, 1)
        if block is not None and (high, wide) == (-(-rows // block[0]), -(-columns // block[1])):
            return block
    raise CheckpointError(
        f"{where}: {name} of shape {shape} does not go with scales of shape {scale.shape} in blocks of {block}"
    )


def target_dtype(config: Mapping[str, Any]) -> np.dtype:
    """The dtype of the values: the one in config.json, else bfloat16."""
    import ml_dtypes

    text = config.get("text_config")
    named = [
        table.get(key)
        for table in ((config, text) if is_table(text) else (config,))
        for key in ("dtype", "torch_dtype")
    ]
    name = next((name for name in named if name in _DTYPES), "bfloat16")
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def dequantize(q: np.ndarray, scale: np.ndarray | None, block: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """The values of `q` (*lead, rows, columns), float8, as `dtype`. scale: the multipliers as stored, None for none.

    Works on some rows at a time, so that memory holds little more than the result.
    """
    if scale is None:
        return q.astype(np.float32).astype(dtype)
    matrix = q.reshape(-1, *(q.shape[-2:] if q.ndim > 1 else (1, q.size)))
    lead, rows, columns = map(int, matrix.shape)
    grid = scale.astype(np.float32).reshape(-1, -(-rows // block[0]), -(-columns // block[1]))
    grid = np.broadcast_to(grid, (lead, *grid.shape[1:]))
    result = np.empty(matrix.shape, dtype)
    step = max(1, _ROWS // max(columns, 1) // block[0]) * block[0]
    of_column = np.arange(columns) // block[1]
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(lead):
            for start in range(0, rows, step):
                part = matrix[i, start : start + step].astype(np.float32)
                of_row = np.arange(start, start + len(part)) // block[0]
                part *= grid[i][of_row[:, None], of_column]
                result[i, start : start + step] = part
    return result.reshape(q.shape)


SCHEME = Scheme(find, methods=METHODS)
