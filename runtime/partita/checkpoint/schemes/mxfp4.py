"""MXFP4 as others than MLX keep it, in MLX's layout (`quantization.Packed`), where nothing of it changes.

Forms:
    quant_method "mxfp4"          X_blocks and X_scales (published gpt-oss): tensors under names of their own, from
                                  which `experts.py` takes rows before it repacks them. The name of the method is
                                  enough: its other fields say what is left dense, and the tensors say that too
    GGUF's blocks                 whose bytes have the two halves of a group, and not neighbours (`gguf/blocks.py`)

Not here: MLX's own folders (`mlx_floats`), writing. Invariant: codes and exponents stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...files.safetensors import StoredTensor
from ...quantization import MXFP4, SMALL_FLOATS, Packed
from ...small_floats import check
from .stored import Found, ReadTensor, Scheme

METHOD = "mxfp4"
BITS, GROUP = SMALL_FLOATS[MXFP4]


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`: nothing, since published tensors keep their names."""
    if _is_published(config) and not any(name.endswith("_blocks") for name in tensors):
        raise CheckpointError(f"{where}: config.json says mxfp4, and no tensor holds such blocks")
    return {}


def _is_published(config: Mapping[str, Any]) -> bool:
    """Whether the weights are said to be in blocks, as gpt-oss has them."""
    block: Mapping[str, Any] = config.get("quantization_config") or {}
    return block.get("quant_method") == METHOD


def repack(blocks: np.ndarray, scales: np.ndarray, *, halves: bool = False, what: str = "an MXFP4 tensor") -> Packed:
    """Bytes of 4-bit floats, uint8 (*leading, groups, 16), and exponents e, uint8 (*leading, groups).

    A byte holds values 2j (low half) and 2j + 1 of its group, as on the Hub; with halves, values j and j + 16, as in
    GGUF. Shape of the result: (*leading, 32 * groups). CheckpointError, naming `what`: shapes that do not go together,
    or an exponent out of float32's range.
    """
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8 or blocks.shape != (*scales.shape, GROUP // 2):
        raise CheckpointError(
            f"{what}: MXFP4 blocks {blocks.shape} of {blocks.dtype} do not go with scales {scales.shape} of "
            f"{scales.dtype}"
        )
    *leading, groups = scales.shape
    stream = _neighbours(blocks) if halves else np.ascontiguousarray(blocks)
    words = stream.reshape(*leading, groups * GROUP // 2).view("<u4")
    return check(Packed(words, np.ascontiguousarray(scales), None, BITS, GROUP, MXFP4), what)


def _neighbours(blocks: np.ndarray) -> np.ndarray:
    """Bytes of values j and j + 16 as bytes of neighbours."""
    low, high = blocks & 15, blocks >> 4
    return np.concatenate([half[..., 0::2] | (half[..., 1::2] << 4) for half in (low, high)], -1)


SCHEME = Scheme(find, methods=(METHOD,))
