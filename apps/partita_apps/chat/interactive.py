"""The conversation in the terminal: ask, answer, and go on, whatever went wrong with one turn.

Ctrl-C during a reply asks it to stop between two tokens, so that the cache stays whole; a second one does not wait.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress

import click

from partita.errors import PartitaError

from ..progress import size
from ..terminal import is_dumb
from .ask import Ask, PlainAsk
from .commands import Leave, Send, counted, named_commands, read
from .figures import Figures
from .kept import Keeper
from .layout import wrapped
from .screen import Screen
from .settings import NAMES
from .show import last_turn, no_longer_seen, pieces
from .talk import Talk
from .trace import ALTERNATIVES

NOT_BEGUN = "stopped before the reply began; your text is not part of the conversation"


class Stopped(Exception):
    """Ctrl-C while the prompt was being read."""


def converse(talk: Talk, keeper: Keeper, *, trace: bool) -> None:
    """Until the person leaves. Every turn is kept, in its file if there is one."""
    ask = PlainAsk() if is_dumb() else Ask(list(named_commands()), NAMES)
    greet(talk)
    told = talk.session.forgotten > 0
    while True:
        try:
            line = ask.ask()
        except EOFError:
            return
        if not line.strip():
            continue
        before = talk.messages
        try:
            meant = read(talk, line)
            if isinstance(meant, Send):
                send(talk, meant, trace)
                told = tell_forgotten(talk, told)
                click.echo()
            else:
                click.echo(wrapped(meant) + "\n")
            if talk.messages is not before:
                keeper.save()
        except Leave:
            return
        except PartitaError as error:
            said = wrapped(f"partita: {' '.join(str(error).split())}")
            click.echo(f"{click.style('partita:', fg='red')}{said.removeprefix('partita:')}\n")


def greet(talk: Talk) -> None:
    model, spec = talk.model, talk.session.cache.spec
    per_token = size(round(talk.session.cache.bytes_per_token()))
    adapter = f" with {talk.adapters.current}" if model.adapter else ""
    click.secho(wrapped(f"{model.name}{adapter}"), bold=True)
    facts = (
        f"{model.ops.name} on {model.ops.device}",
        f"context {spec.context}",
        f"kv {spec.kv}, {per_token} a token",
        f"temperature {talk.settings.sampling.temperature:g}",
        "/help",
    )
    click.secho(wrapped(" · ".join(facts)), dim=True)
    click.secho("each text is completed by itself (--raw)\n" if talk.raw else "", dim=True)
    if talk.messages:
        click.echo(wrapped(last_turn(talk)))
        held = len(talk.session.tokens)
        click.secho(f"{counted(len(talk.messages))} so far, {held} tokens in the cache\n", dim=True)


def send(talk: Talk, what: Send, trace: bool) -> None:
    if what.note:
        click.secho(wrapped(what.note), dim=True)
    with talk.replacing() if what.replaces else nullcontext():
        turn(talk, what.text, trace)


def turn(talk: Talk, text: str, trace: bool) -> None:
    """One text and its reply, with what it cost below."""
    figures = Figures(talk)
    screen = Screen(talk, figures, trace, hint=" · /show thoughts")
    note = ""
    try:
        prompt = talk.encode(text)  # by the model's template, a stranger's program: Ctrl-C does not wait for it
    except KeyboardInterrupt:
        click.secho(NOT_BEGUN, dim=True)
        return
    with stoppable() as stopped:

        def check() -> None:
            if stopped():
                raise Stopped

        try:
            with closing(pieces(talk, text, prompt, alternatives=ALTERNATIVES if trace else 0, check=check)) as reply:
                for piece in reply:
                    figures.add(piece)
                    screen.show(piece)
                    if stopped() and piece.finish_reason is None:
                        note = " · stopped"
                        break
        except Stopped:
            click.secho(NOT_BEGUN, dim=True)
            return
    screen.end()
    click.secho(wrapped(f"{figures.line()}{note}"), dim=True)
    if talk.settings.stats:
        click.secho(wrapped(figures.details()), dim=True)


def tell_forgotten(talk: Talk, told: bool) -> bool:
    """Say once when a conversation outgrows its context; the line under each reply counts on."""
    forgets = talk.session.forgotten > 0
    if forgets and not told:
        click.secho(wrapped(no_longer_seen(talk)), fg="yellow")
    return forgets


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed. The second time it is KeyboardInterrupt, at once."""
    pressed = False

    def handle(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        with unechoed():
            yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def unechoed() -> Iterator[None]:
    """Keys typed during a reply wait for the next prompt and are not written into the reply."""
    try:
        import termios
    except ImportError:  # not a Unix terminal
        yield
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(file, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        with suppress(termios.error):  # it is gone
            termios.tcsetattr(file, termios.TCSADRAIN, before)
