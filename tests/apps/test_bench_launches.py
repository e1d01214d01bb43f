"""`partita bench launches`: what is counted of a decode step, on the backend that the peer has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from partita_apps.cli import main

from ..conftest import LAYERS


def rows(model: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    with pytest.raises(SystemExit) as end:
        main(["bench", "launches", "--model", str(model), "--json", *arguments])
    assert not end.value.code
    return json.loads(capsys.readouterr().out)["rows"]


def test_operations_of_a_gpu_beside_transformers(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each format, with a cache that keeps everything and beyond a ring; our kernels by name; bytes as they are stored
    and as they are read."""
    found = rows(tiny_model, capsys, "--against", "transformers")
    steps = [i for i, row in enumerate(found) if not row["name"].startswith("  ")]
    names = [f"cuda bfloat16, kv {kv}{where}" for kv in ("16", "k8v4") for where in ("", ", beyond a context of 256")]
    assert [found[i]["name"] for i in steps] == names
    for start, end in zip(steps, [*steps[1:], None], strict=True):
        step, *parts = found[start:end]
        *operations, read, stored = parts
        assert step["ours"] == sum(row["ours"] for row in operations) < step["peer"]
        assert step["peer"] == sum(row["peer"] for row in operations)
        named = {row["name"].strip(): row for row in operations}
        assert named["partita::store"]["ours"] == named["partita::flash_decode"]["ours"] == LAYERS
        attention = named["aten::_scaled_dot_product_efficient_attention"]
        assert (attention["ours"], attention["peer"]) == (0, LAYERS)
        assert read["unit"] == stored["unit"] == "MB"
        assert 0.8 * stored["ours"] < read["ours"] < 2 * stored["ours"]  # of so small a model activations are much
        assert read["peer"] > 0


def test_launches_of_mlx_alone(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step, *primitives = rows(tiny_model, capsys, "--kv", "k8v4")
    assert step["name"] == "mlx float16, kv k8v4"
    assert step["ours"] == sum(row["ours"] for row in primitives)
    assert step["peer"] is None


def test_a_peer_of_another_backend(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "launches", "--model", str(tiny_model), "--backend", "mlx", "--against", "transformers"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "leave out --backend" in said
    assert len(said.splitlines()) == 1
