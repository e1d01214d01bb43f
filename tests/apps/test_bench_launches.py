"""`partita bench launches`: what is counted of a step, on the backend that the peer has."""

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


def test_a_training_step_beside_peft(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours with packed weights as they are stored would be the same operations, of other names."""
    step, *operations = rows(
        tiny_model, capsys, "--step", "train", "--against", "peft", "--length", "16", "--rank", "4"
    )
    assert step["name"] == "train, cuda bfloat16, 1 × 16 tokens, rank 4"
    assert step["ours"] == sum(row["ours"] for row in operations) < step["peer"]
    assert step["peer"] == sum(row["peer"] for row in operations)
    named = {row["name"].strip(): row for row in operations}
    for name in ("", "_backward"):
        attention = named[f"aten::_scaled_dot_product_flash_attention{name}"]
        assert attention["ours"] == attention["peer"] == LAYERS


def test_a_training_step_beside_mlx_lm(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import partita

    packed = tmp_path / "packed"
    partita.convert(tiny_model, packed, quantize="4:32")
    step, *launches = rows(packed, capsys, "--step", "train", "--against", "mlx-lm", "--length", "16")
    assert step["name"] == "train, mlx bfloat16, 1 × 16 tokens, rank 8"
    assert step["ours"] == sum(row["ours"] for row in launches) < step["peer"]
    named = {row["name"].strip(): row for row in launches}
    norms = named["rms_norm"]
    assert norms["ours"] == norms["peer"] == 2 * LAYERS + 1
    packed_products = named["QuantizedMatmul"]  # of the first layer's first three no gradient is wanted by ours
    assert packed_products["ours"] == 2 * (7 * LAYERS + 1) - 3 <= packed_products["peer"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--step", "train", "--against", "transformers"), "transformers does not train"),
        (("--against", "peft"), "peft does not decode"),
        (("--step", "train", "--kv", "16"), "--kv and --context are of decoding"),
        (("--step", "train", "--backend", "mlx", "--against", "peft"), "leave out --backend"),
    ],
)
def test_what_does_not_go_together(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "launches", "--model", str(tiny_model), *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_peer_of_another_backend(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "launches", "--model", str(tiny_model), "--backend", "mlx", "--against", "transformers"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "leave out --backend" in said
    assert len(said.splitlines()) == 1
