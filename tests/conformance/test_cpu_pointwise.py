"""Norms, activations and rotations of many rows on one thread of a CPU, and their gradients, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from partita_backends.numpy import NumpyBackend
from partita_backends.torch import cpu, pointwise

from .. import bounds

ORACLE = NumpyBackend(dtype="float64")
STEP = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compare(mine: Callable[..., Any], oracle: Callable[..., Any], *inputs: np.ndarray, roundings: int = 64) -> None:
    """Values, and the gradients of a fixed weighting of them by each input, against slopes along random directions."""
    tensors = [torch.from_numpy(x.copy()).requires_grad_() for x in inputs]
    y = mine(*tensors)
    exact = oracle(*(x.astype(np.float64) for x in inputs))
    bounds.assert_near(y.detach().numpy(), exact, bounds.drift(roundings), max(np.abs(exact).max(), 1))
    above = normal(*exact.shape, seed=9)
    found = torch.autograd.grad(y, tensors, torch.from_numpy(above))
    for i, gradient in enumerate(found):
        direction = normal(*inputs[i].shape, seed=20 + i).astype(np.float64)
        ends = []
        for side in (1, -1):
            moved = [x.astype(np.float64) for x in inputs]
            moved[i] = moved[i] + side * STEP * direction
            ends.append((oracle(*moved) * above).sum())
        slope = (ends[0] - ends[1]) / (2 * STEP)
        terms = gradient.numpy().astype(np.float64) * direction
        bounds.assert_near(terms.sum(), slope, bounds.drift(roundings) + 1e-8, np.abs(terms).sum())


@pytest.mark.parametrize("size", [5, 32, 75, 160])
def test_norms(size: int) -> None:
    weight = 1 + normal(size, seed=3) / 4
    x = normal(2, 20, size)
    compare(
        lambda x: pointwise.rms_norm(x, torch.from_numpy(weight), 1e-5),
        lambda x: ORACLE.rms_norm(x, weight.astype(np.float64), 1e-5),
        x,
        roundings=size + 64,
    )


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_clamped"])
@pytest.mark.parametrize("apart", [False, True])
def test_gates(activation: str, apart: bool) -> None:
    """apart: halves of one array, as a stacked projection gives them."""

    def mine(both: torch.Tensor) -> torch.Tensor:
        parts = both.chunk(2, -1)
        assert cpu.gates(parts[0])
        return pointwise.glu(*(x if apart else x.contiguous() for x in parts), activation)

    compare(mine, lambda both: ORACLE.glu(*np.split(both, 2, -1), activation), 2 * normal(1, 20, 192))


@pytest.mark.parametrize(("size", "half"), [(64, 32), (80, 20), (96, 32), (96, 48)])
def test_rotations(size: int, half: int) -> None:
    cos, sin = np.cos(normal(2, 20, half, seed=4)), np.sin(normal(2, 20, half, seed=4))

    def mine(x: torch.Tensor) -> torch.Tensor:
        return pointwise.Rotation.apply(x, torch.from_numpy(cos), torch.from_numpy(sin), 2)

    turns = ORACLE.turns(cos.astype(np.float64), sin.astype(np.float64), 2, 1)
    compare(mine, lambda x: ORACLE.rotate(x, turns), normal(2, 20, 3, size))


def test_several_threads_leave_many_rows_to_torch() -> None:
    torch.set_num_threads(2)
    assert not cpu.takes(torch.zeros(17, 32), 17)
    assert cpu.takes(torch.zeros(16, 32), 16)
