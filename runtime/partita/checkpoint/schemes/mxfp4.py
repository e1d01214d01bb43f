"""MXFP4 read exactly: a 4-bit float times a power of two is an affine 5-bit integer.

The sixteen values of a 4-bit float (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) are multiples of one half, so
q = 2 v + 12 is an integer from 0 to 24, and v * 2**(e - 127) = q * scale + bias with scale = 2**(e - 128) and
bias = -12 * scale. (OCP Microscaling Formats, version 1.0.) Groups are of 32 values.

Forms in a folder:
    mode "mxfp4" of MLX's block   X.weight in words of eight floats, X.scales of exponents: found here
    quant_method "mxfp4"          X_blocks and X_scales (published gpt-oss): tensors under names of their own, from
                                  which `experts.py` takes rows before it repacks them. The name of the method is
                                  enough: its other fields say what is left dense, and the tensors say that too

Not here: writing the format, GGUF's blocks. Invariant: dequantizing what `repack` gives is exact in float32; only the
sign of a zero is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...files.safetensors import StoredTensor
from ...quantization import Packed, pack
from . import mlx_block
from .stored import Found, ReadTensor, Scheme, StoredWeight

METHOD = MODE = "mxfp4"
BITS, GROUP = 5, 32
_MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)  # twice the eight magnitudes, in the order of their codes
_LARGEST = 251  # of e: beyond it q * scale passes float32's range (and 255 is no number at all)


@dataclass(frozen=True, kw_only=True)
class Mxfp4Weight(StoredWeight):
    """where: the folder's name. scales: the name of the exponents."""

    where: str
    scales: str

    def read(self, tensor: ReadTensor) -> Packed:
        words, scales = tensor(self.name), tensor(self.scales)
        blocks = words.view(np.uint8).reshape(*scales.shape, -1)
        return repack(blocks, scales, what=f"{self.where}: {self.name}")


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`: the weights that MLX's block gives this mode."""
    if _is_published(config) and not any(name.endswith("_blocks") for name in tensors):
        raise CheckpointError(f"{where}: config.json says mxfp4, and no tensor holds such blocks")
    found: Found = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        scales = tensors.get(f"{module}.scales")
        if module == name or scales is None or mlx_block.mode(config, module) != MODE:
            continue
        *lead, words = tensor.shape or (0,)
        *rows, groups = scales.shape or (0,)
        shape = (*lead, words * 8)
        if (tensor.dtype, scales.dtype) != ("U32", "U8") or shape != (*rows, groups * GROUP):
            raise CheckpointError(
                f"{tensor.file}: {module}: MXFP4 weight {tensor.shape} of {tensor.dtype} does not go with scales "
                f"{scales.shape} of {scales.dtype}"
            )
        found[name] = Mxfp4Weight(name=name, shape=shape, stored_as="MXFP4", where=where, scales=f"{module}.scales")
        found |= {f"{module}.scales": None, f"{module}.biases": None}
    return found


def _is_published(config: Mapping[str, Any]) -> bool:
    """Whether the weights are said to be in blocks, as gpt-oss has them."""
    block: Mapping[str, Any] = config.get("quantization_config") or {}
    return block.get("quant_method") == METHOD


def repack(blocks: np.ndarray, scales: np.ndarray, *, halves: bool = False, what: str = "an MXFP4 tensor") -> Packed:
    """Bytes of 4-bit floats, uint8 (*leading, groups, 16), and exponents e, uint8 (*leading, groups), to 5 bits.

    A byte holds values 2j (low half) and 2j + 1 of its group, as on the Hub; with halves, values j and j + 16, as in
    GGUF. Shape of the result: (*leading, 32 * groups); scales in bfloat16, which holds every power of two that float32
    does. Memory beyond the result: one slice of the first axis. CheckpointError, naming `what`: shapes that do not go
    together, or an exponent out of float32's range.
    """
    import ml_dtypes

    if blocks.dtype != np.uint8 or scales.dtype != np.uint8 or blocks.shape != (*scales.shape, GROUP // 2):
        raise CheckpointError(
            f"{what}: MXFP4 blocks {blocks.shape} of {blocks.dtype} do not go with scales {scales.shape} of "
            f"{scales.dtype}"
        )
    if scales.max(initial=0) > _LARGEST:
        raise CheckpointError(f"{what}: an MXFP4 scale of 2**{int(scales.max()) - 127} is out of range")
    *leading, groups = scales.shape
    words = np.empty((*leading, groups * BITS), "<u4")
    integers = _integers()
    for index in np.ndindex(*leading[:1]):
        words[index] = pack(_values(blocks[index], integers, halves), BITS)
    step = np.ldexp(np.float32(1), scales.astype(np.int32) - 128)
    return Packed(
        words,
        step.astype(ml_dtypes.bfloat16),
        (step * np.float32(-12)).astype(ml_dtypes.bfloat16),
        BITS,
        GROUP,
    )


def _integers() -> np.ndarray:
    """q of each 4-bit code, uint8 (16,)."""
    positive = np.array(_MAGNITUDES, np.int8)
    return (np.concatenate([positive, -positive]) + 12).astype(np.uint8)


def _values(blocks: np.ndarray, integers: np.ndarray, halves: bool) -> np.ndarray:
    """q of every value: uint8 (..., groups, 16) to (..., 32 * groups)."""
    byte = np.arange(256)
    low, high = integers[byte & 15], integers[byte >> 4]
    *leading, groups, _ = blocks.shape
    if halves:
        both = np.concatenate([low[blocks], high[blocks]], -1)
    else:
        both = np.stack([low, high], -1).view("<u2")[:, 0][blocks].view(np.uint8)
    return both.reshape(*leading, groups * GROUP)


SCHEME = Scheme(find, methods=(METHOD,), modes=(MODE,))
