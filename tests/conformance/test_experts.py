"""Products of experts and learned sink logits on every backend: any shape, 16-bit dtypes, tiles, and the CUDA path."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partita_backends
from partita.backend import MASKED, Backend, Sinks
from partita.quantization import Packed, dequantize, quantize_weight

from .. import bounds
from ..small_floats import KINDS, small_floats

NAMES = [name for name in partita_backends.names() if name != "numpy"]
DTYPES = ["float16", "bfloat16"]


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def expected_products(x: np.ndarray, weight: np.ndarray, index: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """One entry at a time, in float64."""
    x = np.broadcast_to(x, (*index.shape, x.shape[-1])).astype(np.float64)
    out = np.einsum("btki,btkoi->btko", x, weight.astype(np.float64)[index])
    return out if bias is None else out + bias[index]


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 11),
    chosen=st.integers(1, 4),
    experts=st.integers(1, 6),
    shared=st.booleans(),
    biased=st.booleans(),
    form=st.sampled_from([None, 4, 5, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_entry_goes_through_its_own_expert(
    ops: Backend,
    batch: int,
    tokens: int,
    chosen: int,
    experts: int,
    shared: bool,
    biased: bool,
    form: int | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    weight: Any = normal(rng, experts, 32, 32)
    if form is not None:
        weight = quantize_weight(weight, form, 32)
    values = dequantize(weight) if isinstance(weight, Packed) else weight
    x = normal(rng, batch, tokens, 1 if shared else chosen, 32)
    index = rng.integers(0, experts, (batch, tokens, chosen)).astype(np.int32)
    bias = normal(rng, experts, 32) if biased else None
    found = ops.moe_linear(
        ops.array(x), ops.prepare_experts(weight), ops.array(index), None if bias is None else ops.prepare_vector(bias)
    )
    bounds.assert_near(ops.to_numpy(found), expected_products(x, values, index, bias), bounds.drift(32 + 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 30])
def test_experts_in_16_bits(name: str, dtype: str, tokens: int) -> None:
    ops = partita_backends.load(name, device="cpu", dtype=dtype)
    rng = np.random.default_rng(tokens)
    dense, bias = normal(rng, 4, 48, 64), normal(rng, 4, 48)
    index = rng.integers(0, 4, (1, tokens, 2)).astype(np.int32)
    x = normal(rng, 1, tokens, 1, 64)
    for weight in (dense, quantize_weight(dense, 4, 32), quantize_weight(dense, 8, 64)):
        values = dequantize(weight) if isinstance(weight, Packed) else weight
        expected = expected_products(x, values, index, bias)
        prepared = ops.prepare_experts(weight)
        for _ in range(3):  # torch makes the operands of its int4 kernel for the second product
            found = ops.moe_linear(ops.array(x, dtype), prepared, ops.array(index), ops.prepare_vector(bias))
            # rounded: what comes in, a weight, its scale and offset, a product or two, the bias, and their sum; and
            # where the sum of 64 itself is taken in 16 bits, their random walk of eight
            bounds.assert_near(ops.to_numpy(ops.cast(found, "float32")), expected, bounds.gamma(8 + 8, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 20])
def test_sink_logits_in_16_bits(name: str, dtype: str, tokens: int) -> None:
    ops, oracle = partita_backends.load(name, device="cpu", dtype=dtype), partita_backends.load("numpy")
    found = attended(ops, tokens, dtype)
    # rounded: a query, a score and a weight, a product and its sums; scores reach 3.5
    bounds.assert_near(found, attended(oracle, tokens, "float32"), (1 + 3.5) * bounds.gamma(3, dtype), 1)


def attended(ops: Backend, tokens: int, dtype: str, *, packed: bool = False, logits: float | None = None) -> np.ndarray:
    """Attention with sinks and sink logits over 24 slots; logits: the same one for every head."""
    rng = np.random.default_rng(5)

    def array(*shape: int) -> Any:
        return ops.array(normal(rng, *shape), dtype)

    q, k, v = array(1, 4, tokens, 32), array(1, 2, 24, 32), array(1, 2, 24, 32)
    first = array(1, 4, tokens, 32), array(2, 1, 2, 3, 32), ops.zeros((1, tokens, 3), "float32")
    mask = ops.array(np.where(rng.random((1, tokens, 24)) < 0.6, 0, MASKED).astype(np.float32))
    sinks = Sinks(*first, ops.concat([first[2], mask], 2))
    column = normal(rng, 4) * 3 if logits is None else np.full(4, logits, np.float32)
    if packed:
        k, v = ops.quantize(k, 8, 32), ops.quantize(v, 8, 32)
    out = ops.cached_attention(q, k, v, mask, scale=0.2, sinks=sinks, softcap=None, sink_logits=ops.array(column))
    return ops.to_numpy(ops.cast(out, "float32"))


@pytest.mark.parametrize("packed", [False, True])
def test_sink_logits_of_every_tile(
    ops: Backend, oracle: Backend, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads are attended group by group once scores would be large; each group has its own logits."""
    place = {"mlx": "partita_backends.mlx_attention", "torch": "partita_backends.torch.attention"}
    if ops.name in place:
        monkeypatch.setattr(importlib.import_module(place[ops.name]), "TILE", 100)
    found = attended(ops, 20, "float32", packed=packed)
    expected = attended(oracle, 20, "float32", packed=packed)
    bounds.assert_near(found, expected, 2 * bounds.attention(32, 27, score=4, value=4), 1)


