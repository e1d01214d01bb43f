"""What a run is predicted to take is what it is admitted by, and nothing is loaded to say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from partita.errors import BackendUnavailable, DataError
from partita.finetuning.predict import predict
from partita.finetuning.prepare import prepare
from partita.finetuning.settings import Settings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"the quick brown fox number {i}"}) + "\n" for i in range(20)))
    return path


@pytest.mark.parametrize(
    "more", [{}, {"rank": 3, "targets": "q_proj,down_proj", "layers": 1}, {"method": "dora"}, {"accumulate": 3}]
)
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_it_is_the_estimate_of_the_run(
    backend: str, more: dict[str, object], tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    settings = Settings(str(tiny_model), str(data), backend=backend, batch_size=3, max_length=64)
    settings = replace(settings, **more)
    found, run = predict(settings), prepare(settings, tmp_path / "out")
    assert found.shape.trained == run.trained
    assert found.rest == run.rest
    assert found.settings.steps == run.settings.steps
    assert found.data == run.splits.statistics()
    assert found.needs == found.weights + 4 * run.trained + run.rest.total
    assert found.least < found.needs


@pytest.mark.parametrize(
    ("name", "targets"),
    [("phi3", "all-linear"), ("lfm2", "w1,w2,w3,in_proj"), ("lfm3", "all-linear"), ("lfm2_moe", "in_proj,out_proj")],
)
def test_a_family_is_counted_by_its_own_names(
    tiny_family: Callable[[str], Path], data: Path, tmp_path: Path, name: str, targets: str
) -> None:
    settings = Settings(str(tiny_family(name)), str(data), backend="torch", targets=targets)
    found, run = predict(settings), prepare(settings, tmp_path / "out")
    assert found.shape.trained == run.trained > 0


def test_what_does_not_fit_is_refused_with_what_would(tiny_model: Path, data: Path) -> None:
    found = predict(Settings(str(tiny_model), str(data), backend="torch", batch_size=16), reads_data=False)
    assert found.data is None
    assert found.refusal(1 << 40) is None
    message = found.refusal(300 << 20)
    assert message is not None
    assert "training needs" in message
    assert "try `batch_size` 1" in message


def test_mistakes_are_those_of_the_run(tiny_model: Path, data: Path) -> None:
    with pytest.raises(BackendUnavailable, match="cannot train"):
        predict(Settings(str(tiny_model), str(data), backend="numpy"))
    with pytest.raises(DataError, match="`max_length` 4096 is beyond the 512 tokens"):
        predict(Settings(str(tiny_model), str(data), backend="torch", max_length=4096))
    data.write_text('{"text": "good"}\n{"text": 5}\n')
    with pytest.raises(DataError, match="line 2"):
        predict(Settings(str(tiny_model), str(data), backend="torch"))
