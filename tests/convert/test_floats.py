"""Small floats with searched multipliers: never worse than MLX's rule, read by MLX as the same numbers, the same bytes
every time."""

from __future__ import annotations

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from partita.errors import DataError
from partita.quantization import SMALL_FLOATS, Packed, dequantize, multipliers
from partita_convert.quantize import quantize

from .test_quantize import random

MODES = list(SMALL_FLOATS)
GAIN = {"nvfp4": 0.9, "mxfp4": 0.96, "mxfp8": 1.0}
"""What is left at most of MLX's squared error on random numbers. 8-bit floats have no better multiplier."""


def by_mlx(x: np.ndarray, mode: str) -> Packed:
    bits, group = SMALL_FLOATS[mode]
    words, scales = mx.quantize(mx.array(x.astype(np.float32)), group, bits, mode, stream=mx.cpu)
    return Packed(np.array(words), np.array(scales), None, bits, group, mode)


def squares(x: np.ndarray, packed: Packed, importance: np.ndarray | float = 1.0) -> np.ndarray:
    """Squared error of every group, float64."""
    missed = dequantize(packed).astype(np.float64) - x.astype(np.float64)
    return (missed**2 * importance).reshape(-1, packed.group_size).sum(-1)


@pytest.mark.parametrize("kind", ["normal", "heavy", "even"])
@pytest.mark.parametrize("mode", MODES)
def test_less_error_than_the_rule_of_mlx(kind: str, mode: str) -> None:
    x = random(kind, (24, 384)) * np.float32(5)
    packed, plain = quantize(x, *SMALL_FLOATS[mode], mode=mode), by_mlx(x, mode)
    assert (packed.format, packed.shape) == ((mode, *SMALL_FLOATS[mode], False), x.shape)
    ours, theirs = squares(x, packed), squares(x, plain)
    assert ours.sum() <= GAIN[mode] * theirs.sum()
    assert (ours <= theirs * (1 + 1e-5)).all()


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.one_of(
    arrays.arrays(np.float32, (2, 64), elements=st.floats(-2, 2, width=32)),
    arrays.arrays(np.float32, (2, 64), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    arrays.arrays(np.float32, (2, 64), elements=st.sampled_from([0.0, -0.0, 1.0, -6.0, 448.0, 1e-8, 3e-3])),
)


@settings(max_examples=60)
@given(x=rows, mode=st.sampled_from(MODES))
def test_never_worse_whatever_the_numbers(x: np.ndarray, mode: str) -> None:
    ours, theirs = squares(x, quantize(x, *SMALL_FLOATS[mode], mode=mode)), squares(x, by_mlx(x, mode))
    # float32 sums order multipliers that are as good; what is below its range counts as nothing
    assert (ours <= theirs * (1 + 1e-5) + 64 * 2.0**-126).all()


@pytest.mark.parametrize("mode", MODES)
def test_what_the_format_holds_is_exact(mode: str) -> None:
    x = dequantize(by_mlx(random("normal", (8, 128)) * np.float32(50), mode))
    packed = quantize(x, *SMALL_FLOATS[mode], mode=mode)
    np.testing.assert_array_equal(dequantize(packed), x)
    again = quantize(packed, *SMALL_FLOATS[mode], mode=mode)
    np.testing.assert_array_equal(dequantize(again), x)


@pytest.mark.parametrize("mode", MODES)
def test_mlx_reads_the_same_numbers(mode: str) -> None:
    packed = quantize(random("heavy", (3, 4, 128)), *SMALL_FLOATS[mode], mode=mode)
    parts = mx.array(packed.weight), mx.array(packed.scales), None, packed.group_size, packed.bits, mode
    np.testing.assert_array_equal(np.array(mx.dequantize(*parts, dtype=mx.float32)), dequantize(packed))


@pytest.mark.parametrize("mode", ["nvfp4", "mxfp4"])
def test_importance_moves_the_error_where_it_matters_less(mode: str) -> None:
    x, importance = random("normal", (64, 256)) * np.float32(5), np.where(np.arange(256) % 8, 1.0, 100.0)
    plain, weighed = (quantize(x, *SMALL_FLOATS[mode], mode=mode, importance=own) for own in (None, importance))
    assert squares(x, weighed, importance).sum() < 0.95 * squares(x, plain, importance).sum()
    assert (squares(x, weighed, importance) <= squares(x, by_mlx(x, mode), importance) * (1 + 1e-5)).all()


@pytest.mark.parametrize("mode", MODES)
def test_groups_of_zeros_and_of_sizes_out_of_range(mode: str) -> None:
    x = np.zeros((2, 64), np.float32)
    packed = quantize(x, *SMALL_FLOATS[mode], mode=mode)
    np.testing.assert_array_equal(dequantize(packed), x)
    assert not (mode == "nvfp4" and multipliers(packed).any())
    for size in (1e38, 3e38):
        largest = dequantize(quantize(x + np.float32(size), *SMALL_FLOATS[mode], mode=mode))
        assert np.isfinite(largest).all()
        assert (largest > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_is_refused_by_name(mode: str, bad: float) -> None:
    x = np.ones((4, 64), np.float32)
    x[2, 3] = bad
    with pytest.raises(DataError, match="the weight holds NaN or infinity"):
        quantize(x, *SMALL_FLOATS[mode], mode=mode, name="the weight")
    with pytest.raises(DataError, match="does not divide into groups"):
        quantize(x[:, :40], *SMALL_FLOATS[mode], mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_any_shape_and_any_source(mode: str) -> None:
    x = random("normal", (2, 3, 64))
    expected = quantize(x.reshape(6, 64), *SMALL_FLOATS[mode], mode=mode)
    for source in (x, x.astype(np.float64), np.asfortranarray(x)):
        found = quantize(source, *SMALL_FLOATS[mode], mode=mode)
        assert found.shape == (2, 3, 64)
        np.testing.assert_array_equal(found.weight.reshape(6, -1), expected.weight)
        np.testing.assert_array_equal(found.scales.reshape(6, -1), expected.scales)
    short = x.astype(ml_dtypes.bfloat16)
    assert quantize(short, *SMALL_FLOATS[mode], mode=mode).format[0] == mode
