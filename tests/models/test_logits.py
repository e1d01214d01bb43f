"""Our logits against transformers' on the same weights and real text, and each default dtype against float32.

torch reads the whole models. numpy, and MLX on a CPU, read their first layers: the decoder is written once, so what a
backend could do differently stands in every layer (Gemma's first six have five sliding ones and a global one).
`make test-long` reads all layers with MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import numpy as np
import pytest

import partita_backends
from partita.cache.state import Cache
from partita.language_model import LanguageModel

BACKENDS = sorted(partita_backends.names(), reverse=True)  # those of six layers one after the other: one judge
Load = Callable[..., LanguageModel]
Tokens = Callable[[str, int], list[int]]


class Logits(Protocol):
    """transformers' for one text."""

    def __getitem__(self, positions: slice) -> np.ndarray: ...  # float32 (positions, V)


Judge = Callable[..., Logits]
BLOCK = 32  # positions whose logits are held at a time
TOLERANCE = 5e-3
"""Of a logit of up to 40. Between float32's own noise (the order of sums: 2e-4 on all machines seen) and
one rounding to bfloat16 anywhere in the stream, 2^-9 of a logit: 0.08."""


def affordable(backend: str) -> int | None:
    """Layers that a backend reads in seconds on a CPU; None: all."""
    return 6 if partita_backends.load(backend).device == "cpu" and backend != "torch" else None


def blocks(model: LanguageModel, tokens: list[int], first: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
    """(positions, logits (n, V)) through the cache, from a position on; what is before is only read."""
    ops, cache = model.ops, Cache(model.ops, model.cache_spec(chunk=256))
    edges = sorted({*range(0, first, 256), *range(first, len(tokens), BLOCK), len(tokens)})
    for start, end in pairwise(edges):
        part = ops.array(np.array([tokens[start:end]], np.int32))
        if start < first:
            model.decoder.feed(ops, part, cache)
            ops.launch(*cache.arrays())
        else:
            yield slice(start, end), ops.to_numpy(model.decoder(ops, part, cache, every=True))[0]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def margin(x: np.ndarray) -> np.ndarray:
    top = np.partition(x, -2, -1)[:, -2:]
    return top[:, 1] - top[:, 0]


def assert_equal(model: LanguageModel, judged: Logits, tokens: list[int], first: int = 0) -> None:
    """Logits within the tolerance at every position from `first` on, and the same best token where it is clear."""
    for positions, ours in blocks(model, tokens, first):
        theirs = judged[positions]
        worst = np.abs(ours - theirs).max()
        assert worst <= TOLERANCE, f"a logit at {positions.start} or after is {worst} off"
        clear = margin(theirs) > 2 * TOLERANCE
        assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_512_tokens_equal_transformers(load: Load, judge: Judge, tokens: Tokens, name: str, backend: str) -> None:
    """At every position; on MLX's CPU device, where a vocabulary costs as much as a model, at the last 64."""
    text, layers = tokens(name, 512), affordable(backend)
    judged, model = judge(name, text, layers), load(name, backend, layers=layers)
    slow = model.ops.name == "mlx" and model.ops.device == "cpu"
    assert_equal(model, judged, text, 448 if slow else 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gemma_beyond_its_window_equals_transformers(load: Load, judge: Judge, tokens: Tokens, backend: str) -> None:
    """The last 64 of 2,048 tokens (fewer on slow devices) through sliding windows of 512 and two rope bases."""
    layers = affordable(backend)
    text = tokens("gemma3", 2048 if layers is None else 832)
    judged = judge("gemma3", text, layers)
    assert_equal(load("gemma3", backend, layers=layers), judged, text, len(text) - 64)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "count"), [("smollm2", 512), ("gemma3", 2048)])
def test_mlx_reads_all_layers_as_transformers(load: Load, judge: Judge, tokens: Tokens, name: str, count: int) -> None:
    text = tokens(name, count)
    judged = judge(name, text)
    assert_equal(load(name, "mlx"), judged, text, count - 256)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_default_dtype_stays_near_float32(load: Load, tokens: Tokens, name: str, backend: str) -> None:
    """The end is decoded token by token, where a device's default dtype differs most from float32."""
    layers = affordable(backend)
    read, count = (192, 32) if layers is None else (48, 16)
    model, text = load(name, "torch", layers=layers), tokens(name, read + count)
    theirs = np.concatenate([logits for _, logits in blocks(model, text, read)])
    del model  # two of them at a time are too large for a worker
    model = load(name, backend, "auto", layers)
    ops, cache = model.ops, Cache(model.ops, model.cache_spec())
    model.decoder(ops, ops.array(np.array([text[:read]], np.int32)), cache)
    steps = [model.decoder(ops, ops.array(np.array([[t]], np.int32)), cache) for t in text[read:]]
    ours = np.concatenate([ops.to_numpy(step) for step in steps])
    p, q = log_softmax(theirs), log_softmax(ours)
    assert (np.exp(p) * (p - q)).sum(-1).mean() <= 0.01
    clear = margin(theirs) > 0.25
    assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()
