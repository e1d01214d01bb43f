"""`partita bench train`, alone and beside peers: the same work, told by the loss of the first step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .. import bounds
from .finetuning import environment

SMALL = ("--length", "16", "--batch-size", "2", "--rank", "4", "--runs", "1")


def bench(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "partita_apps.cli", "bench", "train", *map(str, arguments), *SMALL]
    own = {**environment(), "PYTHONWARNINGS": "default"}  # peers warn
    done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=200)
    assert done.returncode == status, done.stderr
    return done


def found(*arguments: object) -> list[dict[str, Any]]:
    return json.loads(bench(*arguments, "--json").stdout)["rows"]


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_alone(tiny_model: Path, backend: str) -> None:
    rows = found("--model", tiny_model, "--backend", backend)
    assert [row["unit"] for row in rows] == ["tokens/s", "tokens/s", "MiB", "MiB"]
    assert all(row["ours"] > 0 and row["peer"] is None for row in rows)
    assert rows[0]["name"].startswith(f"train, {backend} float32, 2 × 16 tokens, rank 4, 1 thread")


@pytest.mark.parametrize(("peer", "count"), [("mlx-lm", 4), ("peft", 8)])
def test_beside_a_peer(tiny_model: Path, peer: str, count: int) -> None:
    rows = found("--model", tiny_model, "--against", peer)
    assert len(rows) == count
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) for row in rows)
    for row in rows[::4]:
        assert row["loss"] == pytest.approx(row["peer_loss"], rel=bounds.loss(tiny_model, trained=2 * 15))


def test_a_peer_that_is_not_there_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no peft in here' >&2\nexit 1\n")
    python.chmod(0o755)
    done = bench("--model", tiny_model, "--against", "peft", "--peer-python", python, status=2)
    said = f"partita: peft does not run in {python}: no peft in here (see --peer-python)"
    assert done.stderr.strip().splitlines()[-1] == said
