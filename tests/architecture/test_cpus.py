"""`.ci/cpus.py`: what it sets for each instruction set, and that the libraries heed it without a word."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SAY = "import numpy, torch; print(torch.backends.cpu.get_cpu_capability())"


@pytest.fixture(scope="module")
def cpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cpus", ROOT / ".ci/cpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_cpu_stands_for_those_below_it(cpus: ModuleType) -> None:
    dispatched = ["X86_V3", "X86_V4", "AVX512_ICL"]
    found = cpus.sets("x86_64", "AVX512", dispatched)
    assert list(found) == ["avx2", "sse"]
    assert found["avx2"]["NPY_DISABLE_CPU_FEATURES"] == "X86_V4 AVX512_ICL"
    assert found["sse"]["NPY_DISABLE_CPU_FEATURES"] == "X86_V3 X86_V4 AVX512_ICL"
    assert list(cpus.sets("AMD64", "AVX2", ["X86_V3"])) == ["sse"]
    assert cpus.sets("x86_64", "DEFAULT", []) == {}


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_arm_gets_no_variables_of_x86(cpus: ModuleType, machine: str) -> None:
    assert cpus.sets(machine, "SVE256", ["ASIMDHP"]) == {"default": {"ATEN_CPU_CAPABILITY": "default"}}


def test_libraries_heed_what_is_set(cpus: ModuleType) -> None:
    """numpy warns of a set that the CPU lacks; torch says which it uses."""
    for variables in cpus.here().values():
        if variables:
            command = [sys.executable, "-W", "error", "-c", SAY]
            done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.strip().lower() == variables["ATEN_CPU_CAPABILITY"]


def test_the_tests_are_there(cpus: ModuleType) -> None:
    for name in cpus.TESTS:
        path, _, test = name.partition("::")
        assert (ROOT / path).is_dir() or f"def {test}" in (ROOT / path).read_text(), name


def test_a_set_that_this_cpu_cannot_stand_for_is_one_line(cpus: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert cpus.main(["mmx"]) == 2
    assert "no instruction set mmx here; expected one of native" in capsys.readouterr().err
