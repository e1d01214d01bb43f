"""`partita bench serve`: a real server, its clients, and what they are told of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from partita.errors import BackendUnavailable, DataError
from partita_apps.bench import bench
from partita_apps.bench.clients import Load, Reply, at_once, complete
from partita_apps.bench.serve import serving


def test_a_server_and_its_clients(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partita_apps.bench.serve.BUSY", 128)
    options = ["--clients", "1,3", "--runs", "1", "--prompt", "16", "--tokens", "16", "--arriving", "300", "--json"]
    done = CliRunner().invoke(bench, ["serve", "--model", str(tiny_model), *options], catch_exceptions=False)
    found = json.loads(done.stdout)["rows"]
    rows = {row["name"]: row for row in found}
    assert len(rows) == len(found)
    assert [row["unit"] for row in found] == ["tokens/s", "s", "tokens/s", "s", "ms", "ms", "ms", "MiB"]
    assert all(row["ours"] > 0 for row in rows.values())
    names = "; ".join(rows)
    for part in ("1 client,", "3 clients,", "while 300 tokens arrive", "the server after it"):
        assert part in names


def test_what_a_load_comes_to() -> None:
    replies = [Reply(1.0, [2.0, 3.0], "a", 2), Reply(1.5, [2.0, 2.5, 4.0], "b", 3)]
    load = Load(replies, 3.0)
    assert load.rate == pytest.approx(5 / 3)
    assert load.first == 0.75
    assert replies[1].gaps == [0.5, 1.5]


def test_errors_of_a_server_are_not_figures(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "partita_apps.cli", "serve", str(tiny_model), "--port={port}", "--backend=numpy"]
    with serving(command) as server:
        assert server.model == "tiny"
        assert "404" in str(complete(server.port, "nothing", "the quick", 4).error)
        with pytest.raises(DataError, match="1 of 1 clients were not answered: status 400"):
            at_once(server.port, server.model, ["the " * 2000], 4)
        assert server.resident() > 1 << 20


def test_what_does_not_serve_is_one_line() -> None:
    program = "import sys; sys.exit('no such model')"
    with pytest.raises(BackendUnavailable, match="no such model"), serving([sys.executable, "-c", program]):
        pass
