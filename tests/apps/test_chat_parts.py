"""Parts of `partita chat` that show text by themselves; settings, and conversations saved in files."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partita.cache.state import Slots
from partita.errors import DataError
from partita.inference.runner import Generated
from partita_apps.chat.show import Lines
from partita_apps.chat.trace import Trace, bar, cells, fitted, percent
from partita_apps.conversation import saved
from partita_apps.conversation.settings import NAMES, Settings


@pytest.mark.parametrize("width", [80, 100, 120])
def test_trace_rows_are_as_wide_as_their_header(tiny, width):
    rows = Trace(tiny.tokenizer.token_text, width)
    ids = [0, 100, 250, 270, 302, 299]
    token = Generated(302, 0.0123, 0.00002, tuple((i, 0.1) for i in ids))
    assert cells(plain(rows.row(token, Slots(4, 12345, 100)))) == cells(plain(rows.header())) < width


def plain(styled: str) -> str:
    import click

    return click.unstyle(styled)


@given(st.text(max_size=30), st.integers(1, 20))
def test_fitted_is_exact(text, width):
    text = "".join(c for c in text if c.isprintable())
    assert cells(fitted(text, width)) == width


@given(st.floats(0, 1))
def test_bars_and_shares_keep_their_width(p):
    assert len(bar(p, 8)) == 8
    assert len(percent(p)) == 6


@given(st.text(st.sampled_from("ab \n\t日🎉"), max_size=60), st.integers(4, 20), st.lists(st.integers(0, 60)))
def test_breaking_lines_changes_white_space_only(text, width, cuts):
    lines, places = Lines(width), [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pushed = [lines.push(text[a:b]) for a, b in pairwise(places)]
    shown = "".join(pushed) + lines.finish()
    assert "".join(shown.split()) == "".join(text.split())
    for line in shown.split("\n"):
        if "\t" not in line and "日" not in line and "🎉" not in line:
            assert len(line) <= width or " " not in line


def test_words_are_not_broken():
    lines = Lines(10)
    assert lines.push("one two three four") + lines.finish() == "one two \nthree four"


@given(st.lists(st.integers(0, 60)))
def test_a_model_does_not_control_the_terminal(cuts):
    text = "a\x1b]0;title\x07\r\x9b2J\r\n\tb \u202ec\r\nd\u2028\u200be\u200d\r"
    lines, places = Lines(80), [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown = "".join(lines.push(text[a:b]) for a, b in pairwise(places)) + lines.finish()
    assert shown == "a\\x1b]0;title\\x07\\r\\x9b2J\n\tb \\u202ec\nd\\u2028\\u200be\u200d\\r"


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_reads_what_it_shows(name):
    given = {"temperature": 0.5, "seed": 3, "system": "be brief", "stop": ["x"], "template_var": {"x": 1}}
    settings = Settings.of(given)
    text = {"stop": "x", "template_var": "x=1"}.get(name, str(settings.get(name)))
    assert settings.set_text(name, text) == settings
    with pytest.raises(DataError) as caught:
        Settings.of({name: object()})
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("top_k", "1.5"), ("temperature", "hot"), ("colour", "1"), ("seed", "-1")])
def test_a_setting_that_cannot_be(name, text):
    with pytest.raises(DataError):
        Settings().set_text(name, text)


def test_what_may_be_absent_is_taken_away():
    settings = Settings.of({"seed": 3, "system": "be brief", "stop": ["x"]})
    for name in ("seed", "system", "stop"):
        settings = settings.set_text(name, "none")
    assert settings == Settings()


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=4), st.text(max_size=9))
def test_a_saved_conversation_comes_back(tmp_path_factory, turns, system):
    path = tmp_path_factory.getbasetemp() / "conversation.json"
    messages = [{"role": r, "content": t} for pair in turns for r, t in zip(("user", "assistant"), pair, strict=True)]
    kept = saved.Saved("a model", Settings.of({"system": system, "temperature": 0.5}), messages)
    saved.save(kept, path)
    assert saved.load(path) == kept


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: "no json", "not a saved conversation"),
        (lambda d: "[]", "not a saved conversation"),
        (lambda d: "[" * 100_000, "not a saved conversation"),
        (lambda d: json.dumps({**d, "partita_conversation": 2}), "format 2"),
        (lambda d: json.dumps({**d, "messages": [{"role": "user"}]}), "content is missing"),
        (lambda d: json.dumps({**d, "messages": 3}), "damaged"),
        (lambda d: json.dumps({**d, "messages": [{"role": "user", "content": "x"}]}), "no answer"),
        (lambda d: json.dumps({**d, "messages": [{"role": "system", "content": "x"}]}), "message 1"),
        (lambda d: json.dumps({**d, "settings": {"temperature": "hot"}}), "temperature"),
        (lambda d: json.dumps({**d, "settings": {"temperature": -1}}), "temperature"),
        (lambda d: json.dumps({key: d[key] for key in d if key != "model"}), "model is missing"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, change, words):
    path = tmp_path / "conversation.json"
    saved.save(saved.Saved("m", Settings(), []), path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(DataError) as caught:
        saved.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "conversation.json"
    path.write_text("before")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("partita.files.atomic.os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        saved.save(saved.Saved("m", Settings(), []), path)
    assert [file.name for file in tmp_path.iterdir()] == ["conversation.json"]
    assert path.read_text() == "before"
    with pytest.raises(DataError, match="cannot be written"):
        saved.save(saved.Saved("m", Settings(), []), tmp_path / "no" / "where.json")
