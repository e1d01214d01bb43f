"""`partita info`: every backend with what it would run on, as a table and as one document."""

from __future__ import annotations

import json

from click.testing import CliRunner

import partita_backends
from partita import __version__, sources
from partita_apps.info import info


def test_the_document_tells_of_every_backend():
    result = CliRunner().invoke(info, ["--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert [row["name"] for row in found["backends"]] == list(partita_backends.names())
    for row in found["backends"]:
        assert set(row) == {"name", "available", "device", "version", "reason"}
        assert row["reason"]
        assert bool(row["device"]) == row["available"]
    assert (found["auto"], found["auto_reason"]) == partita_backends.choose()
    assert next(row for row in found["backends"] if row["name"] == found["auto"])["available"]
    assert 0 < found["memory"]["free"] <= found["memory"]["total"]
    assert found["cpu"] >= 1
    assert found["partita"] == __version__
    assert found["default_model"] == sources.DEFAULT_MODEL
    assert found["cache_dir"] == str(sources.cache_dir())
    assert found["libraries"]["numpy"]


def test_the_table_says_the_same_and_why_a_backend_is_missing(monkeypatch):
    missing = partita_backends.Status("mlx", False, None, None, "backend mlx needs the mlx package")
    here = partita_backends.Status("numpy", True, "cpu", "2.0", "float32")
    monkeypatch.setattr(partita_backends, "status", lambda: [missing, here])
    monkeypatch.setattr(partita_backends, "choose", lambda: ("numpy", "nothing else is installed"))
    result = CliRunner().invoke(info, [], catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert any("mlx" in line and "needs the mlx package" in line for line in lines)
    assert any("numpy (auto)" in line and "cpu" in line for line in lines)
    assert any(line.split()[:3] == ["auto", "numpy:", "nothing"] for line in lines)
    assert any("GiB free of" in line for line in lines)
    assert all(line == line.rstrip() or line.startswith(" ") for line in lines)
