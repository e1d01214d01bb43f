"""Every block of code in the documents does what it says: Python is run, commands are run, settings are read.

A block's language says how it is treated: `python` and `sh` are run, `console` has commands behind `$ ` and what they
print, `yaml` is a settings file of finetune, `text` is a drawing or an output. Commands run in a folder where the names
that documents use (MODEL, DATA, letters.jsonl …) are a tiny model, its adapters and a few texts.
"""

from __future__ import annotations

import ast
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

import partita
from partita_apps import cli
from partita_apps.aliases import Aliased
from partita_apps.chat import commands as chat_commands
from partita_apps.finetune.settings import read_config
from partita_apps.messages import flag, rendered

from ..apps import finetuning

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
COMING_FROM = ROOT / "docs/coming-from.md"
TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"
SOURCES = sorted(path for name in ("runtime", "backends", "convert", "apps") for path in (ROOT / name).rglob("*.py"))
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"python", "sh", "console", "yaml", "text"}
QUESTION = "What is the capital of France?"
"""What is written to a command that reads."""
LAUNCHERS = ("torchrun", "mlx.launch")
ONLY_PARSED = {
    "partita chat --adapter build/shakespeare": "its adapter takes a quarter of an hour to train",
    "partita chat --continue": "it needs a terminal; tests/apps/test_chat_history_terminal.py has one",
    "partita chat --server http://127.0.0.1:1234": "it needs a server; tests/apps/serve/test_chat_server.py runs one",
    "partita serve": "it answers until it is ended; tests/apps/serve/test_command.py runs it",
    "partita serve --open": "it answers until it is ended; tests/apps/page opens its page in a browser",
}
"""Commands whose arguments are judged and that are not run, with the reason."""


@dataclass(frozen=True)
class Block:
    document: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.text.strip().splitlines()[0][:50]}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for document in DOCUMENTS:
        for match in FENCE.finditer(document.read_text(encoding="utf-8")):
            if not languages or match["language"] in languages:
                found.append(Block(document.name, match["language"], match["text"]))
    return found


def commands() -> list[str]:
    """Every command line of the documents, without its comment, each once."""
    found = []
    for block in blocks("sh", "console"):
        text = block.text.replace("\\\n", " ")
        if block.language == "console":
            text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        found += [shlex.join(shlex.split(line, comments=True)) for line in text.splitlines()]
    return [line for line in dict.fromkeys(found) if line]


def starting(*words: str) -> list[str]:
    return [line for line in commands() if line.split()[0] in words]


@pytest.fixture(scope="module")
def prepared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the names of the documents stand for."""
    place = tmp_path_factory.mktemp("documents")
    for name in ("MODEL", "SOURCE", "model"):
        shutil.copytree(tiny_model, place / name)
    (place / "DATA").mkdir()
    for name in ("DATA/train.jsonl", "letters.jsonl"):
        finetuning.write_chats(place / name, 6)
    for name in ("speech.txt", "text.txt"):
        (place / name).write_text("the quick brown fox jumps over the lazy dog and then the other fox " * 30)
    done = run(place, [*finetuning.command("finetune", "MODEL", "DATA", "--out", "DIR", "--steps", "2")])
    assert done.returncode == 0, done.stderr
    partita.convert(place / "MODEL", place / "theirs.gguf", quantize="Q4_0", calibration="none")
    for name in ("ADAPTER", "letters", "poems"):
        shutil.copytree(place / "DIR", place / name)
    return place


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "here"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    return place


def run(place: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=place,
        input=QUESTION,
        capture_output=True,
        text=True,
        env=finetuning.environment(),
        timeout=120,
    )


def assert_parses(arguments: list[str]) -> None:
    """The command's own parser takes these arguments."""
    group = cli.cli
    with group.make_context("partita", list(arguments)) as outer:
        name, command, rest = group.resolve_command(outer, [*outer._protected_args, *outer.args])
        assert isinstance(command, click.Command), name
        command.make_context(name, rest, parent=outer).close()


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in blocks()} <= LANGUAGES, [str(b) for b in blocks() if not b.language]
    known = {"make", "partita", "pip", "python", ".venv/bin/pytest", "PARTITA_BACKENDS=torch", *LAUNCHERS}
    assert {line.split()[0] for line in commands()} <= known
    assert set(ONLY_PARSED) <= set(commands())


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block: Block, folder: Path, default_model: Path) -> None:
    """As it stands, in a fresh interpreter. The first one needs the default model."""
    assert default_model.exists()
    done = run(folder, [sys.executable, "-c", block.text])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_the_example_of_the_package_runs(folder: Path, default_model: Path) -> None:
    assert default_model.exists()
    assert partita.__doc__ is not None
    example = "\n".join(line[4:] for line in partita.__doc__.splitlines() if line.startswith("    "))
    assert "Paris" in run(folder, [sys.executable, "-c", example]).stdout


