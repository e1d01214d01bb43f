"""One prompt, one answer: streamed, traced, or as one JSON document."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing

import click

from partita.errors import PartitaError
from partita.language_model import DEFAULT_MAX_TOKENS
from partita.printable import json_text, printable

from ..conversation.conversation import Conversation
from ..conversation.stats import ReplyStats, counted
from ..options import tell
from .layout import wrapped
from .screen import Screen
from .show import forgets, longer_than_context, no_longer_seen, pieces
from .trace import ALTERNATIVES


def answer(conversation: Conversation, text: str, *, trace: bool, as_json: bool) -> None:
    """The reply on standard output; notes, and figures for people, on standard error."""
    sampling = conversation.settings.seeded()
    conversation.change(conversation.settings.set("seed", sampling.seed))
    reply_stats = ReplyStats(conversation)
    screen = None if as_json else Screen(conversation, reply_stats, trace)
    prompt = conversation.encode(text)
    long = longer_than_context(conversation, prompt)
    if long:
        click.echo(f"partita: {long}", err=True)
    try:
        with closing(pieces(conversation, text, prompt, alternatives=ALTERNATIVES if trace else 0)) as reply:
            for piece in reply:
                reply_stats.add(piece)
                if screen is not None:
                    screen.show(piece)
    except PartitaError:
        if screen is not None:
            screen.break_off()
        raise
    if screen is None:
        click.echo(json_text(reply_stats.document(sampling.seed, trace)))
    else:
        screen.end()
    if forgets(conversation) and not long:
        click.echo(f"partita: {no_longer_seen(conversation)}", err=True)
    if screen is None:
        return
    if not sys.stdout.isatty():
        tell(*unseen(reply_stats))
    show_figures(conversation, reply_stats)
    if sys.stderr.isatty():
        return
    if reply_stats.finish_reason == "length" and conversation.settings.max_tokens == DEFAULT_MAX_TOKENS:
        click.echo(f"partita: the reply was cut at {DEFAULT_MAX_TOKENS} tokens: give -n N for longer ones", err=True)


def show_figures(conversation: Conversation, reply_stats: ReplyStats) -> None:
    """The line under a reply, where a person looks; the one that was asked for (`stats`) in any case."""
    person = sys.stderr.isatty()
    lines = [reply_stats.line()] * person + [reply_stats.details()] * conversation.settings.stats
    for line in lines:
        click.secho(wrapped(line) if person else f"partita: {line}", dim=person, err=True)


def unseen(reply_stats: ReplyStats) -> Iterator[str]:
    """What standard output does not show where it is no terminal."""
    if reply_stats.calls:
        names = ", ".join(printable(call.name) or "a tool" for call in reply_stats.calls)
        yield f"partita: the reply calls {names}: --json shows it"
    elif reply_stats.thought and not reply_stats.text:
        yield f"partita: the reply is nothing but thoughts ({counted(reply_stats.thought_count)}): --json shows them"
