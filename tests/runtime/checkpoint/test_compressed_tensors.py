"""Integers as compressed-tensors keeps them: modules that the library compresses, against what it decompresses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.quantization import Packed, dequantize

from .test_fp8 import folder

Tensors = dict[str, torch.Tensor]


def compressed(form: str, *, shape: tuple[int, int] = (64, 256), **args: Any) -> tuple[Tensors, torch.Tensor, Any]:
    """The tensors of a module, what the library makes of them again, and the config of all."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=form)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(args["num_bits"]))
    own, (out, size) = scheme.weights, shape
    step = own.group_size if own.strategy == "group" else size
    groups = weight.reshape(out, -1, step)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), own)
    if own.strategy == "tensor":
        scale, zero = calculate_qparams(weight.min().reshape(1), weight.max().reshape(1), own)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
    library = BaseCompressor.get_value_from_registry(form)
    stored = library.compress(state, scheme)
    values = library.decompress(stored, scheme)["weight"]
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=form, quantization_status="compressed")
    tensors = {f"a.{name}": value.contiguous() for name, value in stored.items()}
    return tensors, values, config.model_dump(mode="json") | {"quant_method": "compressed-tensors"}


def assert_packed(checkpoint: Checkpoint, values: torch.Tensor, bits: int, group: int) -> Packed:
    assert checkpoint.names() == ("a.weight",)
    value = checkpoint.read("a.weight")
    assert isinstance(value, Packed)
    assert value.shape == checkpoint.shape("a.weight") == tuple(values.shape)
    assert checkpoint.stored_as("a.weight") == f"{bits}-bit:{group}"
    # (q - zero) * scale in float32, against q * scale + bias: scales have 24 bits here, so both terms are rounded
    largest = float(np.abs(value.scales).max()) * 2**bits
    np.testing.assert_allclose(dequantize(value), values.numpy(), rtol=0, atol=3 * 2.0**-24 * largest)
    return value


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["group", "channel"])
@pytest.mark.parametrize(("bits", "packed"), [(4, 4), (8, 8), (3, 3), (1, 1), (7, 8)])
def test_pack_quantized(tmp_path, bits, packed, strategy, symmetric):
    group = {"group_size": 64} if strategy == "group" else {}
    args = {"num_bits": bits, "strategy": strategy, "symmetric": symmetric, **group}
    tensors, values, block = compressed("pack-quantized", **args)
    checkpoint = open_checkpoint(folder(tmp_path / "m", tensors, block))
    assert_packed(checkpoint, values, packed, 64 if group else 128)


@pytest.mark.parametrize("form", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["channel", "tensor", "group"])
def test_bytes(tmp_path, strategy, symmetric, form):
    group = {"group_size": 128} if strategy == "group" else {}
    args = {"num_bits": 8, "strategy": strategy, "symmetric": symmetric, **group}
    tensors, values, block = compressed(form, **args)
    tensors["a.input_scale"] = torch.ones(1)
    assert_packed(open_checkpoint(folder(tmp_path / "m", tensors, block)), values, 8, 128)


def test_scales_of_sixteen_bits_keep_every_value(tmp_path):
    tensors, _, block = compressed("pack-quantized", num_bits=4, strategy="group", group_size=32, symmetric=True)
    tensors["a.weight_scale"] = tensors["a.weight_scale"].to(torch.bfloat16)
    value = open_checkpoint(folder(tmp_path / "m", tensors, block)).read("a.weight")
    assert isinstance(value, Packed)
    assert value.scales.dtype.name == value.biases.dtype.name == "bfloat16"
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    scheme = QuantizationScheme(**block["config_groups"]["group_0"])
    stored = {name.removeprefix("a."): part for name, part in tensors.items()}
    stored["weight_scale"] = stored["weight_scale"].float()
    expected = library.decompress(stored, scheme)["weight"]
    np.testing.assert_array_equal(dequantize(value), expected.numpy())


def test_rows_that_no_group_divides_become_dense(tmp_path):
    tensors, values, block = compressed("pack-quantized", num_bits=4, strategy="channel", shape=(8, 40))
    checkpoint = open_checkpoint(folder(tmp_path / "m", tensors, block, dtype="float32"))
    assert (checkpoint.stored_as("a.weight"), checkpoint.shape("a.weight")) == ("INT4", (8, 40))
    np.testing.assert_array_equal(checkpoint.read("a.weight"), values.numpy())


def test_several_config_groups(tmp_path):
    """4 bits in groups of 128 have as many words to a scale as 8 bits in groups of 64: weight_shape says which."""
    four, _, block = compressed("pack-quantized", num_bits=4, strategy="group", group_size=128, shape=(8, 256))
    eight, _, more = compressed("pack-quantized", num_bits=8, strategy="group", group_size=64, shape=(8, 128))
    block["config_groups"]["group_1"] = more["config_groups"]["group_0"]
    tensors = four | {name.replace("a.", "b."): value for name, value in eight.items()}
    checkpoint = open_checkpoint(folder(tmp_path / "m", tensors, block))
    assert checkpoint.stored_as("a.weight") == "4-bit:128"
    assert checkpoint.stored_as("b.weight") == "8-bit:64"
    assert (checkpoint.shape("a.weight"), checkpoint.shape("b.weight")) == ((8, 256), (8, 128))


