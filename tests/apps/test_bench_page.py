"""`partita bench page`: the real page and server over a scripted model, and what is told of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from partita.errors import BackendUnavailable
from partita_apps.bench import bench, page_server
from partita_apps.bench.page import percentile, run


def test_the_page_over_a_scripted_model(tiny_model: Path) -> None:
    options = ["--runs", "1", "--turns", "6", "--tokens", "300", "--rate", "1000", "--json"]
    done = CliRunner().invoke(bench, ["page", "--model", str(tiny_model), *options], catch_exceptions=False)
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert [row["unit"] for row in rows.values()] == ["ms"] * 7 + ["tasks", "ms", "s", "MiB"]
    assert all(row["ours"] >= 0 for row in rows.values())
    reply = "a reply of 300 tokens at 1,000/s"
    for part in ("first paint", "a chat of 6 turns opens", f"{reply}: memory", f"{reply}: processor time"):
        assert any(name.startswith(part) and rows[name]["ours"] > 0 for name in rows)


def test_a_browser_that_does_not_run_is_one_line(tiny_model: Path) -> None:
    for name in ("/nowhere/chromium", "sh"):
        with pytest.raises(BackendUnavailable) as refused:
            run(model=tiny_model, runs=1, turns=1, tokens=100, rate=1000, browser=name)
        assert "\n" not in str(refused.value)


def test_apercentile() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([], 0.5) == 0.0


def test_the_text_has_every_kind_of_block() -> None:
    from partita_apps.markup import Renderer

    html = Renderer().html(page_server.markdown(2))
    for element in ("<p>", "<ul>", "<h2>", "<figure", "<table>", "<math", "<em>", "<strong>", "<a "):
        assert element in html
