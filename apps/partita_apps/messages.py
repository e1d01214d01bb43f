"""The library's messages in the words of the place where they are shown. Decides nothing: a message stays what it says.

The library names a setting by its Python name in backticks, `max_length`. A spelling says what a person types in its
place: `--max-length` on the command line, `/set max_tokens` in a chat, the key in a settings file. A name that a
spelling does not know stays as it is. `convert(allow_pickle=True)` names a command with its options, wherever it is
shown: `partita convert --allow-pickle`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import click

Spelling = Callable[[str], str | None]
"""What a person types for a setting; None for a name that is no setting there."""
NAMED = re.compile(r"`(?P<name>[a-z][a-z0-9_]*)(?:\((?P<arguments>[^`()]*)\))?`")


def rendered(message: str, spelling: Spelling) -> str:
    """The message with each setting's name as it is typed."""

    def typed(found: re.Match[str]) -> str:
        name, arguments = found["name"], found["arguments"]
        if arguments is not None:
            return " ".join(["partita", name, *map(_argument, filter(None, arguments.split(", ")))])
        return spelling(name) or found[0]

    return NAMED.sub(typed, message)


def _argument(text: str) -> str:
    """Of a command: `allow_pickle=True`, `adapter=DIR` or a name in capitals."""
    name, is_option, value = text.partition("=")
    if not is_option:
        return name
    return flag(name) if value == "True" else f"{flag(name)} {value}"


def flag(name: str) -> str:
    """The option of a setting, as `--max-length` of `max_length`."""
    return f"--{name.replace('_', '-')}"


def options_of(command: click.Command) -> Spelling:
    """The long options of a command, those that its help shows."""
    shown = {
        option
        for param in command.params
        if isinstance(param, click.Option) and not param.hidden
        for option in param.opts
    }
    return lambda name: flag(name) if flag(name) in shown else None


def shown(message: str) -> str:
    """The message with the options of the command that is running; as it is outside of one."""
    context = click.get_current_context(silent=True)
    return message if context is None else rendered(message, options_of(context.command))


def keys_of(names: Collection[str]) -> Spelling:
    """The keys of a settings file that holds these settings."""
    return lambda name: name.replace("_", "-") if name in names else None


def invoked(group: click.Group, arguments: Sequence[str]) -> tuple[str, click.Command]:
    """The command that arguments name, with its path below the group, as "models pull"; the innermost group where they
    name none. Groups' own options take no value."""
    command: click.Command = group
    path: list[str] = []
    for word in arguments:
        if not isinstance(command, click.Group):
            break
        found = None if word.startswith("-") else command.get_command(click.Context(command), word)
        if found is not None:
            command, path = found, [*path, word]
    return " ".join(path), command
