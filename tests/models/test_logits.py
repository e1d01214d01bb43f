"""Our logits against transformers' on the same weights and real text, and each default dtype against float32.

torch reads the whole models. numpy, and MLX on a CPU, read two layers: the decoder is written once, so what a backend
could do differently stands in every layer (of Gemma's two, one slides and one is global).
`make test-long` reads all layers with MLX, and 4,096 tokens of Gemma's text with torch (`test_long`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np
import pytest

import partita_backends
from partita.cache.state import Cache
from partita.language_model import LanguageModel

BACKENDS = sorted(partita_backends.names(), reverse=True)  # those that read few layers one after the other: one judge
Load = Callable[..., LanguageModel]
Layers = range | None  # None: all
Tokens = Callable[[str, int], list[int]]


class Logits(Protocol):
    """transformers' for one text."""

    def __getitem__(self, positions: slice) -> np.ndarray: ...  # float32 (positions, V)


Judge = Callable[..., Logits]
BLOCK = 32  # positions whose logits are held at a time
TOLERANCE = 5e-3
"""Of a logit of up to 40. Between float32's own noise (the order of sums: 2e-4 on all machines seen) and
one rounding to bfloat16 anywhere in the stream, 2^-9 of a logit: 0.08."""


def affordable(name: str, backend: str) -> Layers:
    """Layers of a model that a backend reads in seconds on a CPU; None: all. Of Gemma's a sliding and a global one."""
    slow = partita_backends.load(backend).device == "cpu" and backend != "torch"
    return {"smollm2": range(2), "gemma3": range(4, 6)}[name] if slow else None


def blocks(model: LanguageModel, tokens: list[int], wanted: Sequence[range]) -> Iterator[tuple[slice, np.ndarray]]:
    """(positions, logits (n, V)) through the cache, at the wanted positions; the others are only read."""
    ops, cache = model.ops, Cache(model.ops, model.cache_spec(chunk=256))
    done = 0
    for places in wanted:
        edges = [*range(done, places.start, 256), *range(places.start, places.stop, BLOCK), places.stop]
        for start, end in pairwise(edges):
            part = ops.array(np.array([tokens[start:end]], np.int32))
            if start < places.start:
                model.decoder.feed(ops, part, cache)
                ops.launch(*cache.arrays())
            else:
                yield slice(start, end), ops.to_numpy(model.decoder(ops, part, cache, every=True))[0]
        done = places.stop


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def margin(x: np.ndarray) -> np.ndarray:
    top = np.partition(x, -2, -1)[:, -2:]
    return top[:, 1] - top[:, 0]


def assert_equal(model: LanguageModel, judged: Logits, tokens: list[int], wanted: Sequence[range]) -> None:
    """Logits within the tolerance at every wanted position, and the same best token where it is clear."""
    for positions, ours in blocks(model, tokens, wanted):
        theirs = judged[positions]
        worst = np.abs(ours - theirs).max()
        assert worst <= TOLERANCE, f"a logit at {positions.start} or after is {worst} off"
        clear = margin(theirs) > 2 * TOLERANCE
        assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_512_tokens_equal_transformers(load: Load, judge: Judge, tokens: Tokens, backend: str) -> None:
    """At every position; on MLX's CPU device, where a vocabulary costs as much as a model, at the last 32."""
    text, layers = tokens("smollm2", 512), affordable("smollm2", backend)
    judged, model = judge("smollm2", text, layers), load("smollm2", backend, layers=layers)
    slow = model.ops.name == "mlx" and model.ops.device == "cpu"
    assert_equal(model, judged, text, [range(480 if slow else 0, 512)])


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=[pytest.mark.slow] * (name == "numpy")) for name in BACKENDS]
)
def test_gemma_equals_transformers(load: Load, judge: Judge, tokens: Tokens, backend: str) -> None:
    """At the beginning, where the sliding windows of 512 fill, and where the rings that hold them have turned, through
    two rope bases. A few positions of each: a vocabulary of 262,144 costs more than the layers."""
    text, layers = tokens("gemma3", 832), affordable("gemma3", backend)
    judged = judge("gemma3", text, layers)
    wanted = [range(8), range(508, 516), range(800 if backend == "torch" else 824, 832)]
    assert_equal(load("gemma3", backend, layers=layers), judged, text, wanted)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "count"), [("smollm2", 512), ("gemma3", 2048)])
def test_mlx_reads_all_layers_as_transformers(load: Load, judge: Judge, tokens: Tokens, name: str, count: int) -> None:
    text = tokens(name, count)
    judged = judge(name, text)
    assert_equal(load(name, "mlx"), judged, text, [range(count - 256, count)])


@pytest.fixture(scope="module")
def float32(load: Load, tokens: Tokens) -> Callable[..., np.ndarray]:
    """float32(model, layers, positions): torch's logits (n, V) there. The last ones are kept: two backends ask for
    the same."""

    @lru_cache(1)
    def get(name: str, layers: Layers, positions: range) -> np.ndarray:
        model, text = load(name, "torch", layers=layers), tokens(name, positions.stop)
        return np.concatenate([logits for _, logits in blocks(model, text, [positions])])

    return get


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_default_dtype_stays_near_float32(
    load: Load, tokens: Tokens, float32: Callable[..., np.ndarray], name: str, backend: str
) -> None:
    """The end is decoded token by token, where a device's default dtype differs most from float32."""
    layers = affordable(name, backend)
    read, count = (96, 32) if layers is None else (48, 16)
    theirs, text = float32(name, layers, range(read, read + count)), tokens(name, read + count)
    model = load(name, backend, "auto", layers)
    ops, cache = model.ops, Cache(model.ops, model.cache_spec())
    model.decoder(ops, ops.array(np.array([text[:read]], np.int32)), cache)
    steps = [model.decoder(ops, ops.array(np.array([[t]], np.int32)), cache) for t in text[read:]]
    ours = np.concatenate([ops.to_numpy(step) for step in steps])
    p, q = log_softmax(theirs), log_softmax(ours)
    assert (np.exp(p) * (p - q)).sum(-1).mean() <= 0.01
    clear = margin(theirs) > 0.25
    assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()
