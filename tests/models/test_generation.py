"""The same tokens on every backend, with the cache and without it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import partita_backends
from partita.cache.state import Cache
from partita.language_model import LanguageModel

Load = Callable[..., LanguageModel]
PROMPT = "Write a short story about a dragon."


def greedy(model: LanguageModel, kv: str, count: int) -> list[tuple[int, float]]:
    """Tokens with the margin between the top two logits."""
    found = []
    pieces = model.session(kv=kv).generate(model.encode(PROMPT), max_tokens=count, alternatives=2)
    for piece in pieces:
        if piece.token is not None:
            (_, best), (_, second) = piece.token.alternatives
            found.append((piece.token.id, float(np.log(best / second))))
    return found


def assert_same(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> None:
    """Equal tokens, up to a first difference where the top two logits are closer than the backends compute."""
    for (token, _), (expected, margin) in zip(ours, theirs, strict=False):
        if token != expected:
            assert margin <= 1e-3, f"{token} instead of {expected}, which leads by {margin}"
            return
    assert len(ours) == len(theirs)


@pytest.mark.parametrize(("layers", "count"), [(range(6), 24), pytest.param(None, 100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kv", ["auto", "k8v8"])
def test_greedy_tokens_are_the_same_on_every_backend(load: Load, kv: str, layers: range | None, count: int) -> None:
    expected = greedy(load("smollm2", "numpy", layers=layers), kv, count)
    assert len(expected) == count
    for backend in partita_backends.names():
        assert_same(greedy(load("smollm2", backend, layers=layers), kv, count), expected)


@pytest.mark.parametrize(("backend", "count", "layers"), [("torch", 16, None), ("mlx", 6, range(3))])
def test_the_cache_changes_no_token(load: Load, backend: str, count: int, layers: range | None) -> None:
    """Decoding with the cache against recomputing the whole sequence for every token; with MLX in full: test_long."""
    model = load("smollm2", backend, layers=layers)
    ops, prompt = model.ops, model.encode(PROMPT)
    cached = greedy(model, "auto", count)
    tokens = list(prompt)
    for token, margin in cached:
        cache = Cache(ops, model.cache_spec(chunk=512))
        logits = ops.to_numpy(model.decoder(ops, ops.array(np.array([tokens], np.int32)), cache))[0]
        assert token == int(logits.argmax()) or margin <= 1e-3
        tokens.append(token)
