"""The line editor of the chat: many lines, history, completion of commands. Returns texts and knows no model.

On a terminal that knows no escape sequences its own line is all the editor there is. A text that begins with three
quotation marks goes on, whatever keys end its lines, until a line ends with three.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

HINT = "Enter sends · Alt+Enter new line · /help · Ctrl-D leaves"
AGAIN = "Ctrl-C again leaves"
QUOTES = '"""'
HOW_TO_CLOSE = f"{QUOTES} at the end of a line sends · Ctrl-C clears"
_STYLE = Style.from_dict(
    {"prompt": "bold ansigreen", "bottom-toolbar": "noreverse", "bottom-toolbar.text": "ansibrightblack"}
)


def is_open(text: str) -> bool:
    """Whether a text begins with three quotation marks, and no line of it ends with three more."""
    return text.startswith(QUOTES) and not any(map(_closes, text.removeprefix(QUOTES).split("\n")))


def quoted(text: str) -> str | None:
    """What stands between three quotation marks and three more; None for a text that does not stand between them.

    A line end beside them belongs to them.
    """
    inner = text.rstrip().removeprefix(QUOTES)
    if not text.startswith(QUOTES) or not _closes(inner):
        return None
    return inner.removesuffix(QUOTES).removeprefix("\n").removesuffix("\n")


def _closes(line: str) -> bool:
    return line.rstrip().endswith(QUOTES)


class Ask:
    """`ask()` is one text. Raises EOFError when the person leaves: Ctrl-D on an empty line, or Ctrl-C twice."""

    def __init__(self, commands: Sequence[str], settings: Sequence[str], history: History | None = None):
        self._armed = False  # Ctrl-C was the last key
        self._session: PromptSession[str] = PromptSession(
            history=history_file() if history is None else history,
            multiline=True,
            key_bindings=self._keys(),
            completer=Slashes(commands, settings),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            prompt_continuation=lambda width, number, wrapped: "  ",
            bottom_toolbar=self._toolbar,
            style=_STYLE,
            reserve_space_for_menu=0,
            include_default_pygments_style=False,
        )
        self._session.default_buffer.on_text_changed += lambda _: self._disarm()

    def ask(self) -> str:
        self._armed = False
        return self._session.prompt([("class:prompt", "> ")])

    def _disarm(self) -> None:
        self._armed = False

    def _toolbar(self) -> StyleAndTextTuples:
        hint = HOW_TO_CLOSE if is_open(self._session.default_buffer.text) else HINT
        return [("class:bottom-toolbar.text", AGAIN if self._armed else hint)]

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if is_open(buffer.text):  # a backslash in it is text
                buffer.insert_text("\n")
            elif buffer.document.char_before_cursor == "\\":
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        @keys.add("<sigint>")
        def interrupt(event: KeyPressEvent) -> None:
            if self._armed:
                event.app.exit(exception=EOFError())
                return
            event.current_buffer.reset()  # tells on_text_changed, hence before the next line
            self._armed = True

        return keys


class PlainAsk:
    """The same for a terminal that takes no escape sequences. A line that ends in a backslash goes on in the next."""

    def ask(self) -> str:
        armed, goes_on, lines = False, False, []
        while True:
            sys.stdout.write("  " if lines else "> ")
            sys.stdout.flush()
            try:
                line = sys.stdin.readline()
            except KeyboardInterrupt:
                if armed:
                    raise EOFError from None
                armed, lines = True, []
                sys.stdout.write(f"\n{AGAIN}\n")
                continue
            if not line:
                raise EOFError
            line = line.removesuffix("\n")
            goes_on = goes_on and not _closes(line) if lines else is_open(line)
            lines.append(line)
            if not goes_on and not line.endswith("\\"):
                return "\n".join(lines)
            if not goes_on:
                lines[-1] = line.removesuffix("\\")


class Slashes(Completer):
    """Commands after a slash, and settings after /set."""

    def __init__(self, commands: Sequence[str], settings: Sequence[str]):
        self._commands, self._settings = [f"/{name}" for name in commands], settings

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        words = document.text_before_cursor.split(" ")
        known: Sequence[str] = ()
        if document.text.startswith("/") and len(words) == 1:
            known = self._commands
        elif words[0] == "/set" and len(words) == 2:
            known = self._settings
        return [Completion(f"{word} ", -len(words[-1])) for word in known if word.startswith(words[-1])]


def history_file() -> History:
    """What was typed before, kept where the platform keeps such things; in memory where that cannot be written."""
    from platformdirs import user_state_path

    path = user_state_path("partita") / "chat-history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))  # a person's words are their own
        list(Lines(path).load_history_strings())
    except (OSError, UnicodeError):
        return InMemoryHistory()
    return Lines(path)


class Lines(FileHistory):
    """A history file whose disk may be full: what cannot be kept is forgotten, and the chat goes on."""

    def __init__(self, path: Path):
        super().__init__(str(path))

    def store_string(self, string: str) -> Any:
        try:
            super().store_string(string)
        except (OSError, UnicodeError):
            return
