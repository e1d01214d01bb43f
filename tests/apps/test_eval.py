"""`partita eval` through the real command: figures, the comparison of formats, what is said on standard error."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from . import command


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and then the other fox thinks " * 3)
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command.run("eval", *arguments, "--backend", "numpy")


def test_several_formats_are_compared_with_full_width(tiny_model: Path, text: Path) -> None:
    result = run(tiny_model, text, "--kv", "32,k8v4,k4v4", "--json")
    assert result.returncode == 0, result.stderr
    dense, mixed, low = json.loads(result.stdout)["rows"]
    assert (dense["kl"], dense["top1"]) == (0.0, 1.0)
    assert {row["reference_kv"] for row in (dense, mixed, low)} == {"32"}
    assert 0 < mixed["kl"] < low["kl"] < 1
    assert 0 <= low["top1"] <= 1
    assert low["bytes_per_token"] < mixed["bytes_per_token"] < dense["bytes_per_token"]


def test_one_format_is_compared_when_asked(tiny_model: Path, text: Path) -> None:
    alone = json.loads(run(tiny_model, text, "--kv", "k8v4", "--json").stdout)
    assert alone["kl"] is None
    asked = json.loads(run(tiny_model, text, "--kv", "k8v4", "--compare", "--json").stdout)
    assert asked["kl"] > 0
    assert asked["perplexity"] == alone["perplexity"]


def test_the_table_has_a_row_for_each_figure(tiny_model: Path, text: Path) -> None:
    shown = run(tiny_model, text, "--kv", "32,k4v4").stdout
    assert all(label in shown for label in ("KL against 32, nats", "top-1 agreement", "bytes a token"))


def test_an_automatic_context_is_the_trained_maximum_where_it_fits(tiny_model: Path, text: Path) -> None:
    assert json.loads(run(tiny_model, text, "--context", "auto", "--json").stdout)["context"] == 512
    refused = run(tiny_model, text, "--context", "much")
    assert refused.returncode == 2
    assert "expected a number of tokens or auto, got 'much'" in refused.stderr


def test_the_model_may_be_an_option(tiny_model: Path, text: Path) -> None:
    by_argument = run(tiny_model, text, "--json")
    assert (
        json.loads(run("-m", tiny_model, text, "--json").stdout)["perplexity"]
        == (json.loads(by_argument.stdout)["perplexity"])
    )
    twice = run("--model", tiny_model, tiny_model, text)
    assert (twice.returncode, "given twice" in twice.stderr) == (2, True)
    for arguments, missing in (([tiny_model], "TEXTFILE"), (["-m", tiny_model], "TEXTFILE"), ([], "MODEL")):
        found = run(*arguments)
        assert found.returncode == 2
        assert f"missing argument '{missing}'" in found.stderr


def test_decoding_is_compared_with_float32(tiny_model: Path, text: Path) -> None:
    """float32 differs from itself by the order of its sums; a cache of 4 bits by much more."""
    exact = json.loads(run(tiny_model, text, "--decode", "--dtype", "float32", "--json").stdout)
    assert exact["kl"] < 1e-9
    assert exact["perplexity"] == pytest.approx(exact["reference_perplexity"], rel=1e-5)
    assert (exact["top1"], exact["reference_dtype"]) == (1.0, "float32")
    shown = run(tiny_model, text, "--decode")
    assert all(label in shown.stdout for label in ("KL against float32, nats", "perplexity in float32"))
    refused = run(tiny_model, text, "--decode", "--kv", "32,k8v4")
    assert refused.returncode == 2
    assert "--decode compares dtypes, with one --kv" in refused.stderr


def test_torch_decodes_otherwise_than_in_float32(tiny_model: Path, text: Path) -> None:
    on_torch = ("--backend", "torch", "--device", "cpu")
    report = json.loads(command.run("eval", tiny_model, text, "--decode", "--json", *on_torch).stdout)
    assert 0 < report["kl"] < 0.01
    assert report["decode_dtype"] == "bfloat16"
