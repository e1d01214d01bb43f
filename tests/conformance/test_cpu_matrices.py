"""Products of many rows with weights in blocks, forward and back, against the same in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from partita.quantization import Packed, dequantize, pack, quantize_weight
from partita_backends.kernels import blocks, matrices, panels
from partita_backends.kernels.compiled import kernel

from .. import bounds

BITS = (1, 2, 3, 4, 5, 6, 8)
SHAPES = {  # (out, in): whole blocks; neither whole; more than a panel is deep, both ways; rows a power of two apart
    "whole": (64, 96),
    "cut": (77, 112),
    "deep": (850, 848),
    "apart": (1024, 1024),
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def packed(bits: int, group_size: int, out: int, size: int) -> Packed:
    return quantize_weight(normal(out, size), bits, group_size)


def computed(multiply: Any, x: np.ndarray, weight: Packed | np.ndarray, size: int, threads: int = 1) -> np.ndarray:
    y = np.full((len(x), size), np.nan, np.float32)
    operand = blocks.arrange(weight) if isinstance(weight, Packed) else weight
    function, arguments = multiply(x, operand, y, threads)
    function(*arguments)
    return y


def compare(x: np.ndarray, weight: Packed | np.ndarray, dense: np.ndarray, threads: int = 1) -> None:
    """x (rows, in or more), of which the first numbers are taken forward, and back."""
    out, size = dense.shape
    for multiply, matrix in ((matrices.forward, dense.T), (matrices.back, dense)):
        given = np.ascontiguousarray(x[:, : len(matrix)])
        found = computed(multiply, given, weight, matrix.shape[1], threads)
        largest = (np.abs(given) @ np.abs(matrix)).max()
        bounds.assert_near(found, given @ matrix, bounds.drift(max(out, size) + 8), largest)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [16, 32, 64])
def test_every_format(bits: int, group_size: int) -> None:
    weight = packed(bits, group_size, 70, 192)
    compare(normal(21, 192), weight, dequantize(weight).astype(np.float64))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 12, 31, 600])
def test_every_shape(shape: tuple[int, int], rows: int) -> None:
    weight = packed(4, 16, *shape)
    compare(normal(rows, max(shape)), dequantize(weight), dequantize(weight).astype(np.float64))
    compare(normal(rows, max(shape)), weight, dequantize(weight).astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("centred", [True, False])
def test_scales_of_every_type(centred: bool, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    integers = rng.integers(0, 16, (50, 96), dtype=np.uint8)
    scales = (2.0 ** rng.integers(-6, 3, (50, 3)) * (1 + rng.integers(0, 2**7, (50, 3)) / 2**7)).astype(dtype)
    weight = Packed(
        pack(integers, 4), scales, (scales.astype(np.float32) * (-8 if centred else -1)).astype(dtype), 4, 32
    )
    compare(normal(7, 96), weight, dequantize(weight).astype(np.float64))


def test_what_is_read_is_what_the_weight_says() -> None:
    """Rows of the identity give the weight itself, to the last bit where scales are short enough."""
    weight = packed(4, 32, 100, 160)
    weight = replace(weight, scales=weight.scales.astype(np.float16), biases=weight.scales.astype(np.float16) * -3)
    dense = dequantize(weight)
    np.testing.assert_array_equal(computed(matrices.forward, np.eye(160, dtype=np.float32), weight, 100), dense.T)
    np.testing.assert_array_equal(computed(matrices.back, np.eye(100, dtype=np.float32), weight, 160), dense)


@pytest.mark.parametrize("multiply", [matrices.forward, matrices.back])
def test_a_row_gives_the_same_bits_alone_and_among_others_on_any_number_of_threads(multiply: Any) -> None:
    weight, x = packed(4, 32, 160, 160), normal(30, 160)
    together = computed(multiply, x, weight, 160)
    for row in (0, 11, 12, 28, 29):
        np.testing.assert_array_equal(computed(multiply, x[row : row + 1], weight, 160)[0], together[row])
    np.testing.assert_array_equal(computed(multiply, x, weight, 160, threads=2), together)


@kernel
def transposed(tile, out):  # pragma: no cover
    panels.transpose(tile, 0, out, 0)


def test_a_dense_weight_of_any_shape() -> None:
    for shape in ((1, 1), (5, 31), (33, 65), (800, 7)):
        weight = normal(*shape)
        compare(normal(13, max(shape)), weight, weight.astype(np.float64))


@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, np.uint16), (ml_dtypes.bfloat16, np.int16)])
@pytest.mark.parametrize("parts", [1, 5, 1000])
def test_a_dense_weight_of_16_bits_gives_the_numbers_of_the_same_in_float32(dtype: Any, bits: Any, parts: int) -> None:
    """Whole, or in any number of parts: no column is left out."""
    for shape in ((1, 32), (33, 64), (850, 864)):
        weight, x = normal(*shape).astype(dtype), normal(13, shape[1])
        y = np.full((13, shape[0]), np.nan, np.float32)
        for function, arguments in matrices.forward_parts(x, weight.view(bits), y, parts):
            function(*arguments)
        np.testing.assert_array_equal(y, computed(matrices.forward, x, weight.astype(np.float32), shape[0]))


def test_a_tile_is_transposed() -> None:
    tile, out = normal(32, 32), np.empty((32, 32), np.float32)
    transposed(tile, out)
    np.testing.assert_array_equal(out, tile.T)
