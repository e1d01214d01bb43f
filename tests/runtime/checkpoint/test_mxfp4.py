"""MXFP4 in MLX's layout, against transformers' and gguf's own dequantization: equal bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.checkpoint.schemes.mxfp4 import repack
from partita.errors import CheckpointError
from partita.quantization import dequantize


def random_blocks(seed: int, *leading: int, low: int = 0, high: int = 252) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (*leading, 16), np.uint8),
        rng.integers(low, high, leading, np.uint8),
    )


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_equals_the_transformers_dequantization(seed: int, leading: list[int]) -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = random_blocks(seed, *leading)
    values = dequantize(repack(blocks, scales))
    # it returns (experts, in, out) of blocks (experts, out, groups, 16)
    wanted = [1] * (3 - len(leading)) + leading
    theirs = convert_moe_packed_tensors(
        torch.from_numpy(blocks.reshape(*wanted, 16)), torch.from_numpy(scales.reshape(wanted)), dtype=torch.float32
    )
    np.testing.assert_array_equal(values.reshape(*wanted[:-1], -1), theirs.numpy().swapaxes(1, 2))


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4))
def test_equals_the_dequantization_of_gguf(seed: int, rows: int, groups: int) -> None:
    import gguf

    blocks, scales = random_blocks(seed, rows, groups)
    raw = np.concatenate([scales[..., None], blocks], -1).reshape(rows, groups * 17)
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(dequantize(repack(blocks, scales, halves=True)), theirs)


def test_every_code_at_every_exponent() -> None:
    """The table of the format's own document, in float64."""
    codes = np.arange(16, dtype=np.uint8)
    blocks = np.broadcast_to(codes[0::2] | (codes[1::2] << 4), (252, 8)).repeat(2, 0).reshape(252, 16)
    scales = np.arange(252, dtype=np.uint8)
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    expected = np.concatenate([magnitudes, -magnitudes])[None] * 2.0 ** (scales.astype(np.float64) - 127)[:, None]
    found = dequantize(repack(blocks[:, None], scales[:, None]))
    np.testing.assert_array_equal(found, np.tile(expected, (1, 2)))


def test_codes_and_exponents_stay_as_they_are() -> None:
    blocks, scales = random_blocks(0, 3, 8, 2)
    packed = repack(blocks, scales)
    assert packed.shape == (3, 8, 64)
    assert packed.format == ("mxfp4", 4, 32, False)
    np.testing.assert_array_equal(packed.weight.view(np.uint8).reshape(blocks.shape), blocks)
    np.testing.assert_array_equal(packed.scales, scales)
    assert packed.nbytes * 8 / (3 * 8 * 64) == 4.25  # bits a value


@pytest.mark.parametrize("exponent", [252, 255])
def test_an_exponent_beyond_float32_is_refused(exponent: int) -> None:
    blocks, scales = random_blocks(0, 2, 2)
    scales[1, 0] = exponent
    with pytest.raises(CheckpointError, match=rf"experts\.w: .*2\*\*{exponent - 127} "):
        repack(blocks, scales, what="experts.w")


def test_shapes_that_do_not_go_together_are_refused() -> None:
    blocks, scales = random_blocks(0, 2, 2)
    for wrong in (scales[:1], scales.astype(np.int32)):
        with pytest.raises(CheckpointError, match="do not go with scales"):
            repack(blocks, wrong)
    with pytest.raises(CheckpointError, match="do not go with scales"):
        repack(blocks[..., :8], scales)
