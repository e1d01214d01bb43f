"""Backends that fail, through the command: it goes on with what works and says so in one line, or ends in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = {"torch/__init__.py": "raise OSError('libtorch_cpu.so: cannot open shared object file')"}
GPU = """
import warnings
import torch
ones = torch.ones
torch.version.cuda = "12.8"
torch.cuda.is_available = lambda: True
torch.cuda.set_device = lambda index: None
torch.cuda.mem_get_info = lambda: (6 << 30, 8 << 30)
torch.ones = lambda *size, device=None: ones(*size)
def old():
    warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).")
    return False
def fail(*arguments):
    raise RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.")
"""
# what fails, the backend that is used instead, what is said
CASES = {
    "library": (BROKEN, "mlx", "torch cannot be imported (OSError: libtorch_cpu.so"),
    "driver": ({"sitecustomize.py": f"{GPU}\ntorch.cuda.is_available = old"}, "torch", "system is too old"),
    "device": ({"sitecustomize.py": f"{GPU}\ntorch.cuda.set_device = fail"}, "torch", "initialization failed"),
    "memory": (
        {"sitecustomize.py": f"{GPU}\ntorch.cuda.mem_get_info = lambda: (1 << 20, 8 << 30)"},
        "torch",
        "CUDA has 1.0 MiB free",
    ),
}


def partita(folder: Path, *arguments: object, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command, or a program, in whose process the files of `folder` come before what is installed."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "error",  # none of torch's may come through
    }
    program = ["-m", "partita_apps.cli"] if code is None else ["-c", code]
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    files, instead, words = CASES[request.param]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path, instead, words


@pytest.mark.parametrize("broken", CASES, indirect=True)
def test_one_line_and_the_next_backend(broken: tuple[Path, str, str], tiny_model: Path) -> None:
    folder, instead, words = broken
    done = partita(folder, "chat", tiny_model, "-p", "the fox", "-n", "3", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["backend"], document["device"], len(document["tokens"])) == (instead, "cpu", 3)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"computing with {instead} on cpu: ")
    assert words in line


@pytest.mark.parametrize("broken", CASES, indirect=True)
def test_what_was_named_is_refused(broken: tuple[Path, str, str], tiny_model: Path) -> None:
    folder, _, words = broken
    done = partita(folder, "chat", tiny_model, "-p", "the fox", "--backend", "torch", "--device", "cuda")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("partita: ")
    assert words in line
    assert "leave --backend and --device out" in line


@pytest.mark.parametrize("broken", ["library", "driver"], indirect=True)
def test_info_reports_it(broken: tuple[Path, str, str]) -> None:
    folder, instead, words = broken
    done = partita(folder, "info", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["auto"], found["auto_device"]) == (instead, "cpu")
    assert words in found["auto_reason"]
    torch = next(row for row in found["backends"] if row["name"] == "torch")
    assert words in torch["reason"]
    assert torch["available"] == (instead == "torch")
    assert any(words in each["reason"] for each in found["passed"])


@pytest.mark.parametrize("broken", ["library", "memory"], indirect=True)
def test_from_python(broken: tuple[Path, str, str], tiny_model: Path) -> None:
    """Nothing is printed; who wants to know passes a function."""
    folder, instead, words = broken
    code = """
import json, sys, partita
said = []
quiet, model = partita.load(sys.argv[1]), partita.load(sys.argv[1], on_fallback=said.append)
print(json.dumps([model.ops.name, quiet.ops.name, said]))
"""
    done = partita(folder, tiny_model, code=code)
    assert (done.returncode, done.stderr) == (0, "")
    name, same, said = json.loads(done.stdout)
    assert name == same == instead
    assert len(said) == 1
    assert words in said[0]
