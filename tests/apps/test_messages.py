"""Settings in messages: the library names them, an app shows what a person types. No library text holds an option."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from partita.errors import ContextError, PartitaError
from partita_apps import cli
from partita_apps.chat.interactive import in_words
from partita_apps.messages import NAMED, invoked, keys_of, options_of, rendered

ROOT = Path(__file__).parents[2]
LIBRARY = [
    path
    for name in ("runtime", "backends", "convert", "apps/partita_apps/conversation")
    for path in sorted((ROOT / name).rglob("*.py"))
    if path.name != "pip_download.py"  # which runs pip and names its options
]
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def command(*words: str) -> click.Command:
    return invoked(cli.cli, words)[1]


def test_a_setting_is_an_option_on_the_command_line() -> None:
    message = "a cache of 9 tokens at `kv` 16: try `kv` k8v4 or `context` 8192, with `max_length` 3"
    wanted = "a cache of 9 tokens at --kv 16: try --kv k8v4 or --context 8192, with `max_length` 3"
    assert rendered(message, options_of(command("chat"))) == wanted
    assert rendered("`max_length` and `packing`", options_of(command("finetune"))) == "--max-length and --packing"


def test_a_name_that_is_not_an_option_stays() -> None:
    for text in ("`pip config list`", "`kv`", "`named`", "`Kv`", "``", "`", "` kv`", "`kv`s of `x y`"):
        assert rendered(text, options_of(command("models", "pull"))) == text


def test_a_command_is_named_with_its_options() -> None:
    for where in ("chat", "convert"):
        text = rendered("read it with `convert(SOURCE, DEST, allow_pickle=True, to=gguf)`", options_of(command(where)))
        assert text == "read it with partita convert SOURCE DEST --allow-pickle --to gguf"


def test_a_key_of_a_settings_file() -> None:
    spelling = keys_of({"batch_size", "steps"})
    assert rendered("`batch_size` must be >= 1, or `context`", spelling) == "batch-size must be >= 1, or `context`"


def test_in_a_chat_what_can_be_changed_now_is_set() -> None:
    with click.Context(command("chat")):
        said = in_words(ContextError("`temperature` must be 0; try `kv` k8v4", field="temperature"))
    assert said == "/set temperature must be 0; try --kv k8v4"


@pytest.mark.parametrize(
    ("arguments", "path", "name"),
    [
        (["chat", "MODEL", "--kv", "k8"], "chat", "chat"),
        (["bench", "memory", "--model", "x"], "bench memory", "memory"),
        (["run", "x"], "run", "run"),
        (["models"], "models", "models"),
        (["nowhere"], "", "cli"),
        (["--version"], "", "cli"),
        ([], "", "cli"),
    ],
)
def test_the_command_that_is_meant(arguments: list[str], path: str, name: str) -> None:
    where, command = invoked(cli.cli, arguments)
    assert (where, command.name) == (path, name)


def test_an_error_carries_its_setting() -> None:
    error = ContextError("`context` must be >= 1", field="context")
    assert (str(error), error.field, PartitaError("x").field) == ("`context` must be >= 1", "context", None)


# What the sources hold


def texts(path: Path) -> Iterator[str]:
    """Every text of a module but its docstrings, with `…` for what is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (prose | parts):
            yield node.value


def all_commands(group: click.Group) -> Iterator[click.Command]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        yield from all_commands(found) if isinstance(found, click.Group) else (found,)


def names_of_options() -> set[str]:
    """Of all commands, as the library says them."""
    params = [param for found in all_commands(cli.cli) for param in found.params if isinstance(param, click.Option)]
    return {name.removeprefix("--").replace("-", "_") for param in params for name in param.opts if name[:2] == "--"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_names_no_option_of_ours(path: Path) -> None:
    ours = {f"--{name.replace('_', '-')}" for name in names_of_options()} | {"-n"}
    for text in texts(path):
        assert not ours & set(OPTION.findall(text)), text


def test_every_setting_that_a_message_names_is_an_option() -> None:
    """A misspelt name would stay in backticks. So would one that no command has: those of the Python API alone."""
    options, python = names_of_options(), {"chunk", "slack", "logit_bias"}
    named = [found for path in LIBRARY for text in texts(path) for found in NAMED.finditer(text)]
    assert len(named) > 80
    for found in named:
        if found["arguments"] is None:
            assert found["name"] in options | python, found[0]
            continue
        line = rendered(found[0], options_of(cli.cli)).split()
        known = options_of(command(line[1]))
        assert all(known(word[2:].replace("-", "_")) for word in line if word.startswith("--")), line
