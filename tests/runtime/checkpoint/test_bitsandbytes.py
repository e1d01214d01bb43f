"""bitsandbytes' weights, which the library itself writes on a CPU, against what it makes of them again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes import functional

from partita.checkpoint.open import open_checkpoint
from partita.checkpoint.schemes import bitsandbytes
from partita.errors import CheckpointError
from partita.quantization import Packed, dequantize, unpack

from .test_fp8 import folder

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True}
Tensors = dict[str, torch.Tensor]


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def four(
    kind: str,
    *,
    shape: tuple[int, ...] = (48, 128),
    nested: bool = True,
    dtype: torch.dtype = torch.float32,
    **how: Any,
) -> tuple[Tensors, torch.Tensor]:
    """A module's tensors as they are saved, and their values."""
    codes, state = functional.quantize_4bit(
        weight(*shape).to(dtype), quant_type=kind, compress_statistics=nested, blocksize=64, **how
    )
    saved = {f"a.weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    return saved | {"a.weight": codes}, functional.dequantize_4bit(codes, state)


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits(tmp_path, kind, nested, storage):
    tensors, values = four(kind, nested=nested, quant_storage=storage)
    checkpoint = open_checkpoint(folder(tmp_path / "m", tensors, FOUR))
    assert (checkpoint.names(), checkpoint.shape("a.weight")) == (("a.weight",), (48, 128))
    assert checkpoint.stored_as("a.weight") == kind.upper()
    found = checkpoint.read("a.weight")
    # one product; of nested multipliers one more and a sum, whose terms have the size of the largest
    largest = float(values.abs().max())
    np.testing.assert_allclose(found, values.numpy(), rtol=0, atol=(4 if nested else 0) * 2.0**-24 * largest)


def test_the_dtype_of_the_state(tmp_path):
    tensors, values = four("nf4", nested=False, dtype=torch.bfloat16)
    found = open_checkpoint(folder(tmp_path / "m", tensors, FOUR)).read("a.weight")
    assert found.dtype.name == "bfloat16"
    np.testing.assert_array_equal(found.astype(np.float32), values.float().numpy())


def test_a_large_tensor_is_read_in_parts(tmp_path, monkeypatch):
    tensors, values = four("nf4", nested=False, shape=(33, 45))
    monkeypatch.setattr(bitsandbytes, "_VALUES", 256)
    found = open_checkpoint(folder(tmp_path / "m", tensors, FOUR)).read("a.weight")
    np.testing.assert_array_equal(found, values.numpy())


def eight(*shape: int) -> Tensors:
    q, scale, _ = functional.int8_vectorwise_quant(weight(*shape).to(torch.float16))
    return {"a.weight": q, "a.SCB": scale, "a.weight_format": torch.tensor(0, dtype=torch.uint8)}


def test_eight_bits(tmp_path):
    tensors = eight(48, 128)
    checkpoint = open_checkpoint(folder(tmp_path / "m", tensors, EIGHT))
    assert (checkpoint.names(), checkpoint.stored_as("a.weight")) == (("a.weight",), "8-bit:128")
    value = checkpoint.read("a.weight")
    assert isinstance(value, Packed)
    np.testing.assert_array_equal(unpack(value.weight, 8), tensors["a.weight"].numpy().astype(np.int16) + 128)
    expected = tensors["a.weight"].float() * (tensors["a.SCB"] / 127)[:, None]
    np.testing.assert_allclose(dequantize(value), expected, rtol=0, atol=4 * 256 * 2.0**-24 * float(value.scales.max()))


def changed_state(**change: Any) -> Tensors:
    tensors, _ = four("nf4")
    name = "a.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(tensors[name].tolist()))
    tensors[name] = torch.tensor(list(json.dumps(state | change).encode()), dtype=torch.uint8)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (changed_state(shape=[48, 129]), "its bytes are not the codes of shape"),
        (changed_state(shape=[1 << 40, 1 << 40]), "its quant_state has shape"),
        (changed_state(shape=None), "its quant_state has shape None"),
        (changed_state(blocksize=0), "its quant_state has blocksize 0"),
        (changed_state(blocksize=63), "its quant_state has blocksize 63"),
        (changed_state(blocksize=128), "a.weight.absmax has shape"),
        (changed_state(nested_blocksize=2), "nested_absmax has shape"),
        (changed_state(nested_offset=float("nan")), "its quant_state has nested_offset nan"),
        (changed_state(nested_offset=10**400), "its quant_state has nested_offset 1000"),
        (changed_state(dtype="int8"), "its quant_state has dtype 'int8'"),
        (four("nf4")[0] | {"a.weight.quant_map": torch.ones(15)}, "16 numbers in F32 are needed"),
        (four("nf4")[0] | {"a.weight.nested_quant_map": torch.ones(255)}, "256 numbers in F32 are needed"),
        (four("nf4")[0] | {"a.weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8)}, "not JSON"),
        (four("nf4")[0] | {"b.weight.quant_state.bitsandbytes__int4": torch.ones(9)}, "b.weight is in .* 'int4'"),
        (eight(4, 8) | {"a.SCB": torch.ones(5)}, "is no F32 of 4 rows"),
        (eight(4, 8) | {"a.weight": torch.ones(4, 8)}, "goes with a matrix in I8"),
        (eight(4, 8) | {"a.weight_format": torch.tensor(2, dtype=torch.uint8)}, "rows are not in order"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tensors, words):
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder(tmp_path / "m", tensors, FOUR))
