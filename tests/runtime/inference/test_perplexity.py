"""Perplexity and what a cache loses against another, against the formulas in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from partita.cache.state import Cache
from partita.errors import DataError
from partita.inference.perplexity import compare, perplexity, segments, token_losses
from partita.language_model import LanguageModel, load

from ... import bounds

IDS = [int(i) for i in np.random.default_rng(1).integers(0, 250, 150)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return load(tiny_model, backend="numpy")


def cache(model: LanguageModel, kv: str, chunk: int = 64) -> Cache:
    return Cache(model.ops, model.cache_spec(kv=kv, chunk=chunk))


def log_probabilities(model: LanguageModel, kv: str) -> np.ndarray:
    """float64 (n - 1, V), in the chunks of the cache: in others, a number at the edge between two integers of few bits
    might fall to the other side."""
    ops, held = model.ops, cache(model, kv)
    chunks = (ops.array(np.asarray([IDS[:-1][start : start + 64]], np.int32)) for start in range(0, len(IDS) - 1, 64))
    logits = np.concatenate(
        [ops.to_numpy(model.decoder(ops, x, held, every=True))[0] for x in chunks], dtype=np.float64
    )
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_losses_and_divergence_equal_the_formulas(model: LanguageModel) -> None:
    p, q = log_probabilities(model, "32"), log_probabilities(model, "k4v4")
    found = compare(model.ops, model.decoder, cache(model, "32"), cache(model, "k4v4"), IDS)
    error = bounds.drift(300 + 16)  # the vocabulary, and functions; of log-probabilities, whose largest count
    bounds.assert_near(found.losses, -q[np.arange(len(q)), IDS[1:]], error, np.abs(q).max())
    bounds.assert_near(found.divergence, (np.exp(p) * (p - q)).sum(-1), error, np.abs(p).max())
    bounds.assert_near(found.kl, (np.exp(p) * (p - q)).sum(-1).mean(), error, np.abs(p).max())
    assert found.top1 == (p.argmax(-1) == q.argmax(-1)).mean()
    np.testing.assert_allclose(token_losses(model.ops, model.decoder, cache(model, "k4v4"), IDS), found.losses)


def test_a_cache_loses_nothing_against_itself(model: LanguageModel) -> None:
    found = compare(model.ops, model.decoder, cache(model, "k8v4"), cache(model, "k8v4"), IDS)
    assert (found.kl, found.top1) == (0.0, 1.0)


def test_more_bits_lose_less(model: LanguageModel) -> None:
    kls = [compare(model.ops, model.decoder, cache(model, "32"), cache(model, kv), IDS).kl for kv in ("k8v8", "k4v4")]
    assert 0 < kls[0] < kls[1] / 10


def test_what_cannot_be_compared_is_refused(model: LanguageModel) -> None:
    with pytest.raises(DataError, match="chunks of 32 and 64"):
        compare(model.ops, model.decoder, cache(model, "32", 32), cache(model, "32"), IDS)
    with pytest.raises(DataError, match="too short"):
        compare(model.ops, model.decoder, cache(model, "32"), cache(model, "32"), IDS[:1])


def test_segments_cover_every_prediction_once() -> None:
    losses = np.arange(9.0) / 10
    parts = segments(losses, 4)
    assert [(part.start, part.end) for part in parts] == [(0, 4), (4, 8), (8, 10)]
    expected = [losses[:3], losses[3:7], losses[7:]]
    assert [part.perplexity for part in parts] == pytest.approx([np.exp(x.mean()) for x in expected])
    assert perplexity(np.array([800.0])) == np.inf
