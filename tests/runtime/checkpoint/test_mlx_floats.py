"""MLX's folders of small floats: every mode, entries of modules, global scales, and those that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError
from partita.quantization import SMALL_FLOATS, Packed, dequantize, quantize_weight

from ...small_floats import small_floats
from .folders import folder, parts

FLOATS = {mode: {"group_size": group, "bits": bits, "mode": mode} for mode, (bits, group) in SMALL_FLOATS.items()}
AFFINE = {"group_size": 64, "bits": 4, "mode": "affine"}
STACK = (3, 4, 64)


def tensors_of(mode: str, *shape: int) -> dict[str, np.ndarray]:
    """One module of small floats beside an affine one."""
    found, affine = small_floats(mode, *shape), quantize_weight(small_values(4, 64), 4, 64)
    return {"model.e.weight": found.weight, "model.e.scales": found.scales} | parts("model.q", affine)


def small_values(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def by_mlx(tensors: dict[str, np.ndarray], mode: str, whole: np.float32 | None = None) -> np.ndarray:
    bits, group = SMALL_FLOATS[mode]
    words, scales = (mx.array(tensors[f"model.e.{part}"]) for part in ("weight", "scales"))
    scale = None if whole is None else mx.array(whole)
    return np.array(mx.dequantize(words, scales, None, group, bits, mode, global_scale=scale, dtype=mx.float32))


BLOCKS = {
    "for all": lambda mode: FLOATS[mode] | {"model.q": AFFINE},
    "of its own": lambda mode: AFFINE | {"model.e": FLOATS[mode]},
    "without bits": lambda mode: AFFINE | {"model.e": {"mode": mode}},
    "by its tensors": lambda mode: AFFINE,
    "against the block": lambda mode: FLOATS["mxfp8" if mode == "mxfp4" else "mxfp4"] | {"model.q": AFFINE},
}


@pytest.mark.parametrize("said", list(BLOCKS))
@pytest.mark.parametrize("mode", list(SMALL_FLOATS))
def test_codes_and_scales_arrive_as_stored(tmp_path: Path, mode: str, said: str) -> None:
    for shape in ((6, 64), STACK):
        tensors = tensors_of(mode, *shape)
        checkpoint = open_checkpoint(folder(tmp_path / f"{len(shape)}", tensors, quantization=BLOCKS[said](mode)))
        assert set(checkpoint.names()) == {"model.e.weight", "model.q.weight"}
        assert checkpoint.shape("model.e.weight") == shape
        assert (checkpoint.stored_as("model.e.weight"), checkpoint.stored_as("model.q.weight")) == (
            mode.upper(),
            "4-bit:64",
        )
        value = checkpoint.read("model.e.weight")
        assert isinstance(value, Packed)
        assert value.format == (mode, *SMALL_FLOATS[mode], False)
        np.testing.assert_array_equal(value.weight, tensors["model.e.weight"])
        np.testing.assert_array_equal(value.scales, tensors["model.e.scales"])
        np.testing.assert_array_equal(dequantize(value), by_mlx(tensors, mode))


def test_a_matrix_with_a_global_scale(tmp_path: Path) -> None:
    scale = np.float32(6 * 448 / 16)  # of a factor that every product with is exact
    for shape, said in (((), True), ((1,), False)):
        tensors: dict[str, Any] = tensors_of("nvfp4", 6, 64)
        tensors["model.e.global_scale"] = np.full(shape, scale, np.float32)
        block = AFFINE | {"model.e": FLOATS["nvfp4"] | ({"global_scale": True} if said else {})}
        checkpoint = open_checkpoint(folder(tmp_path / f"{said}", tensors, quantization=block))
        assert "model.e.global_scale" not in checkpoint.names()
        value = checkpoint.read("model.e.weight")
        assert isinstance(value, Packed)
        np.testing.assert_array_equal(dequantize(value), by_mlx(tensors, "nvfp4", scale))


def test_experts_with_a_global_scale_each(tmp_path: Path) -> None:
    tensors = tensors_of("nvfp4", *STACK)
    scales = tensors["model.e.global_scale"] = np.float32(6 * 448) / np.array([2, 16, 0.5], np.float32)
    value = open_checkpoint(folder(tmp_path / "m", tensors, quantization=BLOCKS["for all"]("nvfp4"))).read(
        "model.e.weight"
    )
    assert isinstance(value, Packed)
    assert value.factors is not None
    assert value.factors.shape == (3, 4, 1)
    for expert, scale in enumerate(scales):
        one = {name: part[expert] for name, part in tensors.items() if name.startswith("model.e.")}
        np.testing.assert_array_equal(dequantize(value)[expert], by_mlx(one, "nvfp4", scale))


DAMAGED: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "scales too long": ("nvfp4", {"scales": np.ones((6, 5), np.uint8)}, ..., "model.e: NVFP4 weight .* scales"),
    "scales too few": ("mxfp4", {"scales": np.ones((5, 2), np.uint8)}, ..., "model.e: MXFP4 weight .* scales"),
    "scales of floats": ("mxfp8", {"scales": np.ones((6, 2), np.float16)}, ..., "MXFP8 weight .* scales .* of F16"),
    "no words": ("mxfp8", {"weight": np.ones((6, 16), np.int32)}, ..., "MXFP8 weight .* of I32"),
    "one axis": (
        "nvfp4",
        {"weight": np.ones(8, np.uint32), "scales": np.ones(4, np.uint8)},
        ...,
        "NVFP4 weight .* scales",
    ),
    "biases": ("nvfp4", {"biases": np.ones((6, 4), np.uint8)}, ..., "model.e: there are biases, which NVFP4"),
    "a global scale elsewhere": ("mxfp4", {"global_scale": np.ones((), np.float32)}, ..., "which MXFP4 does not have"),
    "global scales of rows": ("nvfp4", {"global_scale": np.ones(6, np.float32)}, ..., r"global_scale \(6,\) of F32"),
    "global scales of bytes": ("nvfp4", {"global_scale": np.ones((), np.uint8)}, ..., r"global_scale \(\) of U8"),
    "no global scale": (
        "nvfp4",
        {},
        AFFINE | {"model.e": FLOATS["nvfp4"] | {"global_scale": True}},
        "says that there is a global_scale, and there is none",
    ),
    "other bits": (
        "nvfp4",
        {},
        AFFINE | {"model.e": FLOATS["nvfp4"] | {"bits": 8}},
        "model.e has mode nvfp4, of 4 bits in groups of 16, but its bits and group are 8 and 16",
    ),
    "another group": (
        "mxfp4",
        {},
        FLOATS["mxfp4"] | {"group_size": "32", "model.q": AFFINE},
        "its bits and group are 4 and '32'",
    ),
    "another mode": ("nvfp4", {}, AFFINE | {"model.e": FLOATS["mxfp8"]}, "MXFP8 weight .* scales"),
}


@pytest.mark.parametrize("damage", list(DAMAGED))
def test_tensors_that_do_not_go_together_are_refused(tmp_path: Path, damage: str) -> None:
    mode, changed, block, message = DAMAGED[damage]
    tensors = tensors_of(mode, 6, 64) | {f"model.e.{part}": value for part, value in changed.items()}
    path = folder(tmp_path / "m", tensors, quantization=BLOCKS["of its own"](mode) if block is ... else block)
    with pytest.raises(CheckpointError, match=message) as found:
        open_checkpoint(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("mode", "part", "value", "message"),
    [
        ("nvfp4", "scales", 0x7F, "m: model.e.weight: an NVFP4 scale is NaN"),
        ("nvfp4", "global_scale", np.inf, "m: model.e.weight: a global scale is not finite"),
        ("mxfp4", "scales", 255, "m: model.e.weight: an MXFP4 scale of .* is out of range"),
        ("mxfp8", "weight", 0x7F000000, "m: model.e.weight: a value is NaN"),
    ],
)
def test_numbers_that_are_none_are_refused_when_read(
    tmp_path: Path, mode: str, part: str, value: float, message: str
) -> None:
    tensors = tensors_of(mode, 6, 64)
    if part == "global_scale":
        tensors["model.e.global_scale"] = np.full(1, value, np.float32)
    else:
        tensors[f"model.e.{part}"][2, 1] = value
    checkpoint = open_checkpoint(folder(tmp_path / "m", tensors, quantization=BLOCKS["of its own"](mode)))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read("model.e.weight")
