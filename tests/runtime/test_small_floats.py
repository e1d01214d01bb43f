"""Small floats against MLX's own dequantization and the tables of their formats: equal bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.errors import CheckpointError, UnsupportedModel
from partita.quantization import SMALL_FLOATS, Packed, dequantize, joined, quantize_weight
from partita.small_floats import check, without_codes

from ..small_floats import small_floats

MODES = list(SMALL_FLOATS)


def by_mlx(packed: Packed) -> np.ndarray:
    import mlx.core as mx  # a test may: the format is the library's own

    whole = None if packed.factors is None else mx.array(packed.factors.flat[0] * np.float32(6 * 448))
    parts = mx.array(packed.weight), mx.array(packed.scales), None, packed.group_size, packed.bits, packed.mode
    return np.array(mx.dequantize(*parts, global_scale=whole, dtype=mx.float32, stream=mx.cpu))


@settings(max_examples=40)
@given(st.sampled_from(MODES), st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4))
def test_values_are_those_of_mlx(mode: str, seed: int, rows: int, groups: int) -> None:
    packed = small_floats(mode, rows, 32 * groups, seed=seed)
    packed = replace(packed, scales=np.random.default_rng(seed).integers(0, 127, packed.scales.shape, np.uint8))
    np.testing.assert_array_equal(dequantize(packed), by_mlx(packed))


def test_a_factor_multiplies_scales_as_mlx_has_it() -> None:
    packed = small_floats("nvfp4", 64, 128)
    for factor in (np.float32(2), np.float32(0.25)):  # which 6 * 448 times, and divided by it, is exact
        whole = replace(packed, factors=np.full((64, 1), factor, np.float32))
        np.testing.assert_array_equal(dequantize(whole), by_mlx(whole))


def as_array(found: Any) -> np.ndarray:
    return dequantize(found) if isinstance(found, Packed) else np.asarray(found, np.float32)


@settings(max_examples=40)
@given(st.sampled_from(MODES), st.integers(0, 2**32 - 1), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_the_same_numbers_without_codes(mode: str, seed: int, leading: list[int]) -> None:
    packed = small_floats(mode, *leading, 64, seed=seed)
    found = without_codes(packed)
    assert found.shape == packed.shape
    np.testing.assert_array_equal(as_array(found), dequantize(packed))


@pytest.mark.parametrize("mode", MODES)
def test_every_code_at_every_multiplier(mode: str) -> None:
    """By the table of the format, in float64."""
    bits, group = SMALL_FLOATS[mode]
    if mode == "nvfp4":
        scales = np.array([s for s in range(256) if s & 0x7F != 0x7F], np.uint8)
        times = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    else:
        scales = np.arange(252 if bits == 4 else 247, dtype=np.uint8)
        times = 2.0 ** (scales.astype(np.float64) - 127)
    if bits == 4:
        codes = (np.arange(16, dtype=np.uint8)[0::2] | (np.arange(16, dtype=np.uint8)[1::2] << 4)).repeat(2)
        values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        values = np.concatenate([values, -values]).reshape(8, 2).repeat(2, 0).reshape(-1)
    else:
        codes = np.array([c for c in range(256) if c & 0x7F != 0x7F] + [0, 0], np.uint8)
        values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    words = np.ascontiguousarray(np.broadcast_to(codes, (len(scales), len(codes)))).view("<u4")
    each = np.ascontiguousarray(np.broadcast_to(scales[:, None], (len(scales), len(values) // group)))
    packed = check(Packed(words, each, None, bits, group, mode), "a weight")
    np.testing.assert_array_equal(dequantize(packed), times[:, None] * values)
    np.testing.assert_array_equal(as_array(without_codes(packed)), times[:, None] * values)


def test_what_the_same_numbers_take() -> None:
    four = without_codes(small_floats("nvfp4", 3, 8, 64))
    assert isinstance(four, Packed)
    assert (four.bits, four.group_size, four.scales.dtype) == (5, 16, "bfloat16")
    scales, biases = four.grid
    np.testing.assert_array_equal(biases.astype(np.float32), scales.astype(np.float32) * -16)  # kernels store no biases
    eight = small_floats("mxfp8", 8, 64)
    assert without_codes(eight).dtype == "bfloat16"  # pyright: ignore[reportAttributeAccessIssue]
    least = replace(eight, scales=np.zeros_like(eight.scales))  # some of whose values bfloat16 has not
    assert without_codes(least).dtype == np.float32  # pyright: ignore[reportAttributeAccessIssue]
    none = replace(least, weight=np.zeros_like(eight.weight))
    assert without_codes(none).dtype == "bfloat16"  # pyright: ignore[reportAttributeAccessIssue]
    affine = quantize_weight(np.ones((2, 64), np.float32), 4, 32)
    assert without_codes(affine) is affine
    with pytest.raises(ValueError, match="factors"):
        without_codes(small_floats("nvfp4", 8, 64, factors=True))


def test_rows_are_taken_and_put_together_with_their_factors() -> None:
    a, b = (small_floats("nvfp4", 4, 64, factors=True, seed=seed) for seed in (1, 2))
    whole = joined([a, b], np.concatenate)
    np.testing.assert_array_equal(dequantize(whole), np.concatenate([dequantize(a), dequantize(b)]))
    rows = whole.map(lambda part: part[3:5])
    np.testing.assert_array_equal(dequantize(rows), dequantize(whole)[3:5])
    assert a.nbytes == 4 * (32 + 4 + 4)
    assert a.format != small_floats("nvfp4", 4, 64).format
    with pytest.raises(ValueError, match="mode 'affine' have no factors"):
        replace(quantize_weight(np.ones((2, 64), np.float32), 4, 32), factors=np.ones((2, 1), np.float32))


@pytest.mark.parametrize(
    ("mode", "part", "value", "message"),
    [
        ("nvfp4", "scales", 0x7F, "m.w: an NVFP4 scale is NaN"),
        ("nvfp4", "scales", 0xFF, "m.w: an NVFP4 scale is NaN"),
        ("nvfp4", "factors", np.nan, "m.w: a global scale is not finite"),
        ("mxfp4", "scales", 255, r"m.w: an MXFP4 scale of 2\*\*128 is out of range"),
        ("mxfp4", "scales", 252, r"m.w: an MXFP4 scale of 2\*\*125 is out of range"),
        ("mxfp8", "scales", 247, r"m.w: an MXFP8 scale of 2\*\*120 is out of range"),
        ("mxfp8", "weight", 0x0000FF00, "m.w: a value is NaN"),
    ],
)
def test_what_is_no_number_is_refused(mode: str, part: str, value: float, message: str) -> None:
    packed = small_floats(mode, 2, 64, factors=part == "factors")
    getattr(packed, part)[1, -1] = value
    with pytest.raises(CheckpointError, match=message):
        check(packed, "m.w")


def test_other_modes_and_widths_are_refused() -> None:
    packed = small_floats("nvfp4", 2, 64)
    for other in (replace(packed, mode="nvfp5"), replace(packed, bits=8)):
        for function in (dequantize, without_codes):
            with pytest.raises(UnsupportedModel, match="packed weights of mode 'nvfp"):
                function(other)
