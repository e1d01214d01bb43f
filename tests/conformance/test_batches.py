"""Rows of a batch through the whole decoder: each row's logits are what they are alone, whatever rows are beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import partita
from partita.backend import Backend
from partita.cache.state import Cache

from .. import bounds


@pytest.mark.parametrize("kv", ["32", "k8v8"])
def test_a_row_of_a_batch_equals_the_row_alone(ops: Backend, tiny_model: Path, kv: str) -> None:
    """Three rows at positions of their own, one beyond the wrap of its ring; one leaves in the middle.

    Products of three rows and of one differ in the last bits, and a key at the edge between two integers may then fall
    to either side (docs/experiments.md). With a quantized cache, logits after such a key differ more, but by less than
    they do from those of a dense cache, for which all numbers were rounded; most do not differ.
    """
    model = partita.load(tiny_model, backend=ops)
    spec, dense_spec = (model.cache_spec(context=24, sinks=2, kv=each, chunk=8) for each in (kv, "32"))
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 200, length).astype(np.int32) for length in (40, 3, 17)]

    def read(cache: Cache, text: np.ndarray) -> None:
        for start in range(0, len(text), 8):
            model.decoder.feed(ops, ops.array(text[None, start : start + 8]), cache)

    alone, dense = ([Cache(ops, each) for _ in texts] for each in (spec, dense_spec))
    batch, *others = (Cache(ops, spec) for _ in texts)
    for i, text in enumerate(texts):
        read(alone[i], text)
        read(dense[i], text)
        read([batch, *others][i], text)
    for other in others:
        batch.extend(other)
    members, away, cost, largest = [0, 1, 2], [], [], 0.0
    for turn in range(30):
        if turn == 12:
            batch.filter([0, 2])
            members = [0, 2]
        tokens = rng.integers(3, 200, 3).astype(np.int32)
        found = ops.to_numpy(model.decoder(ops, ops.array(tokens[members, None]), batch))
        for place, row in enumerate(members):
            token = ops.array(tokens[row : row + 1, None])
            expected, other = (ops.to_numpy(model.decoder(ops, token, cache[row]))[0] for cache in (alone, dense))
            away.append(np.abs(found[place] - expected).max())
            cost.append(np.abs(other - expected).max())
            largest = max(largest, np.abs(expected).max())
    error = bounds.logits(tiny_model) * largest
    assert np.median(away) <= error
    assert max(away) <= (error if kv == "32" else max(cost))


def test_a_ragged_step_equals_each_row_alone(ops: Backend, tiny_model: Path) -> None:
    """Rows with as many new tokens as they like in one step, none among them, until every ring has turned."""
    model = partita.load(tiny_model, backend=ops)
    spec = model.cache_spec(context=24, sinks=2, kv="32", chunk=8)
    rng = np.random.default_rng(3)
    batch, alone = Cache(ops, spec, batch=3), [Cache(ops, spec) for _ in range(3)]
    steps = [(8, 3, 5), (1, 8, 2), (3, 3, 3), (0, 7, 4), (8, 1, 1), (8, 8, 7), (8, 2, 8), (1, 6, 8), (4, 1, 1)]
    error = bounds.logits(tiny_model)
    for lengths in steps:
        padded = rng.integers(3, 200, (3, max(lengths))).astype(np.int32)
        if not min(lengths):
            model.decoder.feed(ops, ops.array(padded), batch, lengths=lengths)
            found = None
        else:
            found = ops.to_numpy(model.decoder(ops, ops.array(padded), batch, lengths=lengths))
            assert found.shape == (3, model.config.vocab_size)
        for row, length in enumerate(lengths):
            if length:
                text = ops.array(padded[row : row + 1, :length])
                expected = ops.to_numpy(model.decoder(ops, text, alone[row]))[0]
                if found is not None:
                    bounds.assert_near(found[row], expected, error)
        assert batch.offsets == [cache.offsets[0] for cache in alone]
    assert min(batch.offsets) > 24


def test_a_ragged_step_gives_logits_after_every_token(ops: Backend, tiny_model: Path) -> None:
    model = partita.load(tiny_model, backend=ops)
    spec = model.cache_spec(context=24, sinks=2, kv="32", chunk=8)
    text = np.random.default_rng(4).integers(3, 200, (2, 6)).astype(np.int32)
    found = model.decoder(ops, ops.array(text), Cache(ops, spec, batch=2), lengths=(6, 2), every=True)
    assert found.shape == (2, 6, model.config.vocab_size)
    for row, length in enumerate((6, 2)):
        expected = model.decoder(ops, ops.array(text[row : row + 1, :length]), Cache(ops, spec), every=True)
        ours, theirs = ops.to_numpy(found)[row, :length], ops.to_numpy(expected)[0]
        bounds.assert_near(ours, theirs, bounds.logits(tiny_model))


@pytest.mark.parametrize("family", ["llama", "gemma2", "muse_glimmer"])  # those that scale or norm what they embed
def test_embeddings_in_place_of_tokens(ops: Backend, tiny_family: Callable[[str], Path], family: str) -> None:
    """Those of the tokens give the tokens' logits, fed or computed, alone and in a ragged step; others give others."""
    model = partita.load(tiny_family(family), backend=ops)
    decoder, spec = model.decoder, model.cache_spec(context=24, sinks=2, kv="32", chunk=8)
    text, other = (np.random.default_rng(seed).integers(3, 200, (2, 5)).astype(np.int32) for seed in (5, 6))
    tokens, next_token = ops.array(text), ops.array(text[:, :1])
    embedded = decoder.embedded(ops, tokens)
    for lengths in (None, (5, 3)):
        plain, given, fed = (Cache(ops, spec, batch=2) for _ in range(3))
        expected = ops.to_numpy(decoder(ops, tokens, plain, lengths=lengths))
        found = ops.to_numpy(decoder(ops, ops.array(other), given, lengths=lengths, embeddings=embedded))
        np.testing.assert_array_equal(found, expected)
        decoder.feed(ops, ops.array(other), fed, lengths=lengths, embeddings=embedded)
        expected, *followed = (ops.to_numpy(decoder(ops, next_token, cache)) for cache in (plain, given, fed))
        for after in followed:
            np.testing.assert_array_equal(after, expected)
    changed = ops.to_numpy(decoder(ops, tokens, Cache(ops, spec, batch=2), embeddings=embedded * 0.5))
    assert np.abs(changed - ops.to_numpy(decoder(ops, tokens, Cache(ops, spec, batch=2)))).max() > 1e-3
