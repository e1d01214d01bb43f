"""Every block type that the gguf package can dequantize: random valid blocks decode to the package's own numbers."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest

from partita.checkpoint.gguf.blocks import AFFINE, decode
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.quantization import Packed, dequantize

from .gguf_files import Llama

Type = gguf.GGMLQuantizationType
DENSE = ["F32", "F16", "BF16"]

# where a block keeps its float16 numbers, in bytes from its begin; other bytes may be anything
HALVES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "MXFP4": (),  # a byte for the exponent
    "NVFP4": (),  # four of 8-bit floats
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
    "IQ1_M": (),  # a float16 in the high bits of four words
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}


def blocks(name: str, rows: int, columns: int) -> np.ndarray:
    """uint8 (rows, bytes), the numbers that scale a block moderate."""
    values, size = gguf.GGML_QUANT_SIZES[Type[name]]
    random = np.random.default_rng(list(HALVES).index(name))
    raw = random.integers(0, 256, (rows, columns // values, size)).astype(np.uint8)
    for offset in HALVES[name]:
        scales = (random.standard_normal(raw.shape[:2]) * 0.1).astype("<f2")
        raw[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    if name == "MXFP4":
        raw[..., 0] = random.integers(0, 252, raw.shape[:2])
    if name == "NVFP4":
        raw[..., :4] &= 0x7E  # 0x7F and what has a sign are no scales
    if name == "IQ1_M":
        raw[..., 55] = (raw[..., 55] & 0x0F) | 0x20  # the exponent of the scale
    return raw.reshape(rows, -1)


def test_every_type_of_the_package_is_here() -> None:
    known = {kind.name for kind in gguf.quants._type_traits}
    assert known - set(DENSE) == set(HALVES)


@pytest.mark.parametrize("shape", [(5, 512), (2, 3, 256)])
@pytest.mark.parametrize("name", HALVES)
def test_blocks_decode_to_the_numbers_of_the_package(name: str, shape: tuple[int, ...]) -> None:
    raw = blocks(name, int(np.prod(shape[:-1])), shape[-1])
    value = decode(raw.reshape(-1), name, shape, "t")
    assert isinstance(value, Packed) == (name in (*AFFINE, "MXFP4"))
    assert value.shape == shape
    expected = gguf.dequantize(raw, Type[name]).reshape(shape)
    assert np.isfinite(expected).all()
    assert expected.any()
    np.testing.assert_array_equal(dequantize(value) if isinstance(value, Packed) else value, expected)


@pytest.mark.parametrize("name", HALVES)
def test_a_file_with_such_a_tensor_opens(name: str, tmp_path) -> None:
    model = Llama()
    raw = blocks(name, 32, 256)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    model.keys(writer)
    for key, value in model.tensors.items():
        writer.add_tensor(key, value)
    writer.add_tensor("output.weight", raw, raw_dtype=Type[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.stored_as("lm_head.weight") == name
    read = checkpoint.read("lm_head.weight")
    expected = gguf.dequantize(raw, Type[name])
    np.testing.assert_array_equal(dequantize(read) if isinstance(read, Packed) else read, expected)


def test_an_exponent_out_of_range_is_refused() -> None:
    raw = blocks("MXFP4", 2, 64)
    raw[1, 0] = 255
    with pytest.raises(CheckpointError, match=r"t\.weight.*out of range"):
        decode(raw.reshape(-1), "MXFP4", (2, 64), "t.weight")


def test_a_type_that_the_package_cannot_read_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"t\.weight.*Q8_1"):
        decode(np.zeros(36, np.uint8), "Q8_1", (1, 32), "t.weight")
