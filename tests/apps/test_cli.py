"""The command as a user starts it: help at once, mistakes in one line, quiet when it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from partita import __version__
from partita.sources.resolve import DEFAULT_MODEL
from partita_apps.cli import COMMANDS, cli

PARTITA = [str(Path(sys.executable).with_name("partita"))]
HEAVY = {"mlx", "torch", "tokenizers", "sentencepiece", "jinja2", "huggingface_hub", "gguf", "rich", "prompt_toolkit"}


def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PARTITA, *arguments], input=text, capture_output=True, text=True, timeout=60)


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("partita: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments):
    result = run(*arguments)
    assert result.returncode == 0
    for name, entry in COMMANDS.items():
        assert f"  {name}" in result.stdout
        assert entry.summary in result.stdout


def test_help_imports_nothing_heavy():
    code = "import sys; from partita_apps.cli import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert not HEAVY & set(result.stderr.split())


def test_the_version():
    assert run("--version").stdout == f"partita {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_entry_leads_to_a_command(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.help


@pytest.mark.parametrize("name", ["models", "bench"])
def test_help_of_a_group_cuts_no_line_off(name):
    _, _, commands = run(name, "--help").stdout.partition("Commands:")
    assert "..." not in commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sing"], ["no such command 'sing'", "(see partita --help)"]),
        (["--sing"], ["--sing", "(see partita --help)"]),
        (["chat", "--foo"], ["chat: no such option '--foo'", "(see partita chat --help)"]),
        (["chat", "--threads", "many"], ["--threads", "many"]),
        (["models", "suggest", "--for"], ["models suggest: option '--for'", "(see partita models suggest --help)"]),
        (["chat", "a", "b"], ["unexpected extra argument"]),
        (["eval"], ["eval: missing argument 'MODEL'", "(see partita eval --help)"]),
        (["models"], ["partita models needs a subcommand", "--help"]),
        (["models", "sing"], ["models: no such command"]),
        (["chat", "./nothing", "-p", "x"], ["./nothing does not exist"]),
        (["chat", "./nothing", "-p", "x", "--json"], ["./nothing does not exist"]),
        (["eval", "x", "y", "--sinks", "system"], ["--sinks", "only chat"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, words):
    assert_one_line(run(*arguments), *words)


def test_an_interrupted_answer_leaves_with_130_and_no_traceback(tiny_model):
    command = [*PARTITA, "chat", str(tiny_model), "--backend", "numpy", "-p", "Hello", "-n", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(50)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == b""


def test_a_reader_that_leaves_is_no_error(tiny_model):
    command = [*PARTITA, "chat", str(tiny_model), "--backend", "numpy", "-p", "Hello", "-n", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(50)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_a_full_disk_is_one_line(tiny_model, tmp_path):
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))"
    limited = f"{limit}; os.execv(sys.argv[1], sys.argv[1:])"
    command = [*PARTITA, "chat", str(tiny_model), "--backend", "numpy", "-p", "Hello", "-n", "40"]
    with (tmp_path / "out").open("wb") as out:
        result = subprocess.run(
            [sys.executable, "-c", limited, *command], stdout=out, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert result.returncode == 2
    assert result.stderr.startswith("partita: cannot write")
    assert result.stderr.count("\n") == 1


def test_an_ascii_terminal_shows_something_for_every_character(tiny_model):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [*PARTITA, "chat", str(tiny_model), "--backend", "numpy", "-p", "Hello", "-n", "40"]
    result = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert result.returncode == 0
    assert result.stdout.isascii()
    as_json = subprocess.run([*command, "--json"], capture_output=True, env=environment, timeout=60)
    assert len(json.loads(as_json.stdout)["tokens"]) == 40


def completed(line: str, **environment: str) -> list[str]:
    """What click tells a shell to propose for the last word of a line: "kind,word" each."""
    words = line.split(" ")
    asked = {"_PARTITA_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        PARTITA, env={**os.environ, **asked, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_proposes_commands_options_and_values(tmp_path):
    assert completed("partita ch") == ["plain,chat"]
    assert "plain,--temperature" in completed("partita chat --te")
    assert completed("partita chat --backend m") == ["plain,mlx"]
    assert completed("partita eval --kv k8") == ["plain,k8v8", "plain,k8v4"]
    assert completed("partita chat ./mod") == ["file,./mod"]
    assert completed("partita chat --adapter let") == ["dir,let"]
    assert completed("partita models pu") == ["plain,pull"]
    assert completed("partita chat pypi:a", PARTITA_CACHE=str(tmp_path)) == ["file,pypi:a"]


def test_completion_proposes_models_that_are_here(default_model):
    assert default_model.exists()
    assert f"plain,{DEFAULT_MODEL}" in completed(f"partita chat {DEFAULT_MODEL[:8]}")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_completion_script(shell):
    environment = {**os.environ, "_PARTITA_COMPLETE": f"{shell}_source"}
    done = subprocess.run(PARTITA, env=environment, capture_output=True, text=True, check=True)
    assert f"_PARTITA_COMPLETE={shell}_complete" in done.stdout


def test_bash_completes_with_the_script():
    program = (
        'eval "$(_PARTITA_COMPLETE=bash_source partita)"; complete -p partita; '
        "COMP_WORDS=(partita fin); COMP_CWORD=1; _partita_completion partita; echo ${COMPREPLY[@]}"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", program], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["complete -o nosort -F _partita_completion partita", "finetune"]


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "partita", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"partita {__version__}\n"
