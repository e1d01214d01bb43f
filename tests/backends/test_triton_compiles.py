"""The Triton kernels compiled to machine code for NVIDIA's GPUs, which needs no GPU: that they compile at all, fit in
shared memory, use matrix units for 16 bits, and round as the format says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED = 99 * 1024
"""Bytes that a program may have on the smallest of them (compute capability 8.6 and 8.9)."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("90",), id="90"),
        *(pytest.param((name, "many"), marks=pytest.mark.slow, id=f"{name}-many") for name in ("80", "90")),
    ],
)
def compiled(request: pytest.FixtureRequest, triton_device: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    assert triton_device
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    child = Path(__file__).with_name("triton_compile_child.py")
    done = subprocess.run(
        [sys.executable, child, *request.param], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_kernels_fit_and_use_matrix_units(compiled: list[Any]) -> None:
    names = {kernel["name"] for kernel in compiled}
    assert names == {
        "_decode",
        "_combine",
        "_norm",
        "_norm_back",
        "_glu",
        "_glu_back",
        "_turn",
        "_spread",
        "_store",
        "_row_product",
        "_tile_product",
        "_tile_back",
        "_unpack",
    }
    for kernel in compiled:
        assert kernel["bytes"] > 0
        assert kernel["shared"] <= SHARED, kernel
        assert kernel["mma"] == (kernel["name"] in ("_decode", "_tile_product", "_tile_back") and kernel["sixteen"]), (
            kernel
        )


def test_what_is_written_is_rounded_as_on_other_devices(compiled: list[Any]) -> None:
    writing = [kernel for kernel in compiled if kernel["name"] == "_store"]
    assert writing
    for kernel in writing:
        assert kernel["divisions"] == ["div.rn.f32"], kernel
        assert kernel["rounds"], kernel  # the compiler has not taken the sum and the difference for nothing
