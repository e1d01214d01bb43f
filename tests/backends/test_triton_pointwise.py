"""The Triton kernels of norms and gates against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import partita_backends

ORACLE = partita_backends.load("numpy")


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
