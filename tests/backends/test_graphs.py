"""Steps captured as CUDA graphs, on a CPU that stands for the GPU: a capture computes nothing, and what it holds is
computed again on the same memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import partita
from partita.cache.state import Cache
from partita.inference.compiled_step import DecodeStep
from partita_backends.torch import TorchBackend, graphs, recorded

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


def test_what_a_step_gives_is_not_what_the_next_one_writes(ops: Any) -> None:
    step = ops.compile(lambda x, state: (x + state, state.add_(1)))
    state, given = torch.zeros(1), []
    for i in range(4):
        y, state = step(torch.full((1,), 10.0 * i), state)
        given.append(y)
    assert [float(y) for y in given] == [0, 11, 22, 33]
    assert float(state) == 4
