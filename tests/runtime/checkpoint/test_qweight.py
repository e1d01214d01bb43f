"""Weights as GPTQ, AWQ and auto-round keep them: integers, zero points and scales against writers of a few lines, and
what does not fit or is not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.quantization import Packed, dequantize, unpack

from ...stored_integers import Whole, awq, gptq, rounded, stream
from .folders import folder

RNG = np.random.default_rng(11)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}


def whole(bits: int, group: int, *, size: int = 256, out: int = 64, **how: Any) -> Whole:
    return rounded(RNG.standard_normal((out, size)).astype(np.float32), bits, group, **how)


def opened(path: Path, tensors: dict[str, np.ndarray], block: dict[str, Any], **config: Any) -> Checkpoint:
    return open_checkpoint(folder(path, tensors, quantization_config=block, **config))


def assert_packed(checkpoint: Checkpoint, expected: Whole, bits: int, group: int) -> None:
    value = checkpoint.read("a.weight")
    assert isinstance(value, Packed)
    assert (value.bits, value.group_size) == (bits, group)
    assert checkpoint.shape("a.weight") == value.shape == expected.q.shape
    assert checkpoint.stored_as("a.weight") == f"{bits}-bit:{group}"
    assert checkpoint.names() == ("a.weight",)
    np.testing.assert_array_equal(unpack(value.weight, bits), expected.q)
    np.testing.assert_array_equal(dequantize(value), expected.values)


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_keeps_its_integers(tmp_path, bits, symmetric, form):
    expected = whole(bits, 64, symmetric=symmetric)
    tensors = gptq("a", expected, bits, less=1 if form == "gptq" else 0)
    checkpoint = opened(tmp_path / "m", tensors, GPTQ | {"checkpoint_format": form})
    assert_packed(checkpoint, expected, bits, 64)
    if symmetric:  # a zero point that is a power of two makes biases that float16 holds
        assert checkpoint.read("a.weight").biases.dtype == np.float16


def test_three_bits_by_the_words_of_the_specification():
    """Ten integers and the low bits of the eleventh; its high bit, ten, the low bit of the 22nd; its high ones, ten."""
    q = RNG.integers(0, 8, 32).tolist()
    words = [
        sum(q[i] << 3 * i for i in range(10)) | (q[10] & 3) << 30,
        q[10] >> 2 | sum(q[11 + i] << 3 * i + 1 for i in range(10)) | (q[21] & 1) << 31,
        q[21] >> 1 | sum(q[22 + i] << 3 * i + 2 for i in range(10)),
    ]
    np.testing.assert_array_equal(stream(np.array([q], np.uint8), 3).view("<u4")[0], np.array(words, np.uint32))


@pytest.mark.parametrize(("group", "packed"), [(32, 32), (64, 64), (128, 128), (256, 128), (96, 32)])
def test_a_scale_stands_beside_each_group_that_shares_it(tmp_path, group, packed):
    """96: the last group is cut off."""
    expected = whole(4, group, size=256 if group == 96 else 512)
    assert_packed(opened(tmp_path / "m", gptq("a", expected, 4), GPTQ | {"group_size": group}), expected, 4, packed)


def test_one_scale_a_row(tmp_path):
    expected = whole(4, 192, size=192)
    checkpoint = opened(tmp_path / "m", gptq("a", expected, 4), GPTQ | {"group_size": -1, "desc_act": True})
    assert_packed(checkpoint, expected, 4, 64)


def test_bits_are_those_of_the_tensors(tmp_path):
    """Some layers may have others than config.json names for all, by patterns that are not read."""
    expected = whole(8, 128)
    assert_packed(opened(tmp_path / "m", gptq("a", expected, 8), GPTQ), expected, 8, 128)


def test_groups_of_sixteen_become_dense(tmp_path):
    expected = whole(4, 16)
    checkpoint = opened(tmp_path / "m", gptq("a", expected, 4), GPTQ | {"group_size": 16}, dtype="float32")
    assert checkpoint.stored_as("a.weight") == "INT4"
    np.testing.assert_array_equal(checkpoint.read("a.weight"), expected.values)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ordered_columns_become_dense(tmp_path, dtype):
    expected = whole(4, 64, seed=5)
    checkpoint = opened(tmp_path / "m", gptq("a", expected, 4), GPTQ | {"desc_act": True}, torch_dtype=dtype)
    assert checkpoint.stored_as("a.weight") == "INT4"
    np.testing.assert_array_equal(checkpoint.read("a.weight"), expected.values.astype(dtype))


def test_an_order_that_is_that_of_places_keeps_integers(tmp_path):
    expected = whole(4, 64)
    assert_packed(opened(tmp_path / "m", gptq("a", expected, 4), GPTQ | {"desc_act": True}), expected, 4, 64)


@pytest.mark.parametrize("group", [32, 128])
def test_awq_keeps_its_integers(tmp_path, group):
    expected = whole(4, group)
    assert_packed(opened(tmp_path / "m", awq("a", expected), AWQ | {"group_size": group}), expected, 4, group)


@pytest.mark.parametrize(
    ("packing", "tensors"),
    [
        ("auto_round:auto_gptq", lambda w: gptq("a", w, 4)),
        ("auto_round:gptqmodel", lambda w: gptq("a", w, 4, less=0)),
        ("auto_round", lambda w: gptq("a", w, 4, less=0)),
        ("auto_round:auto_awq", lambda w: awq("a", w)),
    ],
)
def test_auto_round_writes_either(tmp_path, packing, tensors):
    expected = whole(4, 128)
    block = {"quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": 128, "sym": False}
    assert_packed(opened(tmp_path / "m", tensors(expected), block), expected, 4, 128)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (AWQ | {"version": "gemv"}, "awq weights of version 'gemv' are not read"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' are not read"),
        ({"quant_method": "auto-round"}, "packing_format 'None' are not read"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:exl"}, "'auto_round:exl' are not read"),
    ],
)
def test_other_layouts_are_named(tmp_path, block, words):
    with pytest.raises(UnsupportedModel, match=words):
        opened(tmp_path / "m", awq("a", whole(4, 64)), block)


def changed(change: dict[str, Any], **how: Any) -> dict[str, np.ndarray]:
    tensors = gptq("a", whole(4, 64, **how), 4)
    for part, value in change.items():
        tensors[f"a.{part}"] = value
    return {name: value for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qzeros": None}, "a has a qweight and no qzeros"),
        ({"scales": None}, "a has a qweight and no scales"),
        ({"scales": np.ones((5, 64), np.float16)}, "does not go with qzeros .* and scales"),
        ({"scales": np.ones((4, 64), np.int32)}, "a.scales of shape .* in I32 is not a matrix in F16"),
        ({"qzeros": np.ones((4, 9), np.int32)}, "does not go with"),
        ({"qweight": np.ones((3, 64), np.int32)}, "does not go with|is not for"),
        ({"qweight": np.ones((0, 64), np.int32)}, "does not go with"),
        ({"qweight": np.ones(64, np.int32)}, "is not a matrix in I32"),
        ({"g_idx": np.zeros(7, np.int32)}, "a.g_idx of shape .* is not for 256 columns"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, words):
    with pytest.raises(CheckpointError, match=words):
        opened(tmp_path / "m", changed(change), GPTQ)


def test_a_group_that_there_is_not(tmp_path):
    index = np.arange(256, dtype=np.int32) // 64
    with pytest.raises(CheckpointError, match="do not take their scales from 4 groups"):
        opened(tmp_path / "m", changed({"g_idx": index + 1}), GPTQ | {"desc_act": True})
    checkpoint = opened(tmp_path / "n", changed({"g_idx": index[::-1].copy()}), GPTQ)
    with pytest.raises(CheckpointError, match=r"g_idx orders columns, and config\.json says desc_act false"):
        checkpoint.read("a.weight")


def test_a_folder_without_any(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json says awq, and no tensor is a qweight"):
        opened(tmp_path / "m", {"a.weight": np.ones((2, 2), np.float32)}, AWQ)
