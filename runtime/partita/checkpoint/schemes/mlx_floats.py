"""MLX's weights of small floats: X.weight in words of codes, X.scales of one byte a group, no biases, and in mode
"nvfp4" perhaps X.global_scale (`quantization.Packed`).

MLX's global scale is the largest magnitude of a tensor, 6 * 448 times what values are multiplied by: one for a matrix,
or one for each of a stack's experts. Not here: what codes stand for. Invariant: codes and scales arrive as stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...files.safetensors import StoredTensor
from ...quantization import NVFP4, SMALL_FLOATS, Packed
from ...small_floats import check
from . import mlx_block
from .stored import Found, ReadTensor, Scheme, StoredWeight

GLOBAL = np.float32(6 * 448)
"""The largest E2M1 times the largest E4M3."""


def global_scales(factors: np.ndarray) -> np.ndarray:
    """MLX's global scales, float32 (experts,), that give these factors of rows (experts, rows, 1) when they are read;
    of several the one with the shortest fraction, as those of 16-bit weights have it. Some factors come from none: then
    the nearest."""
    wanted = factors[:, 0, 0]
    near = wanted * GLOBAL
    found, shortest = near.copy(), np.full(len(near), -1)
    for candidate in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
        bits = candidate.view(np.uint32)
        zeros = np.log2((bits & -bits.astype(np.int64)) | (bits == 0), dtype=np.float64)
        better = (candidate / GLOBAL == wanted) & (zeros > shortest)
        found, shortest = np.where(better, candidate, found), np.where(better, zeros, shortest)
    return found.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class FloatsWeight(StoredWeight):
    """where: the folder's name. scaled: whether there is a global scale."""

    mode: str
    where: str
    scaled: bool

    def read(self, tensor: ReadTensor) -> Packed:
        module = self.name.removesuffix(".weight")
        bits, group_size = SMALL_FLOATS[self.mode]
        factors = self._factors(tensor(f"{module}.global_scale")) if self.scaled else None
        packed = Packed(tensor(self.name), tensor(f"{module}.scales"), None, bits, group_size, self.mode, factors)
        return check(packed, f"{self.where}: {self.name}")

    def _factors(self, scales: np.ndarray) -> np.ndarray:
        """One for each row, (*leading, 1)."""
        *lead, rows, _ = self.shape
        each = (scales.astype(np.float32) / GLOBAL).reshape(*lead, 1, 1)
        return np.ascontiguousarray(np.broadcast_to(each, (*lead, rows, 1)))


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`: the weights of MLX's block in one of these modes."""
    found: Found = {}
    for name in tensors:
        module = name.removesuffix(".weight")
        if module == name or f"{module}.scales" not in tensors:
            continue
        mode = mlx_block.mode_of(tensors, config, module)
        if mode not in SMALL_FLOATS:
            continue
        found[name] = _weight(name, module, mode, tensors, mlx_block.table(config, module), where)
        found |= {f"{module}.{part}": None for part in ("scales", "global_scale")}
    return found


def _weight(
    name: str, module: str, mode: str, tensors: Mapping[str, StoredTensor], own: Mapping[str, Any], where: str
) -> FloatsWeight:
    (bits, group_size), weight, scales = SMALL_FLOATS[mode], tensors[name], tensors[f"{module}.scales"]
    what = f"{weight.file}: {module}"
    said = own.get("bits", bits), own.get("group_size", group_size)
    if own.get("mode") == mode and said != (bits, group_size):
        raise CheckpointError(
            f"config.json: {module} has mode {mode}, of {bits} bits in groups of {group_size}, but its bits and group "
            f"are {said[0]!r} and {said[1]!r}"
        )
    *lead, words = weight.shape or (0,)
    shape, (*rows, groups) = (*lead, words * 32 // bits), scales.shape or (0,)
    if (weight.dtype, scales.dtype) != ("U32", "U8") or shape != (*rows, groups * group_size) or not lead:
        raise CheckpointError(
            f"{what}: {mode.upper()} weight {weight.shape} of {weight.dtype} does not go with scales "
            f"{scales.shape} of {scales.dtype}"
        )
    if f"{module}.biases" in tensors:
        raise CheckpointError(f"{what}: there are biases, which {mode.upper()} does not have")
    scaled = _has_global(module, mode, shape, tensors, own, what)
    return FloatsWeight(name=name, shape=shape, stored_as=mode.upper(), mode=mode, where=where, scaled=scaled)


def _has_global(
    module: str,
    mode: str,
    shape: tuple[int, ...],
    tensors: Mapping[str, StoredTensor],
    own: Mapping[str, Any],
    what: str,
) -> bool:
    whole = tensors.get(f"{module}.global_scale")
    if whole is None:
        if own.get("global_scale"):
            raise CheckpointError(f"{what}: config.json says that there is a global_scale, and there is none")
        return False
    if mode != NVFP4:
        raise CheckpointError(f"{what}: there is a global_scale, which {mode.upper()} does not have")
    fits = whole.shape == shape[:-2] or (len(shape) == 2 and whole.shape == (1,))
    if not fits or whole.dtype not in ("F32", "BF16", "F16"):
        raise CheckpointError(
            f"{what}: global_scale {whole.shape} of {whole.dtype} does not go with NVFP4 weight {shape}"
        )
    return True


SCHEME = Scheme(find, modes=tuple(SMALL_FLOATS))
