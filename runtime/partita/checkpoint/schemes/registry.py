"""The schemes in which a folder may keep weights, and a folder's weights found by all of them.

Invariant: a quantization that no row announces is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ...files.bounded import is_table
from ...files.safetensors import StoredTensor
from . import affine, bitsandbytes, compressed, fp4, fp8, mlx_block, mlx_floats, mxfp4, qweight, regrouped
from .stored import DenseWeight, Found, ReadTensor, Scheme, StoredWeight

SCHEMES: tuple[Scheme, ...] = (
    *(mxfp4.SCHEME, mlx_floats.SCHEME, affine.SCHEME, fp8.SCHEME),
    *(fp4.SCHEME, compressed.SCHEME, qweight.SCHEME, bitsandbytes.SCHEME, regrouped.SCHEME),
)
"""Their weights are disjoint: a module of MLX's block has one mode, 8-bit floats are no integers, and all else is
announced by a method, of which a config has one."""


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a config.json that announces a quantization of no scheme. mlx-lm writes its block under both keys.

    CheckpointError: a block that is no table. UnsupportedModel names the method or mode that is not read.
    """
    block, other = config.get("quantization"), config.get("quantization_config")
    for value, key in ((block, "quantization"), (other, "quantization_config")):
        if value is not None and not is_table(value):
            raise CheckpointError(f"config.json: {key} is not a table")
    method = None if other is None else other.get("quant_method")
    if method and not any(method in scheme.methods for scheme in SCHEMES):
        raise UnsupportedModel(f"config.json: weights quantized with {method!r} are not read")
    if other and not method and not block:
        raise UnsupportedModel("config.json: quantization_config without quant_method or MLX's quantization block")
    for where, mode in mlx_block.modes(config).items():
        if not any(mode in scheme.modes for scheme in SCHEMES):
            raise UnsupportedModel(f"config.json: quantization mode {mode!r} in {where!r} is not read")


def stored_weights(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor
) -> dict[str, StoredWeight]:
    """Every weight of a folder by name, in the order of `tensors`. where: the folder's name. read: a tensor
    of the files.

    Errors as for `stored.Finder`.
    """
    found: Found = {}
    for scheme in SCHEMES:
        found |= scheme.find(tensors, config, where, read)
    dense = {
        name: DenseWeight(name=name, shape=tensor.shape, stored_as=tensor.dtype) for name, tensor in tensors.items()
    }
    return {name: weight for name, weight in (dense | found).items() if weight is not None}
