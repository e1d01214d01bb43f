"""Writers of integers as GPTQ and AWQ keep them, in a few lines after their specifications; and what they stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ: output AWQ_ORDER[i] of eight is at bits 4 i of a word


@dataclass(frozen=True)
class Whole:
    """q, uint8 (out, in); zeros, uint8, and scales, float16, both (out, groups); index: the group of each column."""

    q: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    index: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """float32 (out, in)."""
        q = self.q.astype(np.float32) - self.zeros[:, self.index].astype(np.float32)
        return q * self.scales[:, self.index].astype(np.float32)


def rounded(weight: np.ndarray, bits: int, group: int, *, symmetric: bool = False, seed: int | None = None) -> Whole:
    """Minimum and maximum of each group, or its largest magnitude. seed: of an order of columns; None: as they are."""
    size, top = weight.shape[1], 2**bits - 1
    index = np.arange(size) // group
    if seed is not None:
        index = np.random.default_rng(seed).permutation(index)
    zeros = np.empty((len(weight), index.max() + 1), np.uint8)
    scales = np.empty(zeros.shape, np.float16)
    for g in range(zeros.shape[1]):
        own = weight[:, index == g]
        low, high = np.minimum(own.min(1), 0), np.maximum(own.max(1), 0)
        if symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[:, g] = (high - low) / top
        middle = np.full(len(own), 2 ** (bits - 1)) if symmetric else np.rint(-low / scales[:, g].astype(np.float32))
        zeros[:, g] = np.clip(middle, 1, top)  # version 1 of GPTQ's files has no zero point of 0
    q = np.rint(weight / scales[:, index].astype(np.float32)) + zeros[:, index]
    return Whole(np.clip(q, 0, top).astype(np.uint8), zeros, scales, index)


def stream(q: np.ndarray, bits: int) -> np.ndarray:
    """Rows of integers to int32 words, each row one stream of bits from the low end on."""
    each = (q[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    flat = each.reshape(len(q), -1)
    flat = np.concatenate([flat, np.zeros((len(q), -flat.shape[1] % 32), flat.dtype)], 1)
    return np.packbits(flat, axis=1, bitorder="little").view("<i4")


def gptq(module: str, whole: Whole, bits: int, *, less: int = 1) -> dict[str, np.ndarray]:
    return {
        f"{module}.qweight": np.ascontiguousarray(stream(whole.q, bits).T),
        f"{module}.qzeros": stream(np.ascontiguousarray((whole.zeros - np.uint8(less)).T), bits),
        f"{module}.scales": np.ascontiguousarray(whole.scales.T),
        f"{module}.g_idx": whole.index.astype(np.int32),
    }


def awq(module: str, whole: Whole) -> dict[str, np.ndarray]:
    def words(x: np.ndarray) -> np.ndarray:
        eights = x.reshape(len(x), -1, 8)[..., list(AWQ_ORDER)]
        return stream(eights.reshape(len(x), -1), 4)

    return {
        f"{module}.qweight": words(np.ascontiguousarray(whole.q.T)),
        f"{module}.qzeros": words(np.ascontiguousarray(whole.zeros.T)),
        f"{module}.scales": np.ascontiguousarray(whole.scales.T),
    }


Stored = Callable[[str, np.ndarray], tuple[dict[str, np.ndarray], np.ndarray]]
"""(module, its matrix) to the tensors that stand for it, and the values that they stand for."""


def folders(source: Path, place: Path, block: dict[str, Any], store: Stored) -> tuple[Path, Path]:
    """A model whose projections are stored so, and the same with the dense values of them."""
    quantized, dense = place / "quantized", place / "dense"
    for path in (quantized, dense):
        shutil.copytree(source, path)
    tensors = load_file(source / "model.safetensors")
    stored: dict[str, np.ndarray] = {}
    for name, value in list(tensors.items()):
        if name.endswith("_proj.weight"):
            parts, tensors[name] = store(name.removesuffix(".weight"), value)
            stored |= parts
        else:
            stored[name] = value
    save_file({name: np.ascontiguousarray(value) for name, value in stored.items()}, quantized / "model.safetensors")
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()},
              dense / "model.safetensors", {"format": "pt"})  # fmt: skip
    config = json.loads((source / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps(config | {"quantization_config": block}))
    return quantized, dense
