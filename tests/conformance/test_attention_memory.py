"""Attention over many slots works in tiles, so scores and unpacked keys cost little: the numbers stay."""

from __future__ import annotations

import numpy as np
import pytest

from partita.backend import MASKED, Backend
from partita.quantization import Packed, quantize_minmax

from .. import bounds, stacked

HEADS, KV_HEADS, D, SLOTS = 4, 2, 32, 5000


def on_device(ops: Backend, x: np.ndarray, bits: int):
    if bits == 16:
        return ops.cast(ops.array(x), "float16")
    packed = quantize_minmax(x, bits, 32)
    weight = ops.quantize(ops.array(x), bits, 32).weight
    return Packed(weight, ops.array(packed.scales), ops.array(packed.biases), bits, 32)


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 256), (2, 70), (1, 7)])
def test_a_chunk_over_many_slots_equals_the_oracle(
    ops: Backend, oracle: Backend, bits: int, with_sinks: bool, batch: int, tokens: int
) -> None:
    rng = np.random.default_rng(tokens + bits)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    q, k, v = normal(batch, HEADS, tokens, D), normal(batch, KV_HEADS, SLOTS, D), normal(batch, KV_HEADS, SLOTS, D)
    mask = np.where(rng.random((batch, tokens, SLOTS)) < 0.7, 0, MASKED).astype(np.float32)
    first = (normal(batch, HEADS, tokens, D), normal(batch, KV_HEADS, 3, D), normal(batch, KV_HEADS, 3, D))
    seen = np.zeros((batch, tokens, 3), np.float32)

    def run(player: Backend) -> np.ndarray:
        sinks = stacked.sinks(player, *first, seen, mask) if with_sinks else None
        keys, values = on_device(player, k, bits), on_device(player, v, bits)
        out = player.cached_attention(
            player.array(q), keys, values, player.array(mask), scale=0.3, sinks=sinks, softcap=20.0
        )
        return player.to_numpy(out)

    # so many values are 1 in the mean square, their scores up to 8
    bounds.assert_near(run(ops), run(oracle), 2 * bounds.attention(D, SLOTS + 3, score=8, value=1), 1)
