"""Adapters in chat and eval: what they change, and switching between them in a conversation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from partita.adapters.read import Adapter
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError
from partita.language_model import load
from partita_apps import cli
from partita_apps.chat.commands import perform
from partita_apps.conversation.adapters import Adapters, read
from partita_apps.conversation.local import CacheOptions, LocalConversation
from partita_apps.conversation.settings import Settings
from partita_apps.options import other_base

from ..runtime.adapters.test_adapting import write


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("adapters")
    base = open_checkpoint(tiny_model)
    made = [write(place / name, base, seed=seed) for seed, name in enumerate(("loud", "calm"))]
    for folder in made:
        name_base(folder, str(tiny_model))
    return made


def name_base(folder: Path, base: str | None) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))


@pytest.fixture
def conversation(tiny_model: Path, folders: list[Path]) -> LocalConversation:
    adapters = Adapters(load(tiny_model, backend="numpy"), read([str(folder) for folder in folders]))
    return LocalConversation(adapters.model, Settings.of({"max_tokens": 12}), CacheOptions(), adapters=adapters)


def reply(conversation: LocalConversation, text: str) -> str:
    return "".join(piece.text for piece in conversation.reply(text))


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


def test_an_adapter_s_folder_is_a_model(
    tiny_model: Path, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base that it names is loaded with it; what it does not name has to be given."""
    ask = ("-p", "the fox", "-n", 12)
    loud = document(capsys, "chat", tiny_model, *ask, "--adapter", folders[0])
    assert document(capsys, "chat", folders[0], *ask)["tokens"] == loud["tokens"]
    both = document(capsys, "chat", folders[0], *ask, "--adapter", folders[1])
    assert (both["adapter"], both["tokens"]) == ("loud", loud["tokens"])
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog")
    measured = document(capsys, "eval", tiny_model, text, "--adapter", folders[0])
    assert document(capsys, "eval", folders[0], text)["perplexity"] == measured["perplexity"]
    assert cli.run(["eval", str(folders[0]), str(text), "--adapter", str(folders[1])]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    nameless = shutil.copytree(folders[0], tmp_path / "nameless")
    name_base(nameless, None)
    assert cli.run(["chat", str(nameless), "-p", "x"]) == 2
    assert "does not name its base: give the model and --adapter" in capsys.readouterr().err


def test_an_adapter_changes_what_eval_measures(
    tiny_model: Path, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog")
    plain = document(capsys, "eval", tiny_model, tmp_path / "text.txt")
    adapted = document(capsys, "eval", tiny_model, tmp_path / "text.txt", "--adapter", folders[0])
    assert adapted["tokens"] == plain["tokens"]
    assert adapted["perplexity"] != pytest.approx(plain["perplexity"], rel=0.01)


@pytest.mark.parametrize(
    ("trained", "used", "same"),
    [
        ("hf:owner/Name-1.5", "/models/name-1.5", True),
        ("models/name.gguf", "hf:other/name", True),
        ("pypi:name==1.2", "pypi:name==1.3", True),
        ("C:\\models\\name", "name/", True),
        (None, "name", True),
        ("hf:owner/name", None, True),
        (f"/hub/snapshots/{'0a' * 20}", "name", True),
        ("hf:owner/name-1.5", "hf:owner/name-1", False),
        ("hf:owner/name-instruct", "name.gguf", False),
    ],
)
def test_names_of_bases_are_compared(trained: str | None, used: str | None, same: bool) -> None:
    line = other_base(Adapter(Path("x/loud"), "peft", {}, {}, trained), used)
    assert (line is None) is same
    assert line is None or line.startswith(f"loud was trained on {trained}; on {used} it may")


def test_an_adapter_of_another_model_is_one_line(
    tiny_model: Path, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox")
    adapter = Path(shutil.copytree(folders[0], tmp_path / "loud"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base, said in ((str(tiny_model), 0), ("hf:owner/other", 1)):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        for ask in (("chat", tiny_model, "-p", "the fox", "-n", 2), ("eval", tiny_model, tmp_path / "text.txt")):
            arguments = [*map(str, ask), "--adapter", str(adapter), "--backend", "numpy"]
            assert cli.run(arguments) == 0
            assert capsys.readouterr().err.count(f"loud was trained on {base}; on {tiny_model} it may") == said


def test_switching_goes_on_with_the_conversation(conversation: LocalConversation, tiny_model: Path) -> None:
    base = LocalConversation(load(tiny_model, backend="numpy"), Settings.of({"max_tokens": 12}), CacheOptions())
    expected = reply(base, "the fox")
    loud = reply(conversation, "the fox")
    assert perform(conversation, "/adapter") == "adapter: loud; there are also calm, none"
    assert str(perform(conversation, "/adapter calm")).startswith("adapter: calm")
    perform(conversation, "/clear")
    calm = reply(conversation, "the fox")
    perform(conversation, "/adapter none")
    perform(conversation, "/clear")
    assert reply(conversation, "the fox") == expected
    assert len({loud, calm, expected}) == 3
    perform(conversation, "/adapter loud")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    assert reply(conversation, "and the dog")
    assert len(conversation.messages) == 4
    assert "adapter             loud" in str(perform(conversation, "/show"))


def test_a_switch_reads_the_conversation_again(conversation: LocalConversation) -> None:
    """What the cache held was computed with the other one: the reply is that of a conversation held without it."""
    first = reply(conversation, "the fox")
    perform(conversation, "/adapter none")
    assert conversation.session.tokens == []
    perform(conversation, "/adapter loud")
    assert reply(conversation, "and the dog")
    assert conversation.messages[1]["content"] == first


def test_names_that_are_not_there(conversation: LocalConversation, tiny_model: Path) -> None:
    with pytest.raises(DataError, match="unknown adapter 'quiet'; expected one of loud, calm, none"):
        perform(conversation, "/adapter quiet")
    assert conversation.about.adapter == "loud"
    alone = LocalConversation(load(tiny_model, backend="numpy"), Settings(), CacheOptions())
    assert perform(alone, "/adapter") == "adapter: none"
    with pytest.raises(DataError, match="start with `adapter` DIR"):
        perform(alone, "/adapter loud")


def test_folders_of_one_name_are_told_apart(tiny_model: Path, tmp_path: Path) -> None:
    base = open_checkpoint(tiny_model)
    paths = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        paths.append(str(write(tmp_path / place / "out", base)))
    assert list(read([*paths, paths[0]])) == paths
