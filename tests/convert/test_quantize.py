"""Searched scales: never worse than MLX's rule, exact where that is possible, the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from partita.checkpoint.schemes.affine import BITS
from partita.errors import DataError
from partita.quantization import Packed, dequantize, quantize_minmax, quantize_weight, unpack
from partita_convert import quantize as search
from partita_convert.quantize import Rounded, quantize
from partita_convert.write_folder import relative_error


@pytest.fixture(autouse=True, scope="module", params=["compiled", "numpy"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test by the compiled loop, and by what takes its place where there is no numba."""
    if request.param == "compiled":
        assert search.compiled_search() is not None
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "compiled_search", lambda: None)
        yield


FORMATS = [(bits, group) for bits in BITS for group in (32, 64, 128)]


def squares(x: np.ndarray, packed: Packed) -> np.ndarray:
    """Squared error of every group, float64."""
    groups = x.astype(np.float64).reshape(-1, packed.group_size)
    *_, scales, biases = packed.weight, packed.scales.reshape(-1, 1), packed.biases.reshape(-1, 1)
    integers = unpack(packed.weight, packed.bits).reshape(groups.shape).astype(np.float64)
    return ((integers * scales.astype(np.float64) + biases.astype(np.float64) - groups) ** 2).sum(-1)


def mlx_in(packed: Packed, x: np.ndarray) -> Packed:
    """MLX's rule with its scales in the dtype that `packed` has them in; the integers as MLX chose them."""
    with np.errstate(over="ignore"):
        plain = quantize_weight(x.astype(np.float32), packed.bits, packed.group_size)
        return Packed(
            plain.weight,
            plain.scales.astype(packed.scales.dtype),
            plain.biases.astype(packed.scales.dtype),
            plain.bits,
            plain.group_size,
        )


def random(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.standard_normal(shape),
        "heavy": rng.standard_t(3, shape),
        "even": rng.uniform(-1, 1, shape),
    }
    return (values[kind] * 0.02).astype(np.float32)


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@pytest.mark.parametrize("kind", ["normal", "heavy", "even"])
def test_less_error_than_both_plain_rules(kind, bits, group):
    x = random(kind, (24, 384))
    packed = quantize(x, bits, group)
    ours, mlx, minmax = (
        squares(x, p) for p in (packed, quantize_weight(x, bits, group), quantize_minmax(x, bits, group))
    )
    assert packed.scales.dtype == packed.biases.dtype == np.float16
    assert (packed.bits, packed.group_size, packed.shape) == (bits, group, x.shape)
    assert ours.sum() < 0.93 * min(mlx.sum(), minmax.sum())
    assert (ours <= minmax * (1 + 1e-5)).all()
    assert (ours <= squares(x, mlx_in(packed, x)) * (1 + 1e-5)).all()
    if bits <= 4:
        assert (ours <= mlx * (1 + 1e-5)).all()  # though its scales have twice the bits


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.one_of(
    arrays.arrays(np.float32, (2, 64), elements=st.floats(-2, 2, width=32)),
    arrays.arrays(np.float32, (2, 64), elements=st.floats(-(2.0**-10), 2.0**-10, width=32)),
    arrays.arrays(np.float32, (2, 64), elements=st.sampled_from([0.0, 1.0, -3.5, 1e-6, 1e-30, 1e5])),
    arrays.arrays(np.float32, (2, 64), elements=floats.filter(lambda value: abs(value) < 1e30)),
)


@settings(max_examples=150)
@given(rows, st.sampled_from(BITS), st.sampled_from([32, 64]))
def test_never_worse_whatever_the_numbers(x, bits, group):
    packed = quantize(x, bits, group)
    ours, same, exact = (squares(x, p) for p in (packed, mlx_in(packed, x), quantize_weight(x, bits, group)))
    tiny = np.square(1e-6 * np.abs(x.astype(np.float64)).reshape(-1, group).max(-1)) * group  # float32's own noise
    assert (ours <= same + tiny).all() or not np.isfinite(same).all()
    assert ours.sum() <= exact.sum() * (1 + 1e-4) + tiny.sum()


@settings(max_examples=60)
@given(floats, st.sampled_from(BITS))
def test_a_constant_group_is_exact(value, bits):
    x = np.full((1, 64), value, np.float32)
    np.testing.assert_array_equal(dequantize(quantize(x, bits, 64)), x)


def test_one_odd_group_costs_nothing_elsewhere():
    x = random("normal", (16, 128))
    x[3, :64] = np.float32(0.1)
    packed = quantize(x, 4, 64)
    assert packed.scales.dtype == np.float16
    np.testing.assert_allclose(dequantize(packed)[3, :64], x[3, :64], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e8, 1e25])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_sizes_that_float16_has_not_get_float32(size, bits):
    x = random("normal", (4, 128)) * np.float32(size)
    packed = quantize(x, bits, 64)
    assert packed.scales.dtype == np.float32
    assert (squares(x, packed) <= squares(x, quantize_weight(x, bits, 64)) * (1 + 1e-5)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(bad):
    x = random("normal", (300, 256))
    x[299, 255] = bad
    with pytest.raises(DataError, match=r"^model\.x\.weight holds NaN or infinity"):
        quantize(x, 4, 64, name="model.x.weight")
    with pytest.raises(DataError, match="holds NaN"):
        quantize(np.full((1, 64), 1e300), 4, 64)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"96 does not divide .*64"):
        quantize(np.zeros((2, 96), np.float32), 4, 64)
    with pytest.raises(DataError, match="7 bits are not one of 1, 2, 3, 4, 5, 6, 8"):
        quantize(np.zeros((2, 64), np.float32), 7, 64)
    with pytest.raises(DataError, match="groups of 16 are not one of"):
        quantize(np.zeros((2, 64), np.float32), 4, 16)
    with pytest.raises(DataError, match="importance must be 64 numbers"):
        quantize(np.zeros((2, 64), np.float32), 4, 64, importance=np.ones(32))
    with pytest.raises(DataError, match="importance must be 64 numbers"):
        quantize(np.zeros((2, 5, 64), np.float32), 4, 64, importance=np.ones((5, 64)))


