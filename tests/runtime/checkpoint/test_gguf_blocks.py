"""Blocks of GGUF files: integers are kept, other types come as the gguf package's dequantizer has them."""

import gguf
import numpy as np
import pytest

from partita.checkpoint.gguf.blocks import SMALL, decode
from partita.errors import CheckpointError
from partita.quantization import Packed, dequantize

Type = gguf.GGMLQuantizationType
AFFINE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K"]
OTHERS = ["Q6_K", "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS"]


def random_blocks(name: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random bytes, uint8 (rows, bytes), with every float16 of a block set to a moderate number."""
    values, size = gguf.GGML_QUANT_SIZES[Type[name]]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // values, size)).astype(np.uint8)
    halves = {"Q6_K": [208], "Q2_K": [80, 82], "Q3_K": [108], "MXFP4": []}.get(
        name, [0, 2] if name.endswith("_1") or name in ("Q4_K", "Q5_K") else [0]
    )
    for offset in halves:
        scale = (rng.standard_normal(blocks.shape[:2]) * 0.1).astype(np.float16)
        blocks[..., offset : offset + 2] = scale[..., None].view(np.uint8)
    if name == "MXFP4":
        blocks[..., 0] = rng.integers(118, 130, blocks.shape[:2])
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("shape", [(5, 512), (2, 3, 256)])
@pytest.mark.parametrize("name", AFFINE)
def test_affine_blocks_keep_their_integers(name, shape):
    raw = random_blocks(name, int(np.prod(shape[:-1])), shape[-1])
    packed = decode(raw.reshape(-1), name, shape, "t")
    assert isinstance(packed, Packed)
    assert packed.shape == shape
    assert (packed.bits, packed.group_size) == (int(name[1]), 32)
    assert packed.scales.dtype == packed.biases.dtype == (np.float32 if name.endswith("_K") else np.float16)
    expected = gguf.dequantize(raw, Type[name]).reshape(shape)
    np.testing.assert_array_equal(dequantize(packed), expected)


@pytest.mark.parametrize("shape", [(5, 512), (2, 3, 256), (40, 2**17)])
@pytest.mark.parametrize("name", SMALL)
def test_groups_of_16_stay_packed_for_who_takes_them(name, shape):
    raw = random_blocks(name, int(np.prod(shape[:-1])), shape[-1])
    packed = decode(raw.reshape(-1), name, shape, "t", smallest_group=16)
    assert isinstance(packed, Packed)
    assert (packed.shape, packed.bits, packed.group_size) == (shape, int(name[1]), 16)
    np.testing.assert_array_equal(dequantize(packed), gguf.dequantize(raw, Type[name]).reshape(shape))


@pytest.mark.parametrize(("name", "half"), [("Q6_K", 208), ("Q2_K", 80), ("Q2_K", 82), ("Q3_K", 108)])
def test_a_scale_of_a_small_group_that_is_not_finite_is_damage(name, half):
    raw = random_blocks(name, 1, 256)
    raw[0, half : half + 2] = np.asarray([np.inf], np.float16).view(np.uint8)
    with pytest.raises(CheckpointError, match="t: a block's scale"):
        decode(raw.reshape(-1), name, (1, 256), "t", smallest_group=16)


@pytest.mark.parametrize("name", OTHERS)
def test_other_blocks_are_dense(name):
    raw = random_blocks(name, 3, 512)
    value = decode(raw.reshape(-1), name, (3, 512), "t")
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, gguf.dequantize(raw, Type[name]))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_dense_types_stay_as_stored(name):
    x = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    raw = gguf.quantize(x, Type[name]).view(np.uint8).reshape(-1)
    value = decode(raw, name, (3, 8), "t")
    assert isinstance(value, np.ndarray)
    assert value.dtype.name == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[name]
    np.testing.assert_allclose(value.astype(np.float32), x, rtol=1e-2)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0"])
def test_a_bias_beyond_float16_is_kept_in_float32(name):
    raw = random_blocks(name, 2, 64)
    raw[0, :2] = np.array([9000.0], np.float16).view(np.uint8)
    packed = decode(raw.reshape(-1), name, (2, 64), "t")
    assert isinstance(packed, Packed)
    assert packed.scales.dtype == packed.biases.dtype == np.float32
    np.testing.assert_array_equal(dequantize(packed), gguf.dequantize(raw, Type[name]))


@pytest.mark.parametrize("name", AFFINE)
def test_a_scale_that_is_not_finite_is_refused(name):
    raw = random_blocks(name, 2, 256)
    raw[1, :2] = np.array([np.inf], np.float16).view(np.uint8)
    with np.errstate(invalid="ignore"), pytest.raises(CheckpointError, match=r"t\.weight.*not a finite"):
        decode(raw.reshape(-1), name, (2, 256), "t.weight")
