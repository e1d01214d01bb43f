"""Parts of `partita finetune` by themselves: metrics, the progress line, the report's table, settings."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partita.errors import DataError
from partita.finetuning.metrics import Metrics
from partita.finetuning.settings import Settings
from partita_apps.finetune.line import Line, Smoothed, loss_memory
from partita_apps.finetune.report import _quoted, _smoothed, _thinned
from partita_apps.finetune.settings import merged, read_config, read_run
from partita_apps.finetune.words import counted, were

from .finetuning import column


def test_metrics_of_a_run_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path, 0)
    first.add({"step": 0, "valid_loss": 3.0})
    for step in range(1, 6):
        first.add({"step": step, "train_loss": 1 / step})
    first.add({"step": 5, "valid_loss": 2.0})
    first.keep()
    first.close()
    with path.open("a") as file:
        file.write('["no row"]\n{"step": "x"}\n{"step": 6, "train')
    second = Metrics(path, 3)
    second.add({"step": 4, "train_loss": 9.0})
    second.close()
    expected = [[1, 1.0], [2, 0.5], [3, 1 / 3], [4, 9.0]]
    assert column(second.rows, "train_loss") == expected
    assert column(second.rows, "valid_loss") == [[0, 3.0]]
    assert [json.loads(line) for line in path.read_text().splitlines()] == second.rows
    third = Metrics(path, 0)  # a run that is begun again
    third.close()
    assert path.read_text() == ""


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        Metrics(tmp_path / "metrics.jsonl", 0)


def test_plain_lines_come_at_intervals_and_for_every_evaluation() -> None:
    stream = io.StringIO()
    with Line(500, 0, stream) as line:
        line.evaluated(0, 3.0, True)
        for step in range(1, 501):
            line.advance(step, 2.0, 1000, 0.5, 3 << 30)
        line.evaluated(500, 1.5, True)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 0: validation loss 3.0000"
    assert lines[1] == "step 1/500 · loss 2.0000 · valid 3.0000 · 2,000 tokens/s · 3.0 GiB · 4 min left"
    assert lines[2:] == [
        "step 500/500 · loss 2.0000 · valid 3.0000 · 2,000 tokens/s · 3.0 GiB",
        "step 500: validation loss 1.5000 (best)",
    ]


def test_a_long_step_shows_how_far_it_is() -> None:
    clock = [100.0]
    line = Line(4, 0, io.StringIO(), now=lambda: clock[0])
    assert line.shown() == ""
    line.within("validation", 0, None)
    assert line.shown() == ""  # short so far
    clock[0] += 5
    line.within("validation", 2, None)
    assert line.shown() == "validation batch 3, 5.0 s"
    line.evaluated(0, 3.0, True)
    line.within("step", 0, 8)
    clock[0] += 70
    line.within("step", 1, 8)
    assert line.shown() == "batch 2/8, 1 min"
    line.within("step", 8, 8)
    assert line.shown() == "batch 8/8, 1 min"  # gradients are there, the update goes on
    line.advance(1, 2.0, 1000, 100.0, 3 << 30)
    assert line.shown() == "loss 2.0000 · valid 3.0000 · 10 tokens/s · 3.0 GiB · 5 min left"
    line.within("step", 0, 8)
    clock[0] += 30
    assert line.shown().startswith("batch 1/8, 30 s of about 2 min · loss 2.0000 · ")


def test_nothing_within_a_step_where_there_is_no_terminal() -> None:
    stream, clock = io.StringIO(), [0.0]
    with Line(4, 0, stream, now=lambda: clock[0]) as line:
        for done in range(9):
            clock[0] += 60
            line.within("step", done, 8)
    assert stream.getvalue() == ""


def test_a_quiet_line_says_nothing() -> None:
    stream = io.StringIO()
    with Line(5, 0, stream, quiet=True) as line:
        line.evaluated(0, 3.0, True)
        line.say("x")
    assert stream.getvalue() == ""


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_smoothed_stays_among_what_it_was_given(values: list[float]) -> None:
    mean = Smoothed()
    for value in values:
        mean.add(value)
    assert min(values) - 1e-6 <= mean.value <= max(values) + 1e-6


@pytest.mark.parametrize(("steps", "memory"), [(0, 0), (1, 0), (10, 0), (20, 0.5), (50, 0.8), (100, 0.9), (10**6, 0.9)])
def test_short_runs_are_smoothed_less(steps: int, memory: float) -> None:
    assert loss_memory(steps) == pytest.approx(memory)


def test_the_line_and_the_picture_smooth_alike() -> None:
    losses = tuple(5 / step for step in range(1, 21))
    line = Line(20, 0, io.StringIO())
    for step, (loss, drawn) in enumerate(zip(losses, _smoothed(losses, 20), strict=True), 1):
        line.advance(step, loss, 1, 1.0, 0)
        assert line.words().startswith(f"loss {drawn:.4f}")
    assert drawn == pytest.approx(losses[-1], rel=0.1)


def test_one_is_no_plural() -> None:
    assert [counted(count, "step") for count in (0, 1, 2, 1000)] == ["0 steps", "1 step", "2 steps", "1,000 steps"]
    assert [were(count) for count in (1, 2)] == ["1 was", "2 were"]


@given(st.integers(0, 500))
def test_a_long_table_keeps_its_ends(count: int) -> None:
    marks = list(range(0, count * 3, 3))
    found = _thinned(marks)
    assert len(found) <= 13
    assert found == sorted(set(found))
    if marks:
        assert (found[0], found[-1]) == (marks[0], marks[-1])


def test_no_sample_ends_its_block() -> None:
    assert _quoted("a\n```\nb").startswith("````text\n")
    assert _quoted("````").endswith("\n`````")


def test_the_order_of_settings(tmp_path: Path) -> None:
    kept = {"model": "m", "data": "d", "rank": 4, "steps": 10}
    assert merged(kept, {}, {"rank": None}).rank == 4
    assert merged(kept, {"rank": 5}, {}).rank == 5
    assert merged(kept, {"rank": 5}, {"rank": 6}).rank == 6
    found = merged(kept, {}, {"epochs": 2.0})
    assert (found.steps, found.epochs) == (None, 2.0)
    assert merged(kept, {}, {"rslora": False, "dropout": 0.0}) == Settings("m", "d", rank=4, steps=10)


def test_settings_that_are_kept_are_read_again(tmp_path: Path) -> None:
    given = {"sample": ("one", "two"), "template_var": ("enable_thinking=false",), "targets": "q_proj,v_proj"}
    settings = Settings("m", "d", **given, learning_rate=1e-4, packing=False)
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"settings": settings.document(), "before": {"say": "x"}}))
    found, before = read_run(path)
    assert merged(found, {}) == settings
    assert before == {"say": "x"}


def test_values_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning-rate: 1e-4\nclip: 2\nsample: one\ntargets:\n- q_proj\n- v_proj\nlayers:\nsteps: 100.0\n")
    assert read_config(path) == {
        "learning_rate": 1e-4,
        "clip": 2.0,
        "sample": ("one",),
        "targets": "q_proj,v_proj",
        "steps": 100,
    }
    path.write_text("")
    assert read_config(path) == {}
