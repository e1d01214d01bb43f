"""Adapters in chat and eval: what they change, and switching between them in a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from partita.checkpoint import open_checkpoint
from partita.errors import DataError
from partita.language_model import load
from partita_apps import cli
from partita_apps.chat.adapters import Adapters, read
from partita_apps.chat.commands import perform
from partita_apps.chat.settings import Settings
from partita_apps.chat.talk import CacheOptions, Talk

from ..runtime.test_adapting import write


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("adapters")
    base = open_checkpoint(tiny_model)
    return [write(place / name, base, seed=seed) for seed, name in enumerate(("loud", "calm"))]


@pytest.fixture
def talk(tiny_model: Path, folders: list[Path]) -> Iterator[Talk]:
    adapters = Adapters(load(tiny_model, backend="numpy", stack=False), read([str(folder) for folder in folders]))
    return Talk(adapters.model, Settings.of({"max_tokens": 12}), CacheOptions(), adapters=adapters)


def reply(talk: Talk, text: str) -> str:
    return "".join(piece.text for piece in talk.reply(text))


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert cli.run([*map(str, arguments), "--backend", "numpy", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_adapter_changes_the_reply(
    tiny_model: Path, folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("chat", tiny_model, "-p", "the fox", "-n", 12)
    plain = document(capsys, *ask)
    loud = document(capsys, *ask, "--adapter", folders[0])
    both = document(capsys, *ask, "--adapter", folders[0], "--adapter", folders[1])
    assert plain["adapter"] is None
    assert loud["adapter"] == both["adapter"] == "loud"  # the first one speaks
    assert loud["tokens"] != plain["tokens"]
    assert both["tokens"] == loud["tokens"]


def test_an_adapter_changes_what_eval_measures(
    tiny_model: Path, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog")
    plain = document(capsys, "eval", tiny_model, tmp_path / "text.txt")
    adapted = document(capsys, "eval", tiny_model, tmp_path / "text.txt", "--adapter", folders[0])
    assert adapted["tokens"] == plain["tokens"]
    assert adapted["perplexity"] != pytest.approx(plain["perplexity"], rel=0.01)


def test_switching_goes_on_with_the_conversation(talk: Talk, tiny_model: Path) -> None:
    base = Talk(load(tiny_model, backend="numpy"), Settings.of({"max_tokens": 12}), CacheOptions())
    expected = reply(base, "the fox")
    loud = reply(talk, "the fox")
    assert perform(talk, "/adapter") == "adapter: loud; there are also calm, none"
    assert perform(talk, "/adapter calm").startswith("adapter: calm")
    perform(talk, "/clear")
    calm = reply(talk, "the fox")
    perform(talk, "/adapter none")
    perform(talk, "/clear")
    assert reply(talk, "the fox") == expected
    assert len({loud, calm, expected}) == 3
    perform(talk, "/adapter loud")
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert reply(talk, "and the dog")
    assert len(talk.messages) == 4
    assert "adapter             loud" in perform(talk, "/show")


def test_a_switch_reads_the_conversation_anew(talk: Talk) -> None:
    """What the cache held was computed with the other one: the reply is that of a conversation held without it."""
    first = reply(talk, "the fox")
    perform(talk, "/adapter none")
    assert talk.session.tokens == []
    perform(talk, "/adapter loud")
    assert reply(talk, "and the dog")
    assert talk.messages[1]["content"] == first


def test_names_that_are_not_there(talk: Talk, tiny_model: Path) -> None:
    with pytest.raises(DataError, match="no adapter is called 'quiet': there are loud, calm, none"):
        perform(talk, "/adapter quiet")
    assert talk.adapters.current == "loud"
    alone = Talk(load(tiny_model, backend="numpy"), Settings(), CacheOptions())
    assert perform(alone, "/adapter") == "adapter: none"
    with pytest.raises(DataError, match="start with --adapter DIR"):
        perform(alone, "/adapter loud")


def test_folders_of_one_name_are_told_apart(tiny_model: Path, tmp_path: Path) -> None:
    base = open_checkpoint(tiny_model)
    paths = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        paths.append(str(write(tmp_path / place / "out", base)))
    assert list(read([*paths, paths[0]])) == paths
