"""The programs that `partita bench` measures peers with: the same prompt consumed, the same greedy ids as ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from partita_apps.bench import children, peers
from partita_convert.gguf.shapes import Shape, write_shape


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shape") / "m.gguf"
    write_shape(Shape(2, 64, 2, 1, 32, 96, 500, tied=True, positions=512), path)
    return path


@pytest.fixture(autouse=True)
def _peers_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "default")


def compare(model: Path, peer: str, python: str | None, rows: int = 1) -> children.Measured:
    options = {"runs": 1, "threads": 1, "dtype": "float32", "device": None, "backend": "numpy"}
    prompts = children.prompts(model, 20, rows)
    return children.measured(model, prompts, 6, against=peer, peer_python=python, **options)  # pyright: ignore


@pytest.mark.parametrize(("peer", "rows"), [("mlx-lm", 1), ("transformers", 2)])
def test_a_peer_does_what_we_do(model: Path, peer: str, rows: int) -> None:
    found = compare(model, peer, sys.executable, rows)
    assert found.theirs[0]["tokens"] == found.ours[0]["tokens"]
    assert found.theirs[0]["version"].startswith(peer)
    assert min(found.theirs[0][name] for name in ("prefill", "decode", "peak", "wall")) > 0


@pytest.mark.interop
@pytest.mark.parametrize("rows", [1, 3])
def test_llama_cpp_does_what_we_do(model: Path, rows: int) -> None:
    """Its activations have 8 bits, so a late token may be another one."""
    found = compare(model, "llama.cpp", os.environ["PARTITA_PEER_PYTHON"], rows)
    assert [ids[0] for ids in found.theirs[0]["tokens"]] == [ids[0] for ids in found.ours[0]["tokens"]]
    assert found.theirs[0]["version"].startswith("llama-cpp-python")


def test_who_takes_several_rows() -> None:
    assert set(peers.BATCHES) < set(peers.NAMES) == set(peers.PROGRAMS)