def ordered(index: torch.Tensor, actorder: str | None) -> tuple[Tensors, torch.Tensor, Any]:
    args = {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": True}
    tensors, _, block = compressed("pack-quantized", **args)
    block["config_groups"]["group_0"]["weights"]["actorder"] = actorder
    tensors["a.weight_g_idx"] = index.to(torch.int32)
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    q = unpack_from_int32(tensors["a.weight_packed"], 4, torch.Size((64, 256)))
    return tensors, q.float() * tensors["a.weight_scale"][:, index.clamp(min=0)], block


def test_ordered_columns_become_dense(tmp_path):
    index = torch.randperm(256, generator=torch.Generator().manual_seed(1)) // 64
    tensors, values, block = ordered(index, "group")
    checkpoint = open_checkpoint(folder(tmp_path / "m", tensors, block, dtype="float32"))
    assert checkpoint.stored_as("a.weight") == "INT4"
    np.testing.assert_array_equal(checkpoint.read("a.weight"), values.numpy())


@pytest.mark.parametrize("index", [torch.arange(256) // 64, torch.full((256,), -1)])
def test_an_order_that_is_none_keeps_integers(tmp_path, index):
    tensors, _, block = ordered(index, None)
    plain, values, _ = compressed("pack-quantized", num_bits=4, strategy="group", group_size=64, symmetric=True)
    assert torch.equal(plain["a.weight_packed"], tensors["a.weight_packed"])
    assert_packed(open_checkpoint(folder(tmp_path / "m", tensors, block)), values, 4, 64)


def changed(change: Tensors, form: str = "pack-quantized", **args: Any) -> tuple[Tensors, Any]:
    given = {"num_bits": 4 if form == "pack-quantized" else 8, "strategy": "group", "group_size": 64} | args
    tensors, _, block = compressed(form, symmetric=False, **given)
    for part, value in change.items():
        tensors[f"a.{part}"] = value
    return {name: value for name, value in tensors.items() if value.numel()}, block


NONE = torch.empty(0)


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("pack-quantized", {"weight_scale": NONE}, "a has integers and no weight_scale"),
        ("pack-quantized", {"weight_scale": torch.ones(64, 4, dtype=torch.int32)}, "no weight_scale in floats"),
        ("pack-quantized", {"weight_scale": torch.ones(64, 5)}, "do not go with one of the config groups"),
        ("pack-quantized", {"weight_scale": torch.ones(3, 4)}, "do not go with one of the config groups"),
        ("pack-quantized", {"weight_packed": torch.ones(64, 33, dtype=torch.int32)}, "do not go with one"),
        ("pack-quantized", {"weight_packed": torch.ones(64, dtype=torch.int32)}, "are not two matrices"),
        ("pack-quantized", {"weight_zero_point": torch.ones(9, 4, dtype=torch.int32)}, "weight_zero_point .* in I32"),
        ("int-quantized", {"weight_scale": torch.ones(64, 3)}, "does not go with weight_scale"),
        ("int-quantized", {"weight_scale": torch.ones(65, 4)}, "does not go with weight_scale"),
        ("int-quantized", {"weight_zero_point": torch.ones(64, 4)}, "weight_zero_point .* in F32"),
        ("int-quantized", {"weight": torch.ones(64, dtype=torch.int8)}, "does not go with weight_scale"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, form, change, words):
    tensors, block = changed(change, form)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder(tmp_path / "m", tensors, block))


def test_another_shape_than_the_file_says(tmp_path):
    tensors, block = changed({"weight_shape": torch.tensor([64, 250])})
    checkpoint = open_checkpoint(folder(tmp_path / "m", tensors, block))
    with pytest.raises(CheckpointError, match="weight_shape says another shape than"):
        checkpoint.read("a.weight")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"format": "marlin-24"}, "format 'marlin-24' are not read"),
        ({"sparsity_config": {"format": "sparse-bitmask"}}, "with a sparsity_config is not read"),
        ({"transform_config": {"config_groups": {"a": 1}}}, "with a transform_config is not read"),
    ],
)
def test_other_forms_are_named(tmp_path, block, words):
    tensors, _, own = compressed("pack-quantized", num_bits=4, strategy="channel")
    with pytest.raises(UnsupportedModel, match=words):
        open_checkpoint(folder(tmp_path / "m", tensors, own | block))


def test_a_config_that_says_that_nothing_is_sparse(tmp_path):
    tensors, values, own = compressed("pack-quantized", num_bits=4, strategy="channel")
    path = folder(tmp_path / "m", tensors, own | {"sparsity_config": {"format": "dense"}})
    assert_packed(open_checkpoint(path), values, 4, 128)


def test_integers_of_nine_bits(tmp_path):
    tensors, _, own = compressed("pack-quantized", num_bits=4, strategy="channel")
    own["config_groups"]["group_0"]["weights"]["num_bits"] = 9
    with pytest.raises(UnsupportedModel, match="type 'int' in 9 bits are not read"):
        open_checkpoint(folder(tmp_path / "m", tensors, own))
