"""A row put into a cache of others, taken out, and dropped: it goes on as in a cache of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import partita
from partita.backend import Backend
from partita.cache.spec import CacheSpec
from partita.cache.state import Cache
from partita.errors import ContextError
from partita.language_model import LanguageModel

CHUNK = 12


@pytest.fixture(scope="module")
def model(ops: Backend, tiny_model: Path) -> LanguageModel:
    return partita.load(tiny_model, backend=ops)


@pytest.fixture(params=["32", "k8v4", "k8v32"], scope="module")
def spec(request: pytest.FixtureRequest, model: LanguageModel) -> CacheSpec:
    return model.cache_spec(context=40, sinks=2, kv=request.param, chunk=CHUNK)


def feed(model: LanguageModel, cache: Cache, tokens: list[int]) -> np.ndarray:
    """Logits after the last of them."""
    chunks = [tokens[start : start + CHUNK] for start in range(0, len(tokens), CHUNK)]
    found = [model.decoder(model.ops, model.ops.array(np.asarray([chunk], np.int32)), cache) for chunk in chunks]
    return model.ops.to_numpy(found[-1])[0]


def step(model: LanguageModel, cache: Cache, tokens: list[int]) -> np.ndarray:
    return model.ops.to_numpy(model.decoder(model.ops, model.ops.array(np.asarray(tokens, np.int32)[:, None]), cache))


def text(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 250, count).tolist()


@pytest.mark.parametrize("length", [1, 30, 41, 90])  # within the ring, at its end, turned
def test_a_row_goes_on_where_it_is_put(model: LanguageModel, spec: CacheSpec, length: int) -> None:
    own, other, together = Cache(model.ops, spec), Cache(model.ops, spec), Cache(model.ops, spec, 3, room=60)
    feed(model, own, text(1, length))
    feed(model, other, text(2, 20))
    together.drop(0)
    together.put(2, other.row(0))
    for token in (3, 4):
        step(model, together, [0, 0, token])
        step(model, other, [token])
    together.put(1, own.row(0))
    for token in range(5, 9):
        found = step(model, together, [0, token, token + 20])
        np.testing.assert_allclose(found[1], step(model, own, [token])[0], atol=2e-3)
        np.testing.assert_allclose(found[2], step(model, other, [token + 20])[0], atol=2e-3)
    assert together.offsets[1:] == [own.offsets[0], other.offsets[0]]
    alone = Cache(model.ops, spec)
    alone.restore(together.row(1))
    together.drop(1)
    together.put(0, alone.row(0))
    found = step(model, together, [9, 0, 30])
    np.testing.assert_allclose(found[0], step(model, own, [9])[0], atol=2e-3)
    np.testing.assert_allclose(found[2], step(model, other, [30])[0], atol=2e-3)


def test_a_row_takes_no_room_that_it_has_not_reached(model: LanguageModel, spec: CacheSpec) -> None:
    small, large = Cache(model.ops, spec), Cache(model.ops, spec, 2, room=60)
    feed(model, small, text(1, 5))
    large.put(1, small.row(0))
    assert large.row(1).nbytes == small.nbytes
    assert large.row(1).offsets == (5,)


def test_room_is_there_from_the_start(model: LanguageModel) -> None:
    spec = model.cache_spec(context=400, kv="32")
    cache, grown = Cache(model.ops, spec, room=400), Cache(model.ops, spec)
    held = cache.nbytes
    np.testing.assert_allclose(feed(model, cache, text(3, 380)), feed(model, grown, text(3, 380)), atol=2e-3)
    assert cache.nbytes == held == grown.nbytes
    cache.reset()
    assert cache.nbytes == held > Cache(model.ops, spec).nbytes


def test_rows_of_another_layout_are_refused(model: LanguageModel, spec: CacheSpec) -> None:
    cache = Cache(model.ops, spec, 2)
    with pytest.raises(ContextError, match="another layout"):
        cache.put(0, Cache(model.ops, model.cache_spec(context=41, kv="32")).row(0))
    with pytest.raises(ContextError, match="another layout"):
        cache.put(0, Cache(model.ops, spec, 2).state())
