"""`finetune --template-var`: tokens of data and samples are the template's with it, and whoever goes on is told."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from partita.checkpoint.open import open_checkpoint
from partita.finetuning.prepare import Prepared, prepare
from partita.finetuning.samples import prompts
from partita.finetuning.settings import Settings
from partita.text.chat_template import ChatTemplate, encode_chat
from partita.text.load import load_tokenizer
from partita_apps import cli

from ..conftest import TEMPLATE
from .finetuning import write_chats

QUICK = ("--backend", "torch", "--max-length", "96", "--rank", "2", "--steps", "2", "--sample-tokens", "4")
LOUD = ("--template-var", "style=very loud")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose template has something to be told."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% if style is defined %}<{{ style }}>{% endif %}" + TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_chats(tmp_path / "data.jsonl", 6)


@pytest.fixture
def prepared(model: Path, data: Path, tmp_path: Path) -> Callable[..., Prepared]:
    given = {"backend": "torch", "max_length": 96, "rank": 2, "steps": 2, "valid_fraction": 0.0, "packing": False}
    return lambda **more: prepare(Settings(str(model), str(data), **given, **more), tmp_path / "out")


def finetune(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    assert cli.run(["finetune", *map(str, arguments)]) == status
    said = capsys.readouterr()
    return said.out, said.err


def test_data_and_samples_get_the_variables(prepared: Callable[..., Prepared], model: Path) -> None:
    found = prepared(template_var=("style=very loud",), sample=("the fox",))
    tokenizer = load_tokenizer(open_checkpoint(model))
    messages = [{"role": "user", "content": "the fox"}]
    expected = encode_chat(tokenizer, ChatTemplate.of(tokenizer), messages, style="very loud")
    (sample,) = prompts(found)
    assert list(sample.ids) == expected
    beginning = tokenizer.encode("<very loud>")
    assert expected[: len(beginning)] == beginning
    for i in range(len(found.splits.train)):
        assert found.splits.train.document(i)[0][: len(beginning)].tolist() == beginning
    plain = prepared()
    assert plain.splits.train.document(0)[0][: len(beginning)].tolist() != beginning


def test_a_run_keeps_them_and_shows_how_to_use_them(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shown, _ = finetune(capsys, model, data, "--out", out, *LOUD, *QUICK)
    (use,) = (line for line in shown.splitlines() if line.startswith("partita chat"))
    assert shlex.split(use)[-2:] == list(LOUD)
    assert json.loads((out / "run.json").read_text())["settings"]["template_var"] == ["style=very loud"]
    report = (out / "report.md").read_text()
    assert "| `template-var` | `style=very loud` |" in report
    assert use in report
    finetune(capsys, "--resume", "--out", out)  # the data would differ without them, and be refused
    _, refused = finetune(capsys, "--resume", "--out", out, "--template-var", "style=low", status=2)
    assert "resume with the same data" in refused


def test_variables_that_nothing_reads_are_reported(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = finetune(capsys, model, data, "--out", tmp_path / "out", "--template-var", "mood=1", *QUICK)
    assert "the model's chat template does not read mood" in said
    (tmp_path / "poem.txt").write_text("the fox jumps over the lazy dog " * 20)
    _, said = finetune(capsys, model, tmp_path / "poem.txt", "--out", tmp_path / "new", *LOUD, *QUICK, status=2)
    assert "--template-var is for conversations, and DATA begins with plain text: leave it out" in said
    assert not (tmp_path / "new").exists()
