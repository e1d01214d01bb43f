"""`~` is the home folder wherever a person names a file: options, arguments, settings files, commands of a chat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from partita.adapters.read import open_adapter
from partita.data.files import find
from partita.errors import CheckpointError, DataError, SourceError
from partita.files.paths import own
from partita.sources.resolve import resolve
from partita_apps import cli
from partita_apps.chat.commands import named
from partita_apps.paths import OwnPath


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def parameters() -> Iterator[click.Parameter]:
    context = click.Context(cli.cli)
    for name in cli.COMMANDS:
        command = cli.cli.get_command(context, name)
        assert command is not None
        yield from (p for each in (command, *getattr(command, "commands", {}).values()) for p in each.params)


def test_every_path_of_every_command_knows_home(home: Path) -> None:
    paths = [parameter for parameter in parameters() if isinstance(parameter.type, click.Path)]
    assert len(paths) >= 6
    for parameter in paths:
        assert isinstance(parameter.type, OwnPath), parameter.name
        assert parameter.type_cast_value(click.Context(cli.cli), "~/a") == home / "a"


def test_names_that_are_not_options_know_home(home: Path) -> None:
    assert own("~/a") == own(Path("~/a")) == named("~/a", "/save") == home / "a"
    assert own("a/~") == Path("a/~")
    assert own("~nobody-is-called-so/a") == Path("~nobody-is-called-so/a")
    with pytest.raises(SourceError, match="~/a does not exist"):
        resolve("~/a")
    (home / "a").mkdir()
    assert resolve("~/a") == home / "a"
    with pytest.raises(CheckpointError, match=f"{home}/a: there is no adapter_config.json"):
        open_adapter("~/a")
    with pytest.raises(DataError, match=f"{home}/a holds no train.jsonl"):
        find("~/a")
    with pytest.raises(DataError, match="null byte"):
        own("a\0b")


@pytest.mark.parametrize("given", [["--config", "~/run.yaml"], ["--out=~/run"], ["--config=~/none.yaml"]])
def test_a_run_in_home(home: Path, capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    (home / "run.yaml").write_text("out: ~/run\n")
    assert cli.run(["finetune", "--resume", *given]) == 2
    expected = home / ("none.yaml" if "none" in given[0] else "run")
    assert str(expected) in capsys.readouterr().err
    assert not Path("~").exists()
