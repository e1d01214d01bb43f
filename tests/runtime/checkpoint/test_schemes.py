"""Folders whose weights are stored in a scheme: MLX's packed layout, MXFP4, and those that are refused by name."""

import numpy as np
import pytest

from partita.checkpoint.open import open_checkpoint
from partita.checkpoint.schemes import registry
from partita.checkpoint.schemes.stored import Scheme, StoredWeight
from partita.errors import CheckpointError, UnsupportedModel
from partita.quantization import Packed, dequantize

from .folders import folder, packed_folder


def test_packed_tensors_keep_their_integers(tmp_path):
    path, expected = packed_folder(tmp_path / "m")
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.names()) == {"model.q.weight", "model.v.weight", "model.norm.weight"}
    for name, packed in expected.items():
        value = checkpoint.read(name)
        assert isinstance(value, Packed)
        assert (value.bits, value.group_size) == (packed.bits, packed.group_size)
        assert checkpoint.shape(name) == value.shape == (4, 64)
        np.testing.assert_array_equal(value.weight, packed.weight)
        np.testing.assert_array_equal(dequantize(value), dequantize(packed))
    assert checkpoint.stored_as("model.v.weight") == "6-bit:32"


@pytest.mark.parametrize("method", ["hqq", "exl3", "quanto"])
def test_other_quantizations_are_named(tmp_path, method):
    path = folder(tmp_path / "m", quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModel, match=method):
        open_checkpoint(path)


def test_unknown_modes_of_mlx_are_named(tmp_path):
    for block in (
        {"group_size": 16, "bits": 4, "mode": "nvfp5"},
        {"group_size": 64, "bits": 4, "model.v": {"group_size": 16, "bits": 4, "mode": "nvfp5"}},
    ):
        path, _ = packed_folder(tmp_path / "m", block)
        with pytest.raises(UnsupportedModel, match="nvfp5"):
            open_checkpoint(path)


def test_an_unknown_mode_is_named_beside_another_method(tmp_path):
    block = {"group_size": 16, "bits": 4, "mode": "nvfp5"}
    path, _ = packed_folder(tmp_path / "m", block, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedModel, match="nvfp5"):
        open_checkpoint(path)


def test_a_scheme_is_a_row(tmp_path, monkeypatch):
    """One that gives a weight a name that no tensor has, as formats with several tensors a weight do."""

    class Doubled(StoredWeight):
        def read(self, tensor):
            return tensor("a.qweight") * tensor("a.zeros")

    def find(tensors, config, where, read):
        return {"a.weight": Doubled(name="a.weight", shape=(3,), stored_as="TWO"), "a.qweight": None, "a.zeros": None}

    path = folder(
        tmp_path / "m",
        {"a.qweight": np.arange(3, dtype=np.int32), "a.zeros": np.full(3, 2, np.int32), "b": np.ones(1, np.float32)},
        quantization_config={"quant_method": "twos"},
    )
    with pytest.raises(UnsupportedModel, match="twos"):
        open_checkpoint(path)
    monkeypatch.setattr(registry, "SCHEMES", (*registry.SCHEMES, Scheme(find, methods=("twos",))))
    checkpoint = open_checkpoint(path)
    assert checkpoint.names() == ("b", "a.weight")
    assert (checkpoint.shape("a.weight"), checkpoint.stored_as("a.weight")) == ((3,), "TWO")
    np.testing.assert_array_equal(checkpoint.read("a.weight"), [0, 2, 4])


def test_mxfp4_needs_its_blocks(tmp_path):
    path = folder(tmp_path / "m", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["x"]})
    with pytest.raises(CheckpointError, match="says mxfp4, and no tensor holds such blocks"):
        open_checkpoint(path)
    blocks = {"m.w_blocks": np.ones((2, 4, 3, 16), np.uint8), "m.w_scales": np.ones((2, 4, 3), np.uint8)}
    checkpoint = open_checkpoint(folder(tmp_path / "m", blocks, quantization_config={"quant_method": "mxfp4"}))
    np.testing.assert_array_equal(checkpoint.read("m.w_blocks"), blocks["m.w_blocks"])


@pytest.mark.parametrize(
    ("block", "drop", "message"),
    [
        ({"group_size": 64, "bits": 4}, "", "model.v: weight .* scales"),
        ({"group_size": 64, "bits": 7}, "", "bits and group are 7 and 64"),
        ({"group_size": 64, "bits": "4"}, "", "bits and group are '4' and 64"),
        ({"group_size": 64, "bits": 4.0}, "", "bits and group are 4.0 and 64"),
        ({"group_size": 64, "bits": 4, "model.v": False}, "", "model.v is packed, but its quantization entry is False"),
        ([1], "", "quantization is not a table"),
        (None, "", "bits and group are None and None"),
        (..., "model.v.biases", "model.safetensors: model.v: .*needs weight, scales and biases"),
    ],
)
def test_packed_tensors_that_do_not_fit(tmp_path, block, drop, message):
    path, _ = packed_folder(tmp_path / "m", block, drop)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)
