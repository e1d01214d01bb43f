"""The process and the terminal it was started from: standard streams, what may be drawn, and signals that end it.

Invariants: descriptors 0 to 2 are open, so that no file is taken for a standard stream; on a
terminal that takes no escape sequences, or for a person who wants none, nothing sends any; SIGTERM and SIGHUP end the
process as Ctrl-C does, with everything that is cleaned up or saved on the way out.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterable
from textwrap import wrap
from typing import TYPE_CHECKING, Any, TextIO

import click

from partita.printable import printable, visible

if TYPE_CHECKING:
    from rich.console import Console

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
HANGUP = getattr(signal, "SIGHUP", None)


def open_streams() -> None:
    """Give what the caller has closed (`>&-`) the null device, and show "?" on a terminal without UTF-8."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest free one
        os.set_inheritable(number, True)
    os.close(number)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def draws(stream: TextIO) -> bool:
    """Whether escape sequences may go there: for colours, and for lines that change in their place."""
    return stream.isatty() and not is_plain()


def is_plain() -> bool:
    """Whether no terminal is to be sent escape sequences. NO_COLOR: https://no-color.org."""
    return is_dumb() or bool(os.environ.get("NO_COLOR"))


def is_dumb() -> bool:
    """Whether the terminal knows no escape sequences: a shell inside an editor, some logs."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def console(stream: TextIO | None = None, **options: Any) -> Console:
    """A rich console for a stream, standard output by default."""
    from rich.console import Console

    return Console(file=stream, color_system=None if is_plain() else "auto", **options)


def say(text: str) -> None:
    """A line on standard output: for a program as it is, for a person without what would act on the terminal."""
    click.echo(visible(text) if sys.stdout.isatty() else text)


def facts(lines: Iterable[tuple[str, str]]) -> None:
    """Names and what is to be said of each, in two columns; long ones on several lines in a terminal."""
    out = console()
    width = max((out.width if out.is_terminal else 2000) - 15, 20)
    for name, value in lines:
        words = wrap(printable(value), width, break_long_words=False, break_on_hyphens=False) or [""]
        for i, line in enumerate(words):
            click.echo(click.style(f"{'' if i else name:<15}", dim=True) + line)


def end_on_signals() -> None:
    """Whatever is to be done on the way out is done. A signal that is ignored (`nohup`) stays so."""
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    for other in ENDING:  # systemd sends both and shells send one twice; the way out is begun
        if HANGUP in (number, other):
            signal.signal(other, signal.SIG_IGN)
    if number == HANGUP:
        leave_terminal()
    raise SystemExit(128 + number)


def leave_terminal() -> None:
    """What is still written to a terminal goes nowhere: it is gone, and writing to it would fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            left = stream.isatty() or _is_gone(stream.fileno())
        except (OSError, ValueError):
            continue
        if left:
            silence(stream)


def is_gone() -> bool:
    """Whether the terminal of a standard stream has hung up."""
    return any(map(_is_gone, (0, 1, 2)))


def _is_gone(number: int) -> bool:
    try:
        import termios
    except ImportError:  # not a Unix terminal
        return False
    try:
        termios.tcgetattr(number)
    except termios.error as error:
        return error.args[0] == errno.EIO
    return False


def silence(stream: Any) -> None:
    """What is still buffered goes nowhere, so that the interpreter does not fail on it while it exits."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        return
