"""torch on a GPU that is there, CUDA or ROCm: the kernels compiled, steps launched as graphs, logits beside a CPU's.

Skipped where torch finds none, and where Triton is told to interpret (TRITON_INTERPRET). The kernels one by one are
tested in `tests/backends`, there with TRITON_INTERPRET=0.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.inference.compiled_step import DecodeStep
from partita.model.load import load_decoder
from partita.training.initialize import initialise
from partita_backends.torch import TorchBackend, gpu, graphs

from ..fake_gpu import CONFIG, FourBits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] != "0", reason="no GPU, or TRITON_INTERPRET"
    ),
]
PROMPT, STEPS, CONTEXT = 12, 24, 24
SMALL = {**CONFIG, "num_hidden_layers": 4}


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Steps as they are captured."""
    found: list[Any] = []

    def capture(*given: Any) -> Any:
        found.append(captured(*given))
        return found[-1]

    captured = graphs._capture
    monkeypatch.setattr(graphs, "_capture", capture)
    return found


def model(ops: TorchBackend, kv: str, packed: bool = True) -> tuple[Any, Cache]:
    checkpoint: Any = initialise(SMALL)
    decoder = load_decoder(ops, FourBits.of(checkpoint) if packed else checkpoint)
    return decoder, Cache(ops, plan(decoder.config, KVFormat.parse(kv), context=CONTEXT, sinks=4, chunk=16, slack=4))


def logits(ops: TorchBackend, kv: str, packed: bool = True, compiled: bool = True) -> np.ndarray:
    """After a prompt, and after steps across the anchor, some of which are taken back on the way: (steps + 1, V)."""
    decoder, cache = model(ops, kv, packed)
    ids = np.random.default_rng(3).integers(0, SMALL["vocab_size"], (1, PROMPT + STEPS)).astype(np.int32)
    found = [ops.to_numpy(decoder(ops, ops.array(ids[:, :PROMPT]), cache))]
    step = DecodeStep(ops, decoder, cache) if compiled else lambda token: decoder(ops, token, cache)
    for place in range(PROMPT, PROMPT + STEPS):
        if place == PROMPT + 18:
            cache.trim(3)
        found.append(ops.to_numpy(step(ops.array(ids[:, place : place + 1]))))
    return np.concatenate(found)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "kv", "error"),
    [("float32", "32", 1e-3), ("float32", "k8v4", 0.03), ("float32", "k8v8h", 0.03), ("auto", "16", 0.08)],
)
def test_logits_are_a_cpu_s(captures: list[Any], packed: bool, dtype: str, kv: str, error: float) -> None:
    """error: of the largest. Where a GPU rounds once and a CPU twice, an integer of a cache falls the other way."""
    ops = TorchBackend(gpu.name(), dtype)
    assert ops.compiles
    own, exact = logits(ops, kv, packed), logits(TorchBackend("cpu", "float32"), kv, packed)
    np.testing.assert_allclose(own, exact, rtol=0, atol=error * np.abs(exact).max())
    assert len(captures) == 2  # before the anchor, and beyond it


@pytest.mark.parametrize("kv", ["16", "k8v4"])
def test_a_graph_computes_what_its_operations_do(kv: str) -> None:
    ops = TorchBackend(gpu.name())
    own, exact = (logits(ops, kv, compiled=compiled) for compiled in (True, False))
    np.testing.assert_allclose(own, exact, rtol=0, atol=0.02 * np.abs(exact).max())


def test_a_step_leaves_nothing_in_memory() -> None:
    ops = TorchBackend(gpu.name())
    decoder, cache = model(ops, "k8v4")
    step, token, held = DecodeStep(ops, decoder, cache), ops.array(np.array([[5]], np.int32)), []
    for _ in range(CONTEXT + 20):
        step(token)
        held.append(ops.memory().active)
    assert len(set(held[-12:])) == 1


def test_what_is_read_goes_to_memory_that_is_used_again() -> None:
    ops = TorchBackend(gpu.name())
    waiting = [ops.fetch(ops.array(np.arange(i, i + 4))) for i in range(2)]
    for i in range(2, 20):
        waiting.append(ops.fetch(ops.array(np.arange(i, i + 4))))
        np.testing.assert_array_equal(waiting[i - 2](), np.arange(i - 2, i + 2))
        np.testing.assert_array_equal(waiting[i - 2](), np.arange(i - 2, i + 2))
    assert sum(map(len, ops._reader._spare.values())) == 1  # two more are on their way