def test_the_function_is_not_hidden_by_a_module() -> None:
    """Importing a submodule puts it into the package under its name."""
    modules = {path.stem for path in (ROOT / "runtime/partita").iterdir()}
    assert not modules & set(partita.__all__)


@pytest.mark.parametrize("line", starting("partita"))
def test_a_command_runs(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, since each new one would spend seconds on importing torch."""
    arguments = shlex.split(line)[1:]
    if line in ONLY_PARSED:
        assert_parses(arguments)
        return
    if "--out" in arguments:
        shutil.rmtree(folder / arguments[arguments.index("--out") + 1])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(QUESTION.encode())))
    status = cli.run(arguments)
    assert status == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", starting(*LAUNCHERS))
def test_what_a_launcher_starts_is_a_command(line: str) -> None:
    """tests/apps/test_distributed.py starts two processes for real."""
    launcher, _, command = line.partition("-m partita_apps.cli ")
    assert command, launcher
    assert_parses(shlex.split(command))


@pytest.mark.parametrize("line", starting("python"))
def test_a_script_takes_its_flags(line: str) -> None:
    _, script, *arguments = shlex.split(line)
    assert (ROOT / script).is_file()
    assert_parses(["finetune", "MODEL", "DATA", *arguments])  # whose flags it passes on


def test_what_pip_installs_exists() -> None:
    """tests/architecture/test_packaging.py installs it. Extras: in brackets, wherever the documents name them."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {line.split(maxsplit=2)[2] for line in starting("pip")} == {"."}
    texts = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    assert set(re.findall(r"(?:'\.|partita)\[(\w+)\]", texts)) <= set(extras)


@pytest.mark.parametrize("line", [line for line in commands() if ".venv/bin/pytest" in line])
def test_tests_that_are_named_exist(line: str) -> None:
    paths = [word for word in line.split() if word.startswith("tests/")]
    assert paths
    assert all((ROOT / path).exists() for path in paths)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_settings_are_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(block.text)
    found: dict[str, Any] = read_config(tmp_path / "settings.yaml")
    assert len(found) == sum(bool(re.match(r"[\w-]+:", line)) for line in block.text.splitlines())


# Options, messages and variables that the documents name


@dataclass(frozen=True)
class Row:
    """A row of a table. heads, cells: of its columns, from left to right."""

    heads: list[str]
    cells: list[str]

    def column(self, head: str) -> str:
        return self.cells[self.heads.index(head)]


def table_rows(document: Path) -> Iterator[Row]:
    heads: list[str] | None = None
    for line in FENCE.sub("", document.read_text(encoding="utf-8")).splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            heads = None
        elif heads is None:
            heads = cells
        elif not re.fullmatch(r"[-:| ]+", line):
            assert len(cells) == len(heads), f"{document.name}: {line}"
            yield Row(heads, cells)


def code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def subcommand(names: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words begin with, and the words after its name."""
    command: click.Command = cli.cli
    while isinstance(command, click.Group) and names and not names[0].startswith("-"):
        found = command.get_command(click.Context(command), names[0])
        assert found is not None, names
        command, names = found, names[1:]
    return command, names


def option_names(command: click.Command) -> set[str]:
    """Every spelling that the command's parser takes."""
    found = {"-h", "--help"}
    for param in command.params:
        if isinstance(param, click.Option):
            found |= {*param.opts, *param.secondary_opts, *(param.also if isinstance(param, Aliased) else ())}
    return found


@cache
def all_option_names() -> frozenset[str]:
    waiting, found = [subcommand([name])[0] for name in cli.COMMANDS | cli.ALIASES], set[str]()
    while waiting:
        command = waiting.pop()
        found |= option_names(command)
        waiting += command.commands.values() if isinstance(command, click.Group) else ()
    return frozenset(found)


def assert_exists(text: str, command: str | None = None) -> None:
    """A piece of code that begins as something of ours is something of ours. command: whose options stand alone."""
    words = text.split()
    if words[0].startswith("/"):
        assert words[0].removeprefix("/") in chat_commands.named_commands(), text
        return
    if words[0] == "partita" and len(words) > 1:
        known, words = subcommand(words[1:])
        names = option_names(known)
    else:
        names = all_option_names() if command is None else option_names(subcommand([command])[0])
    for word in words:
        assert not re.match(r"--?[a-z]", word) or word.partition("=")[0] in names, text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_command_that_is_named_has_its_options(document: Path) -> None:
    for text in code(FENCE.sub("", document.read_text(encoding="utf-8"))):
        if text.startswith("partita ") and "…" not in text:
            assert_exists(text)


def test_what_stands_beside_other_tools_exists() -> None:
    """The column `partita` (or `partita COMMAND`, for a command's own options), and what "works too"."""
    rows = list(table_rows(COMING_FROM))
    assert len(rows) > 100
    for row in rows:
        head = next(head for head in row.heads if head.startswith("partita"))
        also = re.findall(r"((?:`[^`]+`(?:, | and )?)+) works? too", row.cells[-1])
        for text in [*code(row.column(head)), *code(" ".join(also))]:
            assert_exists(text, head.removeprefix("partita").strip() or None)


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def source_texts() -> tuple[str, ...]:
    """Every text in the sources as the command line shows it, with a zero byte for each value that is filled in."""
    found = [(ROOT / ".ci/setup").read_text(encoding="utf-8")]
    for path in SOURCES:
        found += [node.value for node in nodes_of(path) if isinstance(node, ast.Constant) and type(node.value) is str]
        for node in nodes_of(path):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
    return tuple(rendered(text, flag) for text in found)


MESSAGES = [code(row.column("message"))[0] for row in table_rows(TROUBLESHOOTING) if "message" in row.heads]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_quoted_is_printed(message: str) -> None:
    """`…` stands for what is filled in."""
    parts = [re.escape(part) for part in message.split("…")]
    assert any(re.search(".*".join(parts), text, re.DOTALL) for text in source_texts())


def variables(path: Path) -> set[str]:
    """Environment variables that a module names; nothing for one that reads no environment."""
    nodes = nodes_of(path)
    if not any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in nodes):
        return set()
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if re.fullmatch(r"_?[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", text)} - NO_VARIABLES


