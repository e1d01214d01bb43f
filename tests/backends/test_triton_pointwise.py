"""The Triton kernels of norms and gates, and of their gradients, against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import partita_backends
from partita_backends.numpy import NumpyBackend

ORACLE = partita_backends.load("numpy")
EXACT = NumpyBackend(dtype="float64")


@pytest.fixture(scope="module")
def kernels(triton_device: str) -> Any:
    from partita_backends.torch import triton_pointwise

    return triton_pointwise, triton_device


@pytest.mark.parametrize("n", [1, 48, 576, 3000])
def test_norms(kernels: Any, n: int) -> None:
    """Of rows that lie within longer ones too."""
    pointwise, device = kernels
    rng = np.random.default_rng(n)
    x, weight = rng.standard_normal((2, 3, 2 * n)).astype(np.float32) * 9, rng.standard_normal(n).astype(np.float32)
    x[0, 0] = 0
    whole = torch.from_numpy(x).to(device)
    for part in (slice(0, n), slice(n, 2 * n)):
        y = pointwise.rms_norm(whole[..., part], torch.from_numpy(weight).to(device), 1e-5)
        np.testing.assert_allclose(y.cpu(), ORACLE.rms_norm(x[..., part], weight, 1e-5), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_clamped"])
@pytest.mark.parametrize("n", [5, 1500])
def test_gates(kernels: Any, activation: str, n: int) -> None:
    pointwise, device = kernels
    x = np.random.default_rng(n).standard_normal((2, 1, 2 * n)).astype(np.float32) * 6
    x[0, 0, :3] = 90, -90, np.nan
    whole = torch.from_numpy(x).to(device)
    y = pointwise.glu(whole[..., :n], whole[..., n:], activation)
    expected = ORACLE.glu(np.maximum(x[..., :n], -50), x[..., n:], activation)  # numpy warns of what overflows
    np.testing.assert_allclose(y.cpu(), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 48, 576])
def test_gradients_of_norms(kernels: Any, n: int) -> None:
    """Of rows that lie within longer ones; beside differences of the oracle along random directions."""
    pointwise, device = kernels
    rng = np.random.default_rng(n)
    x, grad = (rng.standard_normal((2, 3, 2 * n)).astype(np.float32) for _ in range(2))
    weight, step = rng.standard_normal(n).astype(np.float32), 1e-5
    for part in (slice(0, n), slice(n, 2 * n)):
        whole, grads = (torch.from_numpy(y).to(device)[..., part] for y in (x, grad))
        found = pointwise.rms_norm_back(grads, whole, torch.from_numpy(weight).to(device), 1e-3).cpu().double().numpy()
        for _ in range(4):
            way = rng.standard_normal((2, 3, n))
            high, low = (EXACT.rms_norm(x[..., part] + end * way, weight, 1e-3) for end in (step, -step))
            slope = ((high - low) / (2 * step) * grad[..., part]).sum(-1)
            np.testing.assert_allclose((found * way).sum(-1), slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_clamped"])
def test_gradients_of_gates(kernels: Any, activation: str) -> None:
    pointwise, device = kernels
    rng = np.random.default_rng(0)
    gate, up, grad = (rng.standard_normal((2, 1, 1500)).astype(np.float32) * 5 for _ in range(3))
    gate[0, 0, :2] = 40, -40
    found = pointwise.glu_back(*(torch.from_numpy(y).to(device) for y in (grad, gate, up)), activation)
    step = 1e-5
    for ours, (over_gate, over_up) in zip(found, ((step, 0), (0, step)), strict=True):
        wide = gate.astype(np.float64), up.astype(np.float64)
        high, low = (EXACT.glu(wide[0] + sign * over_gate, wide[1] + sign * over_up, activation) for sign in (1, -1))
        np.testing.assert_allclose(ours.cpu(), (high - low) / (2 * step) * grad, rtol=1e-4, atol=2e-5)


def test_sixteen_bits_are_rounded_once(kernels: Any) -> None:
    pointwise, device = kernels
    x = torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight = torch.ones(32, dtype=torch.bfloat16)
    wide = x.float().numpy()
    found = pointwise.rms_norm(x[..., :32].to(device), weight.to(device), 1e-5)
    exact = torch.from_numpy(ORACLE.rms_norm(wide[..., :32], np.ones(32, np.float32), 1e-5))
    assert found.dtype == torch.bfloat16
    np.testing.assert_allclose(found.cpu().float(), exact, rtol=2**-8)
    found = pointwise.glu(x[..., :32].to(device), x[..., 32:].to(device), "silu")
    np.testing.assert_allclose(found.cpu().float(), ORACLE.glu(wide[..., :32], wide[..., 32:], "silu"), rtol=2**-8)
