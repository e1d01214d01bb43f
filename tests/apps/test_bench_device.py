"""`partita bench device` and `make bench-gpu`, on a machine without a GPU: what they do, and what they refuse."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path

import pytest

from partita_apps.cli import main

from ..architecture.rooms import ROOT

SMALL = ["--contexts", "16", "--kv", "16,k8v4", "--ring", "64", "--tokens", "2", "--runs", "1", "--json"]


def rows(model: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    with pytest.raises(SystemExit) as end:
        main(["bench", "device", "--model", str(model), "--device", "cpu", "--backend", "torch", *SMALL])
    assert not end.value.code
    return json.loads(capsys.readouterr().out)["rows"]


def test_every_figure_is_there(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two contexts, of which one is beyond a ring; two formats; compiled or not; read before the next step or after."""
    found = rows(tiny_model, capsys)
    assert len(found) == 2 + 2 * 2 * 3
    assert [row["unit"] for row in found[:2]] == ["nats", "GB/s"]
    names = [str(row["name"]) for row in found[2:]]
    assert len(set(names)) == len(names)
    assert all("bytes" in row and "of_memory" in row for row in found[2:])


def test_a_device_that_predicts_otherwise_is_not_timed(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("partita_apps.bench.device")  # the package has a command of that name
    monkeypatch.setattr(module, "LARGEST_KL", 0.0)
    with pytest.raises(SystemExit) as end:
        main(["bench", "device", "--model", str(tiny_model), "--device", "cpu", "--backend", "torch", *SMALL])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    assert "nothing is timed" in said.err
    assert len(said.err.splitlines()) == 1


def test_without_a_gpu_the_target_says_so(tmp_path: Path) -> None:
    """A stand-in for Python: what the program asks it is all that it must know."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase $1 in -c) echo cpu ;; *) echo "{}" ;; esac\n')
    python.chmod(0o755)
    done = subprocess.run([ROOT / ".ci/bench-gpu", python], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no GPU" in done.stderr
