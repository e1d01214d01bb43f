"""Keys that are stored less a centre: attention is what it was, and rounding to few bits loses less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from partita.backend import Backend
from partita.cache import centres
from partita.cache.centres import is_centred
from partita.cache.kv_format import KVFormat
from partita.cache.spec import CacheSpec, LayerSpec, Span
from partita.cache.state import Cache
from partita.model.config import RopeConfig

from .. import bounds
from ..stacked import attend

D, HEADS, KV_HEADS, CHUNK = 32, 4, 2, 6
PLAIN = RopeConfig(10_000.0, D)
ROPES = {
    "plain": PLAIN,
    "part of a head": RopeConfig(10_000.0, D // 2),
    "yarn": RopeConfig(10_000.0, D, "yarn", 4.0, original_max_positions=64, attention_factor=1.2),
}
LAYER = LayerSpec(KV_HEADS, D, Span(12, 3), PLAIN, 0.3, None)


def outputs(ops: Backend, layers: tuple[LayerSpec, ...], kv: str, steps: list[int], common: float) -> list[np.ndarray]:
    """What every layer sees at every step. common: what all keys of a head have in each dim that hardly turns."""
    cache, rng, found = (
        Cache(ops, CacheSpec(layers, KVFormat.parse(kv), 8192, 3, CHUNK), 2),
        np.random.default_rng(0),
        [],
    )
    slow = np.where(np.arange(D) % (D // 2) >= D // 2 - 3, np.float32(common), np.float32(0))
    for tokens in steps:
        cache.advance(tokens)
        for layer in range(len(layers)):
            q, k, v = (rng.standard_normal((2, h, tokens, D)).astype(np.float32) for h in (HEADS, KV_HEADS, KV_HEADS))
            found.append(attend(cache, layer, q, k + slow, v))
    return found


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kv", ["k32v16", "k32v16h"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_centre_changes_no_attention(
    ops: Backend, rope: str, kv: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken from keys that nothing rounds: before the ring turns and beyond the anchor, one query a step or several, in
    layers that are alike and in others."""
    layers = (replace(LAYER, rope=ROPES[rope]), replace(LAYER, rope=ROPES[rope]), replace(LAYER, span=Span(None, 2)))
    steps = [2, 3, 6, *[tokens] * 20, 1, 4]
    plain = outputs(ops, layers, kv, steps, 2.0)
    monkeypatch.setattr(centres, "MOST_BITS", 32)
    assert all(is_centred(layer, CacheSpec(layers, KVFormat.parse(kv), 8192, 3, CHUNK)) for layer in layers)
    for found, expected in zip(outputs(ops, layers, kv, steps, 2.0), plain, strict=True):
        # with the rotations and the Hadamard matrix, sums over D three times; scores reach 40
        bounds.assert_near(found, expected, 2 * bounds.attention(3 * D, 130, score=40, value=5), 1)


@pytest.mark.parametrize(("kv", "biased"), [("k4v8", False), ("k4v8h", False), ("k8v8", True)])
@pytest.mark.parametrize("tokens", [1, 5])
def test_what_keys_have_in_common_costs_no_precision(
    ops: Backend, kv: str, biased: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = (replace(LAYER, key_bias=biased, rope=RopeConfig(1e6, D)),)
    steps = [6, 6, *[tokens] * 10]
    exact = outputs(ops, layers, "32", steps, 50.0)

    def error() -> float:
        found = outputs(ops, layers, kv, steps, 50.0)
        return float(np.mean([np.abs(a - b).mean() for a, b in zip(found, exact, strict=True)]))

    centred = error()
    monkeypatch.setattr(centres, "is_centred", lambda layer, spec: False)
    assert centred < error() / 2


@pytest.mark.parametrize(
    ("layer", "kv", "expected"),
    [
        (LAYER, "k4v4", True),
        (LAYER, "k4v16", True),
        (LAYER, "k8v4", False),
        (LAYER, "16", False),
        (replace(LAYER, key_bias=True), "k8v4", True),
        (replace(LAYER, key_bias=True), "16", False),
        (replace(LAYER, span=Span(12, 1)), "k4v4", False),  # the first alone is unlike other keys
        (replace(LAYER, span=Span(12, 0)), "k4v4", False),
        (replace(LAYER, rope=None), "k4v4", False),
        (replace(LAYER, softcap=30.0), "k4v4", False),  # a cap is no longer where it was
        (replace(LAYER, sink_logits=True), "k4v4", False),  # what has no key does not move with the others
    ],
)
def test_which_layers_are_centred(layer: LayerSpec, kv: str, expected: bool) -> None:
    spec = CacheSpec((layer,), KVFormat.parse(kv), 8192, 3, CHUNK)
    assert is_centred(layer, spec) is expected
    assert not is_centred(layer, replace(spec, context=8193))  # keys turn away from the centre
    assert not is_centred(layer, replace(spec, context=None))
