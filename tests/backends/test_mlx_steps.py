"""What a decode step on MLX launches and copies: structure, counted on a CPU as Metal would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import partita
import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import CacheSpec, LayerSpec, Span
from partita.cache.state import Cache
from partita.model.config import RopeConfig
from partita.quantization import quantize_minmax
from partita.rings import sides
from partita_apps.bench.launches import count
from partita_backends import mlx as mlx_backend

from ..conftest import LAYERS

STEP = 48
"""Launches of a step that no layer has: tokens, angles, masks, the head."""
ROPE = RopeConfig(10_000.0, 64)


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama packed in 4 bits."""
    made = tmp_path_factory.mktemp("packed") / "model"
    partita.convert(tiny_model, made, quantize="4:32")
    return made


@pytest.mark.parametrize(
    ("kv", "context", "layer"), [("16", None, 12), ("16", 16, 13), ("k8v4", None, 27), ("k4v4", None, 31)]
)
@pytest.mark.parametrize(("dtype", "batch"), [("float16", 1), ("float16", 2), ("bfloat16", 1)])
def test_launches_of_a_step(folder: Path, kv: str, context: int | None, layer: int, dtype: str, batch: int) -> None:
    """Each layer has one norm, product, rotation, write and attention; behind the anchor one write more, and less a
    centre two passes."""
    found = count(model=str(folder), prompt=24, batch=batch, dtype=dtype, kv=kv, context=context)
    assert sum(found.values()) <= LAYERS * layer + STEP
    writes = sum(found.get(name, 0) for name in ("DynamicSliceUpdate", "ScatterAxis"))
    if kv == "16":
        assert found["scaled_dot_product_attention"] == LAYERS
        assert writes == LAYERS + 1  # and the positions
        assert found.get("AsType", 0) <= 4  # of positions: no layer has one
    else:
        assert writes == 4 * LAYERS + 1
        centred = kv == "k4v4"
        assert found.get("AsType", 0) <= LAYERS + 4 + centred * (LAYERS + 1)  # the sinks' keys; what they lose
    assert found.get("Gather", 0) < 12  # a gather of a cache would be a copy


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_words_are_those_of_what_was_rotated(dtype: str) -> None:
    """Beside a packed ring a rotation gives float16, whatever the stream has: it rounds less than bfloat16 does, and
    nothing is cast behind it. Words, scales and biases are the oracle's of these numbers, bit by bit."""
    ops, cache = ring(0, "k8v4", dtype)
    x = ops.array(np.random.default_rng(3).normal(0, 2, (1, 12, 6, 64)).astype(np.float32), dtype)
    cache.advance(12)
    assert cache.attend(0, x, 2).dtype == x.dtype
    places = ops.array(np.arange(12, dtype=np.int32)[None])
    turns = ops.turns(*cache._ropes[ROPE].angles(places), 4, 2, packs=True)
    new = ops.to_numpy(ops.rotate(x, turns))[:, 4:, 2:].swapaxes(1, 2)  # the first four are sinks
    assert new.dtype == np.float16
    for side, part, bits in zip(sides(cache._layers[0].kv), np.split(new, 2, 1), (8, 4), strict=True):
        expected = quantize_minmax(part.astype(np.float32), bits, 32)
        for own, exact in zip((side.weight, *side.grid), (expected.weight, *expected.grid), strict=True):
            np.testing.assert_array_equal(np.array(own)[:, :, : part.shape[2]], exact)


def ring(tokens: int, kv: str, dtype: str = "float16") -> tuple[Any, Cache]:
    """A cache of one layer with room for so many tokens, on MLX."""
    ops: Any = partita_backends.load("mlx", device="cpu", dtype=dtype)
    layer = LayerSpec(2, 64, Span(None, 4), ROPE, 0.125, None)
    cache = Cache(ops, CacheSpec((layer,), KVFormat.parse(kv), 8192, 4, 64))
    for _ in range(tokens // 64):
        cache.advance(64)
        cache.attend(0, ops.array(np.zeros((1, 64, 6, 64), np.float16)), 2)
        mx.eval(*cache.arrays())
    return ops, cache


@pytest.mark.parametrize("kv", ["16", "k8v4"])
def test_steps_write_into_the_cache_they_have(kv: str) -> None:
    """A step that is built before the last one has been read, and started when it has been, copies no ring."""
    ops, cache = ring(8000, kv)  # of 8,192: none of the steps below makes the ring longer
    x = ops.array(np.ones((1, 1, 6, 64), np.float16))
    mx.synchronize()
    mx.reset_peak_memory()
    held, waiting = mx.get_active_memory(), None
    for _ in range(6):
        cache.advance(1)
        y = cache.attend(0, x, 2).swapaxes(1, 2)
        x = mx.concatenate([y, y, y], 2)
        if waiting is not None:
            waiting()
        waiting = ops.fetch(x)
    mx.synchronize()
    assert mx.get_peak_memory() - held < cache.nbytes / 4


def test_metal_is_set_up_as_for_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights stay resident, freed memory is bounded, and work has a stream of its own."""
    calls: list[tuple[str, Any]] = []
    for name in ("set_wired_limit", "set_cache_limit", "set_default_stream"):
        monkeypatch.setattr(mx, name, lambda value, name=name: calls.append((name, value)))
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 12 * 2**30})
    monkeypatch.setattr(mx, "new_stream", lambda device: ("stream", device))
    mlx_backend._settle()
    assert calls == [
        ("set_wired_limit", 12 * 2**30),
        ("set_cache_limit", mlx_backend.KEPT_BYTES),
        ("set_default_stream", ("stream", mx.gpu)),
    ]


def test_a_copy_keeps_its_own_memory_alone() -> None:
    """MLX's slices share the whole buffer that they are a part of."""
    ops = partita_backends.load("mlx", device="cpu")
    whole = ops.array(np.ones((1, 4, 4096, 64), np.float32))
    before = mx.get_active_memory()
    part = ops.copy(whole[:, :, :256])
    mx.eval(part)
    del whole
    assert mx.get_active_memory() - before < part.nbytes - (3 << 20)
    assert ops.to_numpy(part).sum() == part.size
