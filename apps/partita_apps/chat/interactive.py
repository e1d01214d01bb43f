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
from partita.units import memory_size

from ..conversation.conversation import NONE, Conversation
from ..conversation.record import record_of
from ..conversation.settings import NAMES
from ..conversation.stats import ReplyStats
from ..messages import rendered, shown
from ..terminal import is_dumb
from .ask import Ask, PlainAsk
from .commands import Leave, Send, counted, named_commands, read, waiting
from .kept import HISTORY
from .layout import wrapped
from .screen import Screen
from .show import forgets, last_turn, no_longer_seen, pieces
from .trace import ALTERNATIVES

NOT_BEGUN = "stopped before the reply began; your text is not part of the conversation"


class Stopped(Exception):
    """Ctrl-C while the prompt was being read."""


def converse(conversation: Conversation, save: Callable[[], None], *, trace: bool) -> None:
    """Until the person leaves. save(): keeps the conversation where it is kept; called after every turn."""
    ask = PlainAsk() if is_dumb() else Ask(list(named_commands()), (*NAMES, HISTORY))
    greet(conversation)
    reported = forgets(conversation)
    pending = waiting(conversation)
    while True:
        tell_trouble(conversation)
        try:
            line = "" if pending is not None else ask.ask()
        except EOFError:
            return
        if not line.strip() and pending is None:
            continue
        before = conversation.messages
        try:
            meant, pending = pending or read(conversation, line), None
            if isinstance(meant, Send):
                send(conversation, meant, trace)
                reported = tell_forgotten(conversation, reported)
                click.echo()
            else:
                click.echo(wrapped(meant) + "\n")
            if conversation.messages is not before:
                save()
        except Leave:
            return
        except PartitaError as error:
            said = wrapped(f"partita: {' '.join(in_words(error).split())}")
            click.echo(f"{click.style('partita:', fg='red')}{said.removeprefix('partita:')}\n")


def in_words(error: PartitaError) -> str:
    """The message with `/set NAME` for what can be changed now, and options for what the next chat is given."""
    return shown(rendered(str(error), {name: f"/set {name}" for name in (*NAMES, HISTORY)}.get))


def greet(conversation: Conversation) -> None:
    about = conversation.about
    per_token = "" if about.bytes_per_token is None else f", {memory_size(round(about.bytes_per_token))} a token"
    adapter = "" if about.adapter == NONE else f" with {about.adapter}"
    click.secho(wrapped(f"{about.model}{adapter}"), bold=True)
    facts = [
        about.server,
        None if about.backend is None else f"{about.backend} on {about.device}",
        None if about.context is None else f"context {about.context}",
        None if about.kv is None else f"kv {about.kv}{per_token}",
        None
        if "temperature" in conversation.delegated
        else f"temperature {conversation.settings.sampling.temperature:g}",
        "/help",
    ]
    click.secho(wrapped(" · ".join(fact for fact in facts if fact is not None)), dim=True)
    click.secho("each text is completed by itself (--raw)\n" if conversation.raw else "", dim=True)
    if conversation.messages:
        click.echo(wrapped(last_turn(conversation)))
        held = conversation.state.held
        cache = f", {held} tokens in the cache" if held else ""
        click.secho(f"{counted(len(conversation.messages))} so far{cache}\n", dim=True)
    record = record_of(conversation)
    if record is not None and record.on and record.is_first:
        where = f"chats are kept in {record.history.file}, for your eyes alone: /history lists them"
        click.secho(wrapped(f"{where}; /set history off, or --no-history, keeps nothing") + "\n", dim=True)


def send(conversation: Conversation, what: Send, trace: bool) -> None:
    if what.note:
        click.secho(wrapped(what.note), dim=True)
    with conversation.replacing() if what.replaces else nullcontext():
        turn(conversation, what.text, trace)


def turn(conversation: Conversation, text: str, trace: bool) -> None:
    """One text and its reply, with what it cost below."""
    reply_stats = ReplyStats(conversation)
    screen = Screen(conversation, reply_stats, trace, hint=" · /show thoughts")
    note = ""
    try:
        prompt = conversation.encode(text)  # by the model's template, a stranger's program: Ctrl-C does not wait for it
    except KeyboardInterrupt:
        click.secho(NOT_BEGUN, dim=True)
        return
    with stoppable() as stopped:

        def check() -> None:
            if stopped():
                raise Stopped

        try:
            with (
                kept(conversation, text, reply_stats) as keep,
                closing(
                    pieces(conversation, text, prompt, alternatives=ALTERNATIVES if trace else 0, check=check)
                ) as reply,
            ):
                for piece in reply:
                    reply_stats.add(piece)
                    screen.show(piece)
                    keep()
                    if stopped() and piece.finish_reason is None:
                        break
        except Stopped:
            click.secho(NOT_BEGUN, dim=True)
            return
        except PartitaError:
            screen.break_off()
            raise
    screen.end()
    if reply_stats.finish_reason is None:  # here, or elsewhere
        note = " · stopped"
    click.secho(wrapped(f"{reply_stats.line()}{note}"), dim=True)
    if conversation.settings.stats:
        click.secho(wrapped(reply_stats.details()), dim=True)


@contextmanager
def kept(conversation: Conversation, text: str, stats: ReplyStats) -> Iterator[Callable[[], None]]:
    """Gives a function that is called after every piece, so that the reply is kept while it comes."""
    record = record_of(conversation)
    if record is None:
        yield lambda: None
        return
    with record.turn(text, stats) as keep:
        yield keep


def tell_trouble(conversation: Conversation) -> None:
    """Say once that the history fails; and put down what a command has changed."""
    record = record_of(conversation)
    if record is None:
        return
    record.settle()
    if record.trouble:
        click.secho(wrapped(record.trouble), fg="yellow")
        record.trouble = ""


def tell_forgotten(conversation: Conversation, reported: bool) -> bool:
    """Say once when a conversation outgrows its context; the line under each reply counts on."""
    found = forgets(conversation)
    if found and not reported:
        click.secho(wrapped(no_longer_seen(conversation)), fg="yellow")
    return found


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
