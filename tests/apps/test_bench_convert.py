"""`partita bench convert`: what is timed, beside whom, and that nothing is left behind."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from partita_apps import cli
from partita_apps.bench import processes

convert = importlib.import_module("partita_apps.bench.convert")  # the command has the same name in its package


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files lie."""
    (place := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, object]]:
    status = cli.run(["bench", "convert", *map(str, arguments), "--runs", "1", "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)["rows"]


def test_beside_mlx_lm(tiny_model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken, peak = rows(capsys, "--model", tiny_model, "--quantize", "4:32", "--calibration", "none", "--against")
    assert taken["name"] == "mlx, --quantize 4:32, --calibration none / mlx-lm"
    assert (taken["unit"], peak["unit"]) == ("s", "MiB")
    for row in (taken, peak):
        ours, peer, ratio = (float(str(row[key])) for key in ("ours", "peer", "ratio"))
        assert ours > 0
        assert ratio == pytest.approx(ours / peer)
    assert list(place.iterdir()) == []


def test_a_file_beside_a_quantizer(
    tiny_model: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is timed of the peer reads the F16 file that ours wrote, and is told its type by llama.cpp's name."""
    theirs = "import sys; f = open(sys.argv[1], 'rb').read(); assert f[:4] == b'GGUF'; open(sys.argv[2], 'wb').write(f)"
    monkeypatch.setattr(convert, "_QUANTIZER", f"{theirs}; assert sys.argv[3] == 'Q4_1'")
    options = ("--to", "gguf", "--calibration", "none", "--against", "--peer-python", sys.executable)
    taken, _ = rows(capsys, "--model", tiny_model, *options)
    assert taken["name"] == "gguf, --quantize 4, --calibration none / llama.cpp, its F16 file written by ours"
    assert taken["peer"] is not None
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--quantize", "mixed_3_6", "--against"), "mlx-lm is measured at BITS[:GROUP]"),
        (("--quantize", "99"), "failed: partita: unknown --quantize '99'"),
        (("--against", "--peer-python", "/nowhere/python"), "/nowhere/python does not start"),
    ],
)
def test_what_cannot_be_timed(
    arguments: tuple[str, ...], words: str, tiny_model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.run(["bench", "convert", "--model", str(tiny_model), "--runs", "1", "--calibration=none", *arguments])
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert list(place.iterdir()) == []


def test_a_command_that_is_timed_ends_with_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def interrupted(pid: int, options: int) -> None:
        timed.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "wait4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        processes.timed([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(ChildProcessError):  # it was waited for
        os.waitpid(timed[0], os.WNOHANG)
