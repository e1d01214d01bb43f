"""Steps captured as CUDA graphs, on a CPU that stands for the GPU: a capture computes nothing, and what it holds is
computed again on the same memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import partita
from partita.backend import Memory
from partita.cache.kv_format import KVFormat
from partita.cache.spec import CacheSpec, LayerSpec, Span
from partita.cache.state import Cache
from partita.inference.compiled_step import DecodeStep
from partita.quantization import Packed
from partita_backends.torch import TorchBackend, experts, graphs, recorded

from .. import bounds


class Graph:
    """What `torch.cuda.CUDAGraph` does."""

    captured = 0

    def replay(self) -> None:
        self.recording.replay()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Operations are computed, as there is no other way to follow them here, and what they changed is put back."""
        Graph.captured += 1
        self.recording = Recording()
        with self.recording:
            yield
        for x, was in reversed(self.recording.changed):
            x.copy_(was)


class Recording(recorded._Recording):
    def __init__(self) -> None:
        super().__init__()
        self.changed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument, x in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and x is not None:
                self.changed.append((x, x.clone()))
        return super().__torch_dispatch__(function, types, args, kwargs)


@pytest.fixture
def ops(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch as it is on a GPU: its kernels in the interpreter, its graphs by `Graph`."""
    if triton_device == "cuda":
        pytest.skip("a GPU is there: see tests/gpu")
    from partita_backends.torch import cuda

    class Interpreted(TorchBackend):
        _gpu = cuda

        def compile(self, function: Any) -> Any:
            return graphs.captured(function)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: graph.capture())
    monkeypatch.setattr(Graph, "captured", 0)
    found = Interpreted("cpu", "float32")
    found._kernels = None
    return found


@pytest.mark.parametrize("kv", ["32", "k8v4"])
def test_a_captured_step_equals_the_oracle_s(ops: Any, tiny_model: Path, kv: str) -> None:
    """From the first token on, across the anchor, beyond it, and after tokens were taken back: three kinds of steps."""
    mine, exact = partita.load(tiny_model, backend=ops), partita.load(tiny_model, backend="numpy")
    caches = [
        Cache(model.ops, model.cache_spec(context=7, sinks=3, kv=kv, chunk=4, slack=4)) for model in (mine, exact)
    ]
    step = DecodeStep(ops, mine.decoder, caches[0])
    for i in range(13):
        if i == 10:
            for cache in caches:
                cache.trim(2)
        token = np.array([[(7 * i) % 50]], np.int32)
        expected = exact.decoder(exact.ops, token, caches[1])
        logits = step(ops.array(token))
        bounds.assert_near(ops.to_numpy(logits), expected, 10 * bounds.logits(tiny_model))
    assert caches[0].offsets == caches[1].offsets == [11]
    assert Graph.captured == 3


@pytest.mark.usefixtures("ops", "fake_cuda")
def test_experts_that_no_kernel_takes_are_not_captured() -> None:
    """A graph would hold dense copies of them: each step is computed by its operations, and that is said once."""
    grid = (torch.empty(8, 16, 2, device="cuda") for _ in range(2))
    weight = Packed(torch.empty(8, 16, 12, dtype=torch.int32, device="cuda"), *grid, 4, 48)
    stack = experts.Experts(weight, ())
    x, index = torch.empty(1, 1, 1, 96, device="cuda"), torch.empty(1, 1, 4, dtype=torch.int32, device="cuda")
    step = graphs.captured(lambda x: (experts.product(x, stack, index, torch.bfloat16),))
    with pytest.warns(UserWarning, match="no kernel takes") as said:
        shapes = {step(x)[0].shape for _ in range(4)}
    assert shapes == {(1, 1, 4, 16)}
    assert len(said) == 1
    assert Graph.captured == 0


@pytest.mark.parametrize(
    ("free", "slots", "captured"), [(2**30, [256, 768, 1792, 3840], 5), (0, range(256, 2049, 256), 9)]
)
def test_rings_grow_ahead_of_captures(ops: Any, free: int, slots: Sequence[int], captured: int) -> None:
    """2,000 tokens one by one: a step that writes sinks, and one for each length of the rings."""
    layer = LayerSpec(1, 32, Span(8000, 4), None, 1.0, None)
    cache = Cache(ops, CacheSpec((layer,) * 2, KVFormat.parse("k8v4"), 8004, 4, 64))
    ops.memory = lambda: Memory(2**30, free, 0, 0)

    def model(ops: Any, tokens: torch.Tensor, cache: Any, *, every: bool) -> torch.Tensor:
        cache.advance(tokens.shape[1])
        return torch.zeros(1, 3)

    step, found = DecodeStep(ops, model, cache), list[int]()
    for _ in range(2000):
        step(ops.array(np.zeros((1, 1), np.int32)))
        found.append(cache._capacity[layer.span])
    assert list(dict.fromkeys(found)) == list(slots)
    assert Graph.captured == captured
    assert cache.offsets == [2000]
    assert sorted(x for x in cache.arrays()[1][0].tolist() if x >= 0) == list(range(2000))


def test_rings_that_grew_ahead(ops: Any) -> None:
    """They end where the context does, take rows that did not, and a prompt's are as long as it."""
    layer = LayerSpec(1, 32, Span(500, 0), None, 1.0, None)
    spec = CacheSpec((layer,), KVFormat.parse("k8v4"), 500, 0, 64)
    caches = [Cache(ops, spec) for _ in range(2)]
    for cache in caches:
        for _ in range(4):
            cache.reserve(63)
    assert [cache._capacity[layer.span] for cache in caches] == [256, 256]
    for _ in range(4):
        caches[0].reserve(1)
    assert caches[0]._capacity[layer.span] == spec.slots(layer.span, 10_000) == 576
    caches[1].extend(caches[0])
    assert {array.shape[slots] for array, slots in _slots(caches[1])} == {576}


def _slots(cache: Cache) -> list[tuple[Any, int]]:
    """Arrays of slots with their axis."""
    found: list[tuple[Any, int]] = []
    cache._each(lambda array, rows, slots: found.append((array, slots)) or array)
    return [(array, slots) for array, slots in found if slots]


def test_what_a_step_gives_is_not_what_the_next_one_writes(ops: Any) -> None:
    step = ops.compile(lambda x, state: (x + state, state.add_(1)))
    state, given = torch.zeros(1), []
    for i in range(4):
        y, state = step(torch.full((1,), 10.0 * i), state)
        given.append(y)
    assert [float(y) for y in given] == [0, 11, 22, 33]
    assert float(state) == 4
