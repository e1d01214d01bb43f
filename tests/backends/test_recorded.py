"""A recorded step: computed again it is the function, on whatever memory it is given, and nobody else's changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import partita
from partita.cache.state import Cache
from partita.inference.compiled_step import DecodeStep
from partita_backends.torch.recorded import recorded, run

Tensor = torch.Tensor


def step(x: Tensor, total: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views, operations with and without a form that writes, one in place, a kernel on numpy's view, a constant."""
    doubled = torch.empty(x.shape)
    run(lambda a, y: np.multiply(a, 2, out=y), x.float().numpy(), doubled.numpy())
    shifted = doubled.view(1, -1)[0] + torch.full((1,), 0.5)
    buffer.index_copy_(0, torch.tensor([1]), shifted[None])
    largest, _ = torch.max(buffer, 0)
    return torch.where(largest > 3, largest, -largest).to(torch.float64), total + x.sum(), buffer


def test_computed_again_it_is_the_function() -> None:
    again = recorded(step)
    total, buffer = torch.zeros((), dtype=torch.int64), torch.zeros(3, 4)
    own_total, own_buffer = total.clone(), buffer.clone()
    given, results = [], []
    for i in range(5):
        x = torch.tensor([i, 1, 2 * i, 7])
        expected, own_total, own_buffer = step(x.clone(), own_total, own_buffer)
        y, total, buffer = again(x, total, buffer)
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        torch.testing.assert_close(buffer, own_buffer, rtol=0, atol=0)
        assert total == own_total
        given.append((x, x.clone()))
        results.append((y, y.clone()))
    for held, copy in given + results:  # neither what was given nor what was returned has changed since
        assert torch.equal(held, copy)


def test_state_may_come_in_other_memory() -> None:
    again = recorded(step)
    x = torch.tensor([1, 2, 3, 4])
    _, total, buffer = again(x, torch.zeros((), dtype=torch.int64), torch.zeros(3, 4))
    restored = torch.full((3, 4), 9.0)
    expected, _, _ = step(x, total.clone(), restored.clone())
    y, _, found = again(x, total.clone(), restored.clone())
    assert torch.equal(y, expected)
    assert torch.equal(found[1], 2 * x + 0.5)
    assert torch.equal(buffer, found)  # the recorded memory, which the old state was in


def test_what_reads_a_number_on_the_host_is_refused() -> None:
    def reads(x: Tensor) -> tuple[Tensor, ...]:
        return (x * x.sum().item(),)

    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        recorded(reads)(torch.ones(3))


@pytest.mark.parametrize("kv", ["16", "k8v4"])
def test_a_step_outlives_snapshots_restores_and_rows_that_leave(tiny_model: Path, kv: str) -> None:
    """The cache's arrays are replaced between steps in every way there is; each step is the eager one's, to the bit."""
    model = partita.load(tiny_model, backend="torch")
    ops, spec = model.ops, model.cache_spec(context=24, sinks=2, kv=kv, chunk=8)
    assert ops.compiles
    eager, held = Cache(ops, spec, batch=2), Cache(ops, spec, batch=2)
    compiled = DecodeStep(ops, model.decoder, held)

    def both(rows: int, count: int) -> None:
        for i in range(count):
            token = ops.array(np.array([[(7 * i + row) % 50] for row in range(rows)], np.int32))
            expected = model.decoder(ops, token, eager)
            assert torch.equal(compiled(token), expected)

    both(2, 30)
    snapshots = eager.snapshot(), held.snapshot()
    both(2, 3)
    for cache, snapshot in zip((eager, held), snapshots, strict=True):
        cache.restore(snapshot)
    both(2, 3)
    for cache in (eager, held):
        cache.trim(2)
    both(2, 2)
    for cache in (eager, held):
        cache.filter([1])
    both(1, 3)
    for cache in (eager, held):
        cache.reset()
    both(1, 1)


def test_torch_s_compiler_is_not_imported_for_it() -> None:
    program = """
import sys, torch
from partita_backends.torch.recorded import recorded
again = recorded(lambda x: (x + 1,))
again(torch.ones(2))
print(again(torch.ones(2))[0].tolist(), "torch._dynamo" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[2.0, 2.0] False", done.stderr
