"""The kernels of torch's CPU that know a cache: attention of a few queries, and writes of a few tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import partita_backends
from partita.backend import MASKED, Backend
from partita.quantization import Packed, quantize_minmax
from partita.rings import Sides
from partita_backends.torch import cpu

from .. import bounds, stacked

FORMATS = ("float32", "float16", "bfloat16", (8, 4, 32), (4, 8, 32), (8, 8, 64), (4, 4, 64))


@pytest.fixture(scope="module")
def ops() -> Backend:
    return partita_backends.load("torch", device="cpu", dtype="float32", threads=1)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def stored(ops: Backend, x: np.ndarray, form: Any, side: int) -> tuple[Any, Any]:
    """A side as torch holds it, and as the oracle takes it."""
    if isinstance(form, str):
        held = ops.cast(ops.array(x), form)
        return held, ops.to_numpy(ops.cast(held, "float32"))
    packed = quantize_minmax(x, form[side], form[2])
    return packed.map(ops.array), packed


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("size", [64, 128, 192, 256])
@pytest.mark.parametrize("seed", range(4))
def test_attention_is_the_oracle_s(ops: Backend, oracle: Backend, form: Any, size: int, seed: int) -> None:
    """Odd numbers of slots, rows and tokens; slots that nobody sees, and in seed 3 a row of the batch without any."""
    rng = np.random.default_rng(seed)
    batch, tokens, kv_heads = int(rng.integers(1, 4)), int(rng.integers(1, 9)), int(rng.integers(1, 4))
    heads, slots, kept = kv_heads * int(rng.integers(1, 5)), int(rng.integers(1, 200)), (0, 5, 3, 0)[seed]
    q, k, v = (normal(rng, batch, h, t, size) for h, t in ((heads, tokens), (kv_heads, slots), (kv_heads, slots)))
    shape = batch, tokens, slots
    mask = np.where((rng.random(shape) < 0.7) & (rng.random(slots) < 0.8), np.float32(0), np.float32(MASKED))
    mask[..., : slots // 2] = MASKED if seed == 1 else 0  # whole blocks
    (key, own_key), (value, own_value) = stored(ops, k, form, 0), stored(ops, v, form, 1)
    first = None
    if kept:
        first = [normal(rng, batch, heads, tokens, size), *(normal(rng, batch, kv_heads, kept, size) for _ in "kv")]
        first.append(np.where(np.arange(kept) < kept - 1, 0, MASKED) + np.zeros((batch, tokens, 1), np.float32))
        first[3] = first[3].astype(np.float32)
    elif seed == 3:
        mask[0] = MASKED
    else:
        mask[..., 0] = 0
    extra = normal(rng, heads) if seed == 2 else None
    options: dict[str, Any] = {"scale": size**-0.5, "softcap": 20.0 if seed == 2 else None}
    given = ops.array(q), key, value, ops.array(mask)
    logits = None if extra is None else ops.array(extra)
    shift = normal(rng, batch, heads, tokens)
    sinks, own_sinks = (
        replace(stacked.sinks(x, *first, mask), shift=x.array(shift) if seed == 2 else None) if first else None
        for x in (ops, oracle)
    )
    found = ops.to_numpy(ops.cached_attention(*given, sinks=sinks, sink_logits=logits, **options))
    exact = oracle.cached_attention(q, own_key, own_value, mask, sinks=own_sinks, sink_logits=extra, **options)
    assert np.isfinite(found).all()
    rows = slice(1, None) if seed == 3 else slice(None)  # of nothing, anything finite
    bound = bounds.attention(size, slots + kept, score=20, value=np.abs(v).max() + 1)
    bounds.assert_near(found[rows], exact[rows], 2 * bound, 1)


@pytest.mark.parametrize("form", ["float32", (8, 4, 32)], ids=str)
def test_a_query_gives_the_same_bits_alone_and_among_others(ops: Backend, form: Any) -> None:
    """Other tokens, other rows of the batch, more slots that are hidden, more threads: none of them adds anything."""
    rng = np.random.default_rng(5)
    q, k, v = normal(rng, 2, 6, 4, 64), normal(rng, 2, 2, 96, 64), normal(rng, 2, 2, 96, 64)
    mask = np.where(np.arange(96) <= 50 + np.arange(4)[:, None], 0, MASKED).astype(np.float32)[None].repeat(2, 0)

    def attend(ops: Backend, b: slice, t: slice, slots: int) -> np.ndarray:
        key, value = (stored(ops, x[b, :, :slots], form, side)[0] for side, x in enumerate((k, v)))
        parts = ops.array(q[b, :, t]), key, value, ops.array(mask[b, t, :slots])
        return ops.to_numpy(ops.cached_attention(*parts, scale=0.125, sinks=None, softcap=None))

    whole = attend(ops, slice(None), slice(None), 96)
    for row in range(2):
        for t in range(4):
            alone = attend(ops, slice(row, row + 1), slice(t, t + 1), 64)
            np.testing.assert_array_equal(alone[0, :, 0], whole[row, :, t])
    two = partita_backends.load("torch", device="cpu", dtype="float32", threads=2)
    try:
        np.testing.assert_array_equal(attend(two, slice(None), slice(None), 96), whole)
    finally:
        partita_backends.load("torch", device="cpu", threads=1)


@pytest.mark.parametrize("form", ["float32", (8, 8, 32)], ids=str)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the rule itself, of what is not finite
def test_what_is_not_finite_in_a_hidden_slot_does_not_show(ops: Backend, form: Any) -> None:
    rng = np.random.default_rng(6)
    q, k, v = normal(rng, 1, 2, 1, 64), normal(rng, 1, 1, 40, 64), normal(rng, 1, 1, 40, 64)
    mask = np.zeros((1, 1, 40), np.float32)
    mask[..., [3, 39]] = MASKED
    results = []
    for bad in (0.0, np.nan):
        k[:, :, [3, 39]] = v[:, :, [3, 39]] = bad
        key, value = (stored(ops, x, form, side)[0] for side, x in enumerate((k, v)))
        out = ops.cached_attention(ops.array(q), key, value, ops.array(mask), scale=0.1, sinks=None, softcap=None)
        results.append(ops.to_numpy(out))
    np.testing.assert_array_equal(*results)


VALUES = {
    "plain": lambda x: x,
    "large": lambda x: x * 3e4,
    "tiny": lambda x: x * 1e-7,
    "below float16": lambda x: x * 1e-9,
    "halves": lambda x: np.round(x * 8) / 2,
    "infinite": lambda x: np.where(np.arange(x.shape[-1]) % 37 == 5, np.float32(np.inf), x),
    "negative infinite": lambda x: np.where(np.arange(x.shape[-1]) % 37 == 5, np.float32(-np.inf), x),
    "no number": lambda x: np.where(np.arange(x.shape[-1]) % 37 == 5, np.float32(np.nan), x),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the rule itself, of what is not finite
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_what_is_packed_in_one_pass_is_the_rule_s_to_the_bit(ops: Backend, name: str, bits: int, group: int) -> None:
    rng = np.random.default_rng(bits + group)
    for size in (64, 128, 192):
        x = VALUES[name](normal(rng, 2, 3, 4, size)).astype(np.float32)
        index = np.array([[7, 0, 3, 4], [1, 2, 9, 8]], np.int32)
        written = quantize_minmax(np.zeros((2, 3, 10, size), np.float32), bits, group).map(ops.array)
        assert cpu.writes(written, ops.array(x))
        stacked = np.concatenate([x.swapaxes(1, 2), x.swapaxes(1, 2)], 2)
        ops.store(Sides(ops.zeros((2, 3, 10, size), "float32"), written), ops.array(stacked), ops.array(index))
        rule = quantize_minmax(x, bits, group)
        for found, exact in (
            (written.weight, rule.weight),
            (written.scales, rule.scales),
            (written.grid[1], rule.grid[1]),
        ):
            held = np.asarray(ops.to_numpy(found)).view(exact.dtype)
            for b in range(2):
                np.testing.assert_array_equal(held[b][:, index[b]], exact[b])
                others = np.setdiff1d(np.arange(10), index[b])
                assert not held[b][:, others].astype(np.float32).any()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dense_writes_round_as_torch_does(ops: Backend, dtype: str) -> None:
    rng = np.random.default_rng(8)
    spread = 2.0 ** rng.integers(-28, 20, (1, 2, 5, 96))
    x = (normal(rng, 1, 2, 5, 96) * spread).astype(np.float32)
    x[0, 0, 0, :8] = [np.inf, -np.inf, np.nan, 65519, 65520, -0.0, 2.0**-25, 3 * 2.0**-25]
    x[0, 1, :, ::2] = 1 + (2 * rng.integers(0, 2**8, (5, 48)) + 1) * 2.0**-11  # ties of float16
    x[0, 1, :, 1::2] = 1 + (2 * rng.integers(0, 2**5, (5, 48)) + 1) * 2.0**-8  # of bfloat16
    index = np.array([[4, 1, 0, 7, 2]], np.int32)
    buffer = ops.zeros((1, 2, 9, 96), dtype)
    assert cpu.writes(buffer, ops.array(x))
    found: Any = ops.write(buffer, ops.array(x), ops.array(index))
    exact: Any = ops.cast(ops.array(x), dtype)
    np.testing.assert_array_equal(
        ops.to_numpy(ops.cast(found, "float32"))[:, :, index[0]], ops.to_numpy(ops.cast(exact, "float32"))
    )
    assert not ops.to_numpy(ops.cast(found, "float32"))[:, :, [3, 5, 6, 8]].any()


def test_what_kernels_do_not_take_is_written_by_torch(ops: Backend) -> None:
    """Rows in no whole lanes, and buffers that are views."""
    x = ops.array(normal(np.random.default_rng(9), 1, 2, 1, 48))
    index = ops.array(np.array([[2]], np.int32))
    buffer = ops.zeros((1, 2, 4, 48), "float32")
    assert not cpu.writes(buffer, x)
    np.testing.assert_array_equal(ops.to_numpy(ops.write(buffer, x, index))[:, :, 2], ops.to_numpy(x)[:, :, 0])
    packed = quantize_minmax(np.zeros((2, 2, 4, 64), np.float32), 8, 32).map(ops.array)
    half: Packed[Any] = packed.map(lambda part: part[:, :1])
    assert not cpu.writes(half, ops.zeros((2, 1, 1, 64), "float32"))
