"""MLX's packed weights: X.weight in words of integers, with X.scales and X.biases beside it (`quantization.Packed`).

Their bits and group sizes are in MLX's block of config.json. Invariant: integers, scales and biases arrive as stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ...files.bounded import is_table
from ...files.safetensors import StoredTensor
from ...quantization import AFFINE, Packed
from . import mlx_block
from .stored import Found, ReadTensor, Scheme, StoredWeight

BITS = (1, 2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True, kw_only=True)
class AffineWeight(StoredWeight):
    bits: int
    group_size: int

    def read(self, tensor: ReadTensor) -> Packed:
        module = self.name.removesuffix(".weight")
        weight, scales, biases = (tensor(f"{module}.{part}") for part in ("weight", "scales", "biases"))
        return Packed(weight, scales, biases, self.bits, self.group_size)


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`. A weight is packed if it is in words and has scales, and no other mode is given for it."""
    found: Found = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module == name or tensor.dtype != "U32" or f"{module}.scales" not in tensors:
            continue
        if mlx_block.mode_of(tensors, config, module) != AFFINE:
            continue
        found[name] = _weight(name, module, tensors, mlx_block.block(config))
        found |= {f"{module}.scales": None, f"{module}.biases": None}
    return found


def _weight(name: str, module: str, tensors: Mapping[str, StoredTensor], block: Mapping[str, Any]) -> AffineWeight:
    bits, group_size = _quantized_as(block, module)
    weight, scales, biases = tensors[name], tensors[f"{module}.scales"], tensors.get(f"{module}.biases")
    where = f"{weight.file}: {module}"
    if biases is None:
        raise CheckpointError(f"{where}: a packed tensor needs weight, scales and biases")
    *lead, words = weight.shape or (0,)
    expected = (*lead, words * 32 // bits // group_size)
    if scales.shape != expected or biases.shape != expected or words * 32 % (bits * group_size):
        raise CheckpointError(
            f"{where}: weight {weight.shape} at {bits} bits in groups of {group_size} does not go with scales "
            f"{scales.shape} and biases {biases.shape}"
        )
    if scales.dtype not in _FLOATS or biases.dtype not in _FLOATS:
        raise CheckpointError(f"{where}: scales in {scales.dtype} and biases in {biases.dtype} are not floats")
    shape, stored_as = (*lead, words * 32 // bits), f"{bits}-bit:{group_size}"
    return AffineWeight(name=name, shape=shape, stored_as=stored_as, bits=bits, group_size=group_size)


def _quantized_as(block: Mapping[str, Any], module: str) -> tuple[int, int]:
    """(bits, group_size) of one module: its own entry if it is a table, else the block's."""
    own: object = block.get(module, {})
    if own is not True and not is_table(own):
        raise CheckpointError(f"config.json: {module} is packed, but its quantization entry is {own!r}")
    merged = block if own is True else {**block, **own}
    bits, group_size = merged.get("bits"), merged.get("group_size")
    if type(bits) is not int or bits not in BITS or type(group_size) is not int or group_size not in GROUP_SIZES:
        raise CheckpointError(
            f"config.json: {module} is packed, but its bits and group are {bits!r} and {group_size!r}"
        )
    return bits, group_size


SCHEME = Scheme(find, modes=(AFFINE,))
