"""Minutes rather than seconds, run by `make test-long`: texts without end, and MLX's slow CPU device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from partita.cache.state import Cache
from partita.inference.perplexity import perplexity, segments, token_losses
from partita.language_model import LanguageModel

Load = Callable[..., LanguageModel]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(("kv", "sinks", "bound"), [("16", 4, 26.0), ("k8v4", 4, 27.0)])
def test_an_endless_text_stays_readable(load: Load, speeches: str, kv: str, sinks: int, bound: float) -> None:
    """20,480 tokens through a cache of 1,024: perplexity of the last 2,048, and memory that stops growing."""
    model = load("smollm2", "torch", "auto")
    tokens = model.tokenizer.encode(speeches)[:20_480]
    cache, sizes = Cache(model.ops, model.cache_spec(context=1024, sinks=sinks, kv=kv)), []
    losses = token_losses(
        model.ops, model.decoder, cache, tokens, on_progress=lambda done, _: sizes.append((done, cache.nbytes))
    )
    assert len(tokens) == 20_480
    assert segments(losses, 2048)[-1].perplexity <= bound
    assert perplexity(losses) <= 20
    assert len({size for done, size in sizes if done > 2048}) == 1


def test_gemma_at_4096_tokens_equals_transformers(load: Load, judge: Callable[..., Any], tokens: Any) -> None:
    """Where a wrong rope base of the global layers shows, which reads well for 2,000 tokens: the last 64 of 4,096."""
    text = tokens("gemma3", 4096)
    judged, model = judge("gemma3", text), load("gemma3", "torch")
    ops, cache = model.ops, Cache(model.ops, model.cache_spec(chunk=64))
    for start in range(0, 4032, 64):
        model.decoder.feed(ops, ops.array(np.array([text[start : start + 64]], np.int32)), cache)
    ours = ops.to_numpy(model.decoder(ops, ops.array(np.array([text[4032:]], np.int32)), cache, every=True))[0]
    assert np.abs(ours - judged[4032:]).max() <= 5e-3


def test_mlx_decodes_the_same_with_and_without_the_cache(load: Load) -> None:
    """64 greedy tokens in float32, each also by feeding the whole sequence to an empty cache."""
    model = load("smollm2", "mlx")
    ops, tokens = model.ops, model.encode("Write a short story about a dragon.")
    held, feed = Cache(ops, model.cache_spec(chunk=512)), tokens
    for _ in range(64):
        cached = ops.to_numpy(model.decoder(ops, ops.array(np.array([feed], np.int32)), held))[0]
        fresh = Cache(ops, model.cache_spec(chunk=512))
        whole = ops.to_numpy(model.decoder(ops, ops.array(np.array([tokens], np.int32)), fresh))[0]
        second, best = np.sort(whole)[-2:]
        assert cached.argmax() == whole.argmax() or best - second <= 1e-3
        feed = [int(whole.argmax())]
        tokens = tokens + feed
