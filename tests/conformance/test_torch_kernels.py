"""The int4 kernel of torch's CPU build, which only "auto" uses, against the same weight dequantized."""

from __future__ import annotations

import numpy as np
import pytest

import partita_backends
from partita.quantization import dequantize, quantize_weight

from .. import bounds


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_the_kernel_equals_the_dequantized_product(bits: int, group_size: int, rows: int) -> None:
    ops = partita_backends.load("torch", device="cpu")
    rng = np.random.default_rng(bits)
    packed = quantize_weight(rng.standard_normal((48, 256)).astype(np.float32), bits, group_size)
    x = rng.standard_normal((1, rows, 256)).astype(np.float32)
    weight, expected = ops.prepare(packed), x.astype(np.float64) @ dequantize(packed).T
    first = ops.to_numpy(ops.linear(ops.array(x), weight))  # before the operands are made: in float32
    bounds.assert_near(first, expected, bounds.drift(256 + 4))
    second = ops.to_numpy(ops.linear(ops.array(x), weight))  # inputs, scales, offsets and one or two products rounded
    assert np.abs(second - first).max() > 0
    bounds.assert_near(second, expected, bounds.gamma(5, "bfloat16"))


def test_a_weight_that_the_kernel_does_not_take_is_multiplied_all_the_same() -> None:
    ops = partita_backends.load("torch", device="cpu")
    packed = quantize_weight(np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32), 4, 32)
    x = np.ones((1, 1, 64), np.float32)
    weight = ops.prepare(packed)
    for _ in range(2):
        found = ops.to_numpy(ops.linear(ops.array(x), weight))
        bounds.assert_near(found, x.astype(np.float64) @ dequantize(packed).T, bounds.drift(64 + 4))