@pytest.mark.parametrize("shape", [(64,), (3, 5, 64), (700, 128), (0, 64)])
def test_any_shape_and_any_source(shape):
    x = random("normal", shape)
    packed = quantize(x, 4, 32)
    assert packed.shape == shape
    whole = [quantize(x[i : i + 1], 4, 32) for i in range(shape[0])] if len(shape) > 1 else []
    if whole:  # pieces do not depend on their neighbours
        np.testing.assert_array_equal(packed.weight, np.concatenate([part.weight for part in whole]))
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        as_stored = x.astype(dtype)
        again = quantize(as_stored, 4, 32)
        np.testing.assert_array_equal(again.weight, quantize(as_stored.astype(np.float32), 4, 32).weight)
    eight = quantize(x, 8, 32)
    np.testing.assert_array_equal(quantize(eight, 4, 32).weight, quantize(dequantize(eight), 4, 32).weight)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_scales_are_compared_as_they_are_stored(size, dtype):
    """They are rounded at the magnitude of one, among float16's multiples of 2**-24 too."""
    x, searched = random("heavy", (37, 128)) * np.float32(size), search.searched()
    for bits in BITS:
        found = searched(x, None, bits, 64, np.dtype(dtype))
        for part in (found.scales, found.biases):
            np.testing.assert_array_equal(part.astype(dtype).astype(part.dtype), part)
        error = squares(x, Packed(found.words, found.scales, found.biases, bits, 64)).sum()
        # a sum of 64 terms; each of numbers of up to 2**bits steps, rounded thrice, that leave a third of a step
        assert found.sums[0] == pytest.approx(error, rel=64 * 2.0**-24 + 2 * 3 * 2.0 ** (bits - 24) * 3)


def test_the_same_bytes_every_time():
    x = random("heavy", (300, 256))
    first, second = quantize(x, 3, 64), quantize(x.copy(), 3, 64)
    assert [part.tobytes() for part in (first.weight, first.scales, first.biases)] == [
        part.tobytes() for part in (second.weight, second.scales, second.biases)
    ]


def test_importance_moves_the_error_where_it_matters_less():
    x = random("normal", (64, 256))
    importance = np.where(np.arange(256) % 8 == 0, 50.0, 1.0)
    plain, weighted = quantize(x, 3, 64), quantize(x, 3, 64, importance=importance)
    error = [np.square(dequantize(p) - x) * importance for p in (plain, weighted)]
    assert error[1].sum() < 0.9 * error[0].sum()
    np.testing.assert_array_equal(quantize(x, 3, 64, importance=np.ones(256)).weight, plain.weight)


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_experts_of_a_stack_are_weighed_each_by_its_own(mode):
    x, importance = random("normal", (3, 300, 256)), np.exp(random("normal", (3, 256)))
    stack = quantize(x, 4, 32, mode=mode, importance=importance)
    for expert in range(3):
        one = quantize(x[expert], 4, 32, mode=mode, importance=importance[expert])
        np.testing.assert_array_equal(dequantize(stack)[expert], dequantize(one))


def test_mlx_reads_the_same_numbers():
    import mlx.core as mx

    x = random("heavy", (8, 256))
    for bits, group in FORMATS:
        packed = quantize(x, bits, group)
        parts = [mx.array(packed.weight), *(mx.array(p.astype(np.float32)) for p in (packed.scales, packed.biases))]
        value = mx.dequantize(*parts, group_size=group, bits=bits, stream=mx.cpu)
        np.testing.assert_allclose(np.array(value), dequantize(packed), atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_rounding_loses_is_told_all_columns_alike(bits: int, dtype: str) -> None:
    """Whatever each of them counts in the search, which sums it on the way. Rows that sixteen does not divide, groups
    of zeros, and a group on the very grid, of which nothing is lost."""
    x = np.random.default_rng(0).standard_normal((37, 256)).astype(np.float32)
    x[3, :64], x[4, :64] = 0, np.arange(64) * (2**bits - 1) // 63
    found = quantize(x, bits, 64, importance=np.arange(1, 257.0), scales=dtype)
    assert isinstance(found, Rounded) == (search.compiled_search() is not None)
    lost = squares(x, found).sum() / np.square(x.astype(np.float64)).sum()
    # as above, a square by twice as much as what it is the square of
    assert relative_error(x, found) == pytest.approx(np.sqrt(lost), rel=32 * 2.0**-24 + 3 * 2.0 ** (bits - 24) * 3)
    assert relative_error(x[4:5, :64], quantize(x[4:5, :64], bits, 64, scales=dtype)) == 0
