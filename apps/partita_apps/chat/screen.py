"""A reply on standard output: what is said as it comes, thoughts and calls told apart from it, or a row a token.

Invariant: where standard output is no terminal, nothing but what the model says
goes there (and the rows of a trace).
"""

from __future__ import annotations

import json
import shutil
import sys
from textwrap import indent

import click

from partita.language_model import Piece
from partita.printable import printable, visible
from partita.text.reply.parser import ToolCall

from ..conversation.conversation import Conversation
from ..conversation.settings import FOLD, HIDE
from ..conversation.stats import ReplyStats, counted
from ..options import tell
from ..terminal import draws
from .markdown import Markdown
from .show import AsWritten, Lines
from .trace import Trace, cells

_CLEAR = "\r\x1b[K"
_THINKING = "thinking…"


class Screen:
    """Give every piece to `show` once its figures have it, then call `end`. hint: how to see folded thoughts."""

    def __init__(self, conversation: Conversation, reply_stats: ReplyStats, trace: bool, hint: str = ""):
        self._conversation, self._reply_stats = conversation, reply_stats
        self._trace = Trace(conversation.token_text) if trace else None
        self._person = sys.stdout.isatty()
        self._said = self._new_writer()
        self._thoughts = Thoughts(conversation.settings.thoughts if self._person else HIDE, hint)
        self._begun = False
        self._open = False  # something was said, and its line has not ended

    def show(self, piece: Piece) -> None:
        if self._trace is not None:
            self._row(self._trace, piece)
            return
        if piece.thought:
            self._break()
            self._thoughts.show(piece.thought)
        elif piece.text or piece.call is not None:
            self._thoughts.end(self._reply_stats.thought_tokens)
        self._write(piece.text)
        if piece.call is not None and self._person:
            self._break()
            click.echo(block(piece.call))

    def end(self) -> None:
        """The end of the line; after a trace, the whole text."""
        self._thoughts.end(self._reply_stats.thought_tokens)
        if self._trace is not None:
            if not self._begun and self._conversation.about.server is not None:
                tell("partita: no probabilities came from the server")
            self._write(f"\n{self._reply_stats.text}")
        if self._open or not self._person or not (self._reply_stats.calls or self._reply_stats.thought):
            sys.stdout.write("\n" if self._said is None else self._said.finish() + "\n")
        sys.stdout.flush()

    def break_off(self) -> None:
        """The end of the line where the reply was lost on its way."""
        if self._reply_stats.text or self._reply_stats.thought or self._begun:
            self.end()

    def _row(self, trace: Trace, piece: Piece) -> None:
        if piece.token is None or piece.token.probability is None:
            return
        if not self._begun:
            click.echo(trace.header())
            self._begun = True
        click.echo(trace.row(piece.token, self._conversation.state.slots))

    def _new_writer(self) -> Markdown | Lines | AsWritten | None:
        """What lays out the text of a reply; None where nobody looks."""
        if not self._person:
            return None
        if self._trace is not None:
            return Lines()
        if self._conversation.settings.plain:
            return AsWritten()
        return Lines() if self._conversation.raw else Markdown(styled=draws(sys.stdout))

    def _write(self, text: str) -> None:
        self._open |= bool(text)
        shown = text if self._said is None else self._said.push(text)
        if shown:
            sys.stdout.write(shown)
            sys.stdout.flush()

    def _break(self) -> None:
        """What follows stands on a line of its own."""
        if self._said is not None and self._open:
            sys.stdout.write(self._said.finish() + "\n")
            self._said, self._open = self._new_writer(), False


class Thoughts:
    """What a model thinks, on its way to a person: as it comes, or its end in one line, or not at all."""

    def __init__(self, way: str, hint: str):
        self._way, self._hint = way, hint if way == FOLD else ""
        self._moves = draws(sys.stdout)  # a line may change in its place
        self._lines: Lines | None = None  # None: there are none just now
        self._latest = ""

    def show(self, text: str) -> None:
        if self._way == HIDE:
            return
        if self._lines is None:
            self._lines, self._latest = Lines(), ""
            if self._way != FOLD or not self._moves:
                click.secho(_THINKING, dim=True)
        if self._way != FOLD:
            _dim(self._lines.push(text))
        elif self._moves:
            width = shutil.get_terminal_size().columns - 1
            self._latest = (self._latest + text)[-width:]
            latest = visible(" ".join(self._latest.split()))
            _dim(f"{_THINKING} {_ending(latest, width - cells(_THINKING) - 1)}", _CLEAR)

    def end(self, tokens: int) -> None:
        """tokens: how many there were."""
        if self._lines is None:
            return
        if self._way != FOLD:
            rest = self._lines.finish()
            _dim(rest + "\n" * (not self._lines.begins))
        _dim(f"thought for {counted(tokens)}{self._hint}\n\n", _CLEAR if self._way == FOLD and self._moves else "")
        self._lines = None


def _dim(text: str, before: str = "") -> None:
    if text:
        click.echo(before + click.style(text, dim=True), nl=False)


def _ending(text: str, width: int) -> str:
    """The end of a text, as much as fits."""
    while cells(text) > width:
        text = text[max(1, (cells(text) - width) // 2) :]
    return text


def block(call: ToolCall) -> str:
    """A tool call for a person: the tool, and its arguments below."""
    if call.error is not None:
        return click.style(f"→ not understood: {printable(call.error)}", bold=True) + "\n" + _indented(call.written, 2)
    rows = [click.style(f"→ {printable(call.name)}", bold=True)]
    for name, value in json.loads(call.arguments).items():
        text = value.rstrip("\n") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        short = "\n" not in text and cells(f"  {name}: {text}") <= shutil.get_terminal_size().columns
        rows += [f"  {printable(name)}: {visible(text)}"] if short else [f"  {printable(name)}:", _indented(text, 4)]
    return "\n".join(rows)


def _indented(text: str, margin: int) -> str:
    """A text with lines broken to fit beside a margin."""
    lines = Lines(max(shutil.get_terminal_size().columns - margin, 1))
    return indent(lines.push(text) + lines.finish(), " " * margin, lambda line: True)