NO_VARIABLES = {
    "LONG",
    "REPLY",
    "PYTHON_IN_VENV",
    "GET",
    "ON",
    "YES",
    "TRUE",
    "ERROR",
    "MB",
    "GB",
    "CUDA",
    "AVX512",
    "SIGTERM",
    "SIGHUP",
}
"""Words in capitals in modules that read the environment."""


def test_every_variable_that_is_read_is_in_the_table() -> None:
    rows = [row for row in table_rows(TROUBLESHOOTING) if "variable" in row.heads]
    listed = {name for row in rows for name in code(row.column("variable"))}
    read = set[str]().union(*map(variables, SOURCES))
    assert {"PARTITA_CACHE", "HF_HOME", "LOCAL_RANK", "NO_COLOR"} <= read
    assert read <= listed, read - listed
    ours = {
        name for row in rows if row.column("read by").startswith("partita") for name in code(row.column("variable"))
    }
    assert ours <= read, f"nothing reads {ours - read}"
    tests = (ROOT / "tests").rglob("*.py")
    everywhere = "".join(path.read_text(encoding="utf-8") for path in [*tests, ROOT / "Makefile"])
    assert set(re.findall(r"\bPARTITA_[A-Z_]+", everywhere)) <= listed | {"_PARTITA_COMPLETE", "PARTITA_COMPLETE"}
