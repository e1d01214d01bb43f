"""`partita.convert` and the command: the same settings, the same files, the same report."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

import partita
from partita.adapters.read import open_adapter
from partita_apps.cli import run
from partita_apps.convert import convert as command
from partita_convert.conversion import Options

TEXT = "the quick brown fox jumps over the lazy dog and then the other fox thinks that this is the end " * 4


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (path := tmp_path / "text.txt").write_text(TEXT)
    return path


def test_settings_are_those_of_the_command() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Options)}
    given = inspect.signature(partita.convert).parameters
    assert {name: given[name].default for name in given.keys() - {"source", "dest"}} == {
        name: default for name, default in fields.items() if name != "offline"
    }
    assert {param.name for param in command.params} - {"source", "dest", "as_json"} == fields.keys()


def test_both_write_the_same(
    tiny_model: Path, tmp_path: Path, adapter: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = (tmp_path / side / "small" for side in ("here", "there"))
    for place in (here, there):
        place.parent.mkdir()
    report = partita.convert(
        tiny_model, here, quantize=6, adapter=str(adapter), check=str(text), calibration=text, backend="numpy"
    )
    options = ["--quantize", "6", "--adapter", adapter, "--check", text, "--calibration", text, "--backend", "numpy"]
    assert run(["convert", *map(str, [tiny_model, there, *options]), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert json.loads(json.dumps(report.as_json())) == document | {"path": str(here)}
    assert report.check is not None
    assert report.check.perplexity > 1
    assert report.least_retained is not None
    names = {path.name for path in here.iterdir()}
    assert "README.md" in names
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


def test_an_adapters_folder_in_the_other_layout(tmp_path: Path, adapter: Path) -> None:
    report = partita.convert(adapter, tmp_path / "mlx")
    assert (report.rank, report.form, len(report.tensors)) == (2, "mlx", 1)
    assert report.as_json()["bits_per_weight"] is None
    back = partita.convert(tmp_path / "mlx", tmp_path / "peft", to="huggingface")
    before, after = (open_adapter(folder).changes for folder in (adapter, back.path))
    for name, change in before.items():
        np.testing.assert_array_equal(change.delta(), after[name].delta())


def test_mistakes_name_the_setting(tiny_model: Path, tmp_path: Path, adapter: Path, text: Path) -> None:
    for settings, words in (
        ({"check": tmp_path / "nowhere.txt"}, "nowhere.txt: No such file"),
        ({"calibration": text}, "`calibration`: nothing is quantized here"),
        ({"calibration": "none", "quantize": "measured:4"}, "`calibration` none: `quantize` measured:4 measures"),
    ):
        with pytest.raises(partita.PartitaError, match=words):
            partita.convert(tiny_model, tmp_path / "out", **settings)
    with pytest.raises(partita.PartitaError, match="only `to` can be said"):
        partita.convert(adapter, tmp_path / "out", quantize=4)
    assert not (tmp_path / "out").exists()
