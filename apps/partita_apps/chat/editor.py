"""A text in the person's own editor, through a file that is nobody else's and gone afterwards (`click.edit`).

Invariant: Ctrl-C is the editor's while it runs, and the chat outlives it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from partita.errors import DataError

from ..terminal import is_dumb

USUAL = ("sensible-editor", "editor", "nano", "vim", "vi")


def edited(text: str) -> str | None:
    """What a person made of a text, without white space at its end; None where nothing was saved or nothing is left.

    Raises DataError where there is no editor, or it fails.
    """
    editor = chosen_editor()
    try:
        with left_alone():
            found = click.edit(text, editor=editor, extension=".md")
    except click.ClickException as error:
        raise DataError(f"{error.message}; the conversation is as it was") from None
    except (OSError, UnicodeError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else "the text is not UTF-8"
        raise DataError(f"{editor}: cannot edit the text: {reason}; the conversation is as it was") from None
    return (found or "").rstrip() or None


def chosen_editor() -> str:
    """The command of the editor: $VISUAL, $EDITOR, or a usual one that is installed. DataError for none.

    On a terminal without escape sequences an editor for the whole screen is of no use: $EDITOR comes first there, and
    nothing is guessed.
    """
    names = ("EDITOR", "VISUAL") if is_dumb() else ("VISUAL", "EDITOR")
    for name in names:
        if command := os.environ.get(name, "").strip():
            _check(command, name)
            return command
    usual = () if is_dumb() else ("notepad",) if sys.platform == "win32" else USUAL
    for command in usual:
        if shutil.which(command):
            return command
    raise DataError("no editor is known: set EDITOR to one (export EDITOR=nano) and start again")


def _check(command: str, name: str) -> None:
    try:
        program = shlex.split(command)[0]
    except (ValueError, IndexError):
        raise DataError(f"{name} is {command!r}, which is not a command: set it to an editor") from None
    if not shutil.which(program):
        raise DataError(f"{name} is {command!r}, and no such program is found: set it to an editor that is installed")


@contextmanager
def left_alone() -> Iterator[None]:
    """Ctrl-C does nothing here. A handler does not pass to child processes, as ignoring it would."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
