"""`partita info`: every backend with what it would run on, as a table and as one document."""

from __future__ import annotations

import json

from click.testing import CliRunner

import partita_backends
from partita import __version__
from partita.sources import resolve as sources
from partita_apps.info import info


def test_the_document_lists_every_backend():
    result = CliRunner().invoke(info, ["--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert [row["name"] for row in found["backends"]] == list(partita_backends.names())
    for row in found["backends"]:
        assert set(row) == {"name", "available", "device", "version", "reason"}
        assert row["reason"]
        assert bool(row["device"]) == row["available"]
    choice = partita_backends.choose()
    assert (found["auto"], found["auto_device"]) == (choice.backend.name, choice.backend.device)
    assert found["auto_reason"] == choice.reason
    assert [(row["name"], row["device"]) for row in found["passed"]] == [(x.name, x.device) for x in choice.passed]
    assert all(row["reason"] for row in found["passed"])
    assert next(row for row in found["backends"] if row["name"] == found["auto"])["available"]
    assert 0 < found["memory"]["free"] <= found["memory"]["total"]
    assert found["cpu"] >= 1
    assert found["partita"] == __version__
    assert found["default_model"] == sources.DEFAULT_MODEL
    assert found["cache_dir"] == str(sources.cache_dir())
    assert found["libraries"]["numpy"]


def test_the_table_says_the_same_and_why_a_backend_is_missing(monkeypatch):
    attempts = (
        partita_backends.Attempt("mlx", "metal", reason="Metal is on Apple Silicon only"),
        partita_backends.Attempt("torch", "cuda", reason="torch cannot be imported (OSError: c10.dll)", fault=True),
        partita_backends.Attempt("torch", "cpu", reason="torch cannot be imported (OSError: c10.dll)", fault=True),
        partita_backends.Attempt("mlx", "cpu", reason="backend mlx needs the mlx package"),
        partita_backends.Attempt("numpy", "cpu", partita_backends.load("numpy")),
    )
    monkeypatch.setattr(partita_backends, "survey", lambda: attempts)
    result = CliRunner().invoke(info, [], catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert any("mlx" in line and "needs the mlx package" in line for line in lines)
    assert any(line.split()[:2] == ["torch", "–"] and line.count("cannot be imported") == 1 for line in lines)
    assert any("numpy (auto)" in line and "cpu" in line for line in lines)
    (auto,) = (line for line in lines if line.startswith("auto "))
    assert "numpy on cpu: Metal is on Apple Silicon only; torch cannot be imported (OSError: c10.dll);" in auto
    assert any("GiB free of" in line for line in lines)
    assert all(line == line.rstrip() or line.startswith(" ") for line in lines)