def test_a_sink_logit_takes_its_share(ops: Backend) -> None:
    """One far below every score changes nothing; one far above leaves nothing."""
    without = attended(ops, 3, "float32", logits=-1e4)
    assert np.abs(without).max() > 0.1
    np.testing.assert_array_equal(attended(ops, 3, "float32", logits=1e4), 0)


def test_a_row_that_sees_nothing_but_a_sink_logit_is_zero(ops: Backend) -> None:
    q, k = ops.array(np.ones((1, 2, 1, 32), np.float32)), ops.array(np.ones((1, 1, 4, 32), np.float32))
    mask, logits = ops.full((1, 1, 4), MASKED, "float32"), ops.zeros((2,), "float32")
    out = ops.cached_attention(q, k, k, mask, scale=1.0, sinks=None, softcap=None, sink_logits=logits)
    np.testing.assert_array_equal(ops.to_numpy(out), 0)


@pytest.mark.parametrize("form", [None, 4, 5, *KINDS])
def test_gathered_experts_equal_grouped_ones(form: int | tuple[str, bool] | None) -> None:
    """What torch does on CUDA for few rows and MLX on Metal for many, on the CPU."""
    rng = np.random.default_rng(0)
    weight: Any = normal(rng, 5, 16, 64)
    if isinstance(form, tuple):
        weight = small_floats(form[0], 5, 16, 64, factors=form[1])
    elif form is not None:
        weight = quantize_weight(weight, form, 32)
    for name, sorted_name in (("torch", None), ("mlx", "_sorted_experts")):
        if name not in NAMES:
            continue
        ops = partita_backends.load(name, device="cpu", dtype="float32")
        prepared = ops.prepare_experts(weight)
        for tokens, rows in ((1, 1), (6, 3), (40, 1)):
            x = ops.array(normal(rng, 1, tokens, rows, 64))
            index = ops.array(rng.integers(0, 5, (1, tokens, 3)).astype(np.int32))
            if sorted_name is not None:
                other = getattr(ops, sorted_name)(x, prepared, index)
            else:
                module = importlib.import_module("partita_backends.torch.experts")
                stacked = module.stack(weight, x.device, x.dtype)
                other = module.gathered(x, stacked, index, x.dtype)
            expected = ops.to_numpy(ops.moe_linear(x, prepared, index))
            bounds.assert_near(ops.to_numpy(other), expected, bounds.drift(2 * (64 + 4)))
