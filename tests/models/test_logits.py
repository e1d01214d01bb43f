"""Our logits against transformers' on the same weights and real text, and each default dtype against float32."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

import partita_backends
from partita.cache import Cache
from partita.language_model import LanguageModel

BACKENDS = partita_backends.names()
Load = Callable[..., LanguageModel]
Judge = Callable[..., np.ndarray]


def logits(model: LanguageModel, tokens: list[int], *, last: int | None = None, chunk: int = 256) -> np.ndarray:
    """Through the cache, in chunks: (n, V), or the last few positions only."""
    ops, cache, found = model.ops, Cache(model.ops, model.cache_spec(chunk=chunk)), []
    first = 0 if last is None else len(tokens) - last
    edges = sorted({*range(0, first, chunk), *range(first, len(tokens), chunk), len(tokens)})
    for start, end in pairwise(edges):
        part = ops.array(np.array([tokens[start:end]], np.int32))
        if start < first:
            model.decoder.feed(ops, part, cache)
            ops.launch(*cache.arrays())
        else:
            found.append(ops.to_numpy(model.decoder(ops, part, cache, every=True))[0])
    return np.concatenate(found)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def margin(x: np.ndarray) -> np.ndarray:
    top = np.partition(x, -2, -1)[:, -2:]
    return top[:, 1] - top[:, 0]


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    worst = np.abs(ours - theirs).max()
    assert worst <= 5e-3, f"a logit is {worst} off"
    clear = margin(theirs) > 5e-3
    assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_512_tokens_equal_transformers(load: Load, judge: Judge, speeches: str, name: str, backend: str) -> None:
    model = load(name, backend)
    tokens = model.tokenizer.encode(speeches[:8000])[:512]
    assert_close(logits(model, tokens), judge(name, tokens))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gemma_beyond_its_window_equals_transformers(load: Load, judge: Judge, speeches: str, backend: str) -> None:
    """2,048 tokens through sliding windows of 512 and two rope bases; the last 64 positions on mlx's slow CPU."""
    model = load("gemma3", backend)
    tokens = model.tokenizer.encode(speeches[:20_000])[:2048]
    last = 64 if backend == "mlx" else 1024
    assert_close(logits(model, tokens, last=last), judge("gemma3", tokens)[-last:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_default_dtype_stays_near_float32(load: Load, speeches: str, name: str, backend: str) -> None:
    """The second half is decoded token by token, where a device's default dtype differs most from float32."""
    exact, default = load(name, "torch"), load(name, backend, "auto")
    tokens = exact.tokenizer.encode(speeches[:8000])[:256]
    fed, decoded = tokens[:192], tokens[192:]
    ops, cache = default.ops, Cache(default.ops, default.cache_spec())
    default.decoder(ops, ops.array(np.array([fed], np.int32)), cache)
    steps = [default.decoder(ops, ops.array(np.array([[t]], np.int32)), cache) for t in decoded]
    ours = np.concatenate([ops.to_numpy(step) for step in steps])
    theirs = logits(exact, tokens)[192:]
    p, q = log_softmax(theirs), log_softmax(ours)
    assert (np.exp(p) * (p - q)).sum(-1).mean() <= 0.01
    clear = margin(theirs) > 0.25
    assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()
