"""The packed format: bit streams against a plain definition, both rounding rules, MLX as the judge of weights."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.errors import DataError, UnsupportedModel
from partita.quantization import Packed, dequantize, joined, pack, quantize_minmax, quantize_weight, unpack

BITS = [1, 2, 3, 4, 5, 6, 8]


def bit_stream(row: np.ndarray, bits: int) -> list[int]:
    """The definition: value i occupies bits [i * bits, (i + 1) * bits) of its row, words little-endian."""
    number = sum(int(value) << (i * bits) for i, value in enumerate(row))
    return [(number >> (32 * word)) & 0xFFFFFFFF for word in range(len(row) * bits // 32)]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("shape", [(32,), (3, 64), (2, 3, 96)])
def test_packing_is_the_bit_stream(bits, shape):
    integers = np.random.default_rng(bits).integers(0, 2**bits, shape).astype(np.uint8)
    words = pack(integers, bits)
    assert words.dtype == np.uint32
    assert words.shape == (*shape[:-1], shape[-1] * bits // 32)
    expected = [bit_stream(row, bits) for row in integers.reshape(-1, shape[-1])]
    np.testing.assert_array_equal(words.reshape(len(expected), -1), expected)
    np.testing.assert_array_equal(unpack(words, bits), integers)


@pytest.mark.parametrize("bits", BITS)
def test_packing_takes_views_and_wide_integers(bits):
    integers = np.random.default_rng(0).integers(0, 2**bits, (64, 8))
    np.testing.assert_array_equal(pack(integers.T, bits), pack(np.ascontiguousarray(integers.T), bits))


def weights(kind: str, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((12, 256)).astype(np.float32)
    match kind:
        case "positive":
            return np.abs(x)
        case "constant":
            return np.broadcast_to(x[:, :1], x.shape).copy()
        case "zero":
            return np.zeros_like(x)
        case "negative zero":
            return -np.zeros_like(x)
        case "symmetric":  # both edges equally large: the tie has its own rule
            x[:, 1::2] = -x[:, ::2]
            return x
        case "tiny":
            return x * np.float32(1e-8)
        case "large":
            return x * np.float32(1e4)
        case "offset":
            return x + np.float32(100)
    return x


@pytest.mark.parametrize(
    "kind", ["normal", "positive", "constant", "zero", "negative zero", "symmetric", "tiny", "large"]
)
@pytest.mark.parametrize("bits", BITS)
def test_weights_are_quantized_bit_for_bit_as_mlx_does(bits, kind):
    import mlx.core as mx  # a test may: the rule is the library's own

    for group_size in (32, 64, 128):
        x = weights(kind, np.random.default_rng(bits))
        ours = quantize_weight(x, bits, group_size)
        words, scales, biases = mx.quantize(mx.array(x), group_size=group_size, bits=bits, stream=mx.cpu)
        np.testing.assert_array_equal(ours.weight, np.array(words))
        np.testing.assert_array_equal(ours.scales, np.array(scales))
        np.testing.assert_array_equal(ours.biases, np.array(biases))


@settings(max_examples=60)
@given(bits=st.sampled_from(BITS[1:]), group_size=st.sampled_from([32, 64, 128]), seed=st.integers(0, 2**32 - 1))
def test_a_weight_is_at_most_a_step_away_and_its_edge_exact(bits, group_size, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((4, 256)) * 10.0 ** rng.integers(-4, 4)).astype(np.float32)
    packed = quantize_weight(x, bits, group_size)
    back = dequantize(packed)
    groups, steps = x.reshape(4, -1, group_size), np.abs(packed.scales)
    error = np.abs(back.reshape(groups.shape) - groups).max(-1)
    # the grid begins at the larger edge exactly, so at the other edge it may end up to one step early
    assert (error <= steps * 1.001).all()
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(packed.biases, largest)


@settings(max_examples=60)
@given(bits=st.sampled_from([2, 3, 4, 5, 6, 8]), seed=st.integers(0, 2**32 - 1), group_size=st.sampled_from([32, 64]))
def test_keys_and_values_are_at_most_half_a_step_away(bits, seed, group_size):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((3, 5, 128)) * 10.0 ** rng.integers(-2, 3)).astype(np.float32)
    packed = quantize_minmax(x, bits, group_size)
    assert packed.scales.dtype == packed.biases.dtype == np.float16
    error = np.abs(dequantize(packed) - x).reshape(3, 5, -1, group_size).max(-1)
    step, edge = packed.scales.astype(np.float32), np.abs(packed.biases.astype(np.float32))
    # half a step, or at the edges what rounding the bias and 2**bits - 1 scales to float16 costs
    bound = step / 2 + edge * 2.0**-11 + (2**bits - 1) * step * 2.0**-11 + 2.0**-24 * 2**bits
    assert (error <= bound * 1.01).all()


def test_a_constant_group_survives():
    packed = quantize_minmax(np.full((1, 32), 0.5, np.float32), 4, 32)
    assert packed.scales[0, 0] == 0
    np.testing.assert_array_equal(dequantize(packed), 0.5)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(DataError, match=r"100 does not divide .*64 .*4 bits"):
        quantize_weight(np.zeros((2, 100), np.float32), 4, 64)


def test_the_parts_of_a_packed_array():
    packed = quantize_weight(np.ones((6, 64), np.float32), 4, 32)
    assert packed.shape == (6, 64)
    assert packed.nbytes == 6 * 64 // 2 + 2 * 6 * 2 * 4
    rows = packed.map(lambda part: part[1:3])
    assert isinstance(rows, Packed)
    assert rows.shape == (2, 64)
    assert dequantize(rows, np.float16).dtype == np.float16


def test_a_mode_without_biases_is_carried_and_not_computed():
    packed = quantize_weight(np.ones((6, 64), np.float32), 4, 32)
    other = replace(packed, mode="nvfp5", biases=None)
    assert other.nbytes == packed.nbytes - packed.biases.nbytes
    rows = other.map(lambda part: part[1:3])
    assert (rows.shape, rows.format, rows.biases) == ((2, 64), ("nvfp5", 4, 32, False), None)
    whole = joined([rows, other], np.concatenate)
    assert (whole.shape, whole.format, whole.biases) == ((8, 64), ("nvfp5", 4, 32, False), None)
    with pytest.raises(UnsupportedModel, match="mode 'nvfp5'"):
        dequantize(other)
    with pytest.raises(ValueError, match="need biases"):
        replace(packed, biases=None)


def test_packed_arrays_are_joined_part_by_part():
    packed = quantize_weight(np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32), 5, 32)
    rows = [packed.map(lambda part, i=i: part[i : i + 3]) for i in (0, 3)]
    np.testing.assert_array_equal(dequantize(joined(rows, np.concatenate)), dequantize(packed))
    assert joined(rows, np.stack).shape == (2, 3, 64)
