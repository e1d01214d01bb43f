"""One prompt, one answer: streamed, traced, or as one JSON document."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing

import click

from partita.language_model import DEFAULT_MAX_TOKENS
from partita.printable import json_text, printable

from ..options import tell
from .figures import Figures, counted
from .layout import wrapped
from .screen import Screen
from .show import longer_than_context, no_longer_seen, pieces
from .talk import Talk
from .trace import ALTERNATIVES


def answer(talk: Talk, text: str, *, trace: bool, as_json: bool) -> None:
    """The reply on standard output; notes, and figures for people, on standard error."""
    sampling = talk.settings.seeded()
    talk.change(talk.settings.set("seed", sampling.seed))
    figures = Figures(talk)
    screen = None if as_json else Screen(talk, figures, trace)
    prompt = talk.encode(text)
    long = longer_than_context(talk, prompt)
    if long:
        click.echo(f"partita: {long}", err=True)
    with closing(pieces(talk, text, prompt, alternatives=ALTERNATIVES if trace else 0)) as reply:
        for piece in reply:
            figures.add(piece)
            if screen is not None:
                screen.show(piece)
    if screen is None:
        click.echo(json_text(figures.document(sampling.seed, trace)))
    else:
        screen.end()
    if talk.session.forgotten > 0 and not long:
        click.echo(f"partita: {no_longer_seen(talk)}", err=True)
    if screen is None:
        return
    if not sys.stdout.isatty():
        tell(*unseen(figures))
    show_figures(talk, figures)
    if sys.stderr.isatty():
        return
    if figures.finish_reason == "length" and talk.settings.max_tokens == DEFAULT_MAX_TOKENS:
        click.echo(f"partita: the reply was cut at {DEFAULT_MAX_TOKENS} tokens: give -n N for longer ones", err=True)


def show_figures(talk: Talk, figures: Figures) -> None:
    """The line under a reply, where a person looks; the one that was asked for (`stats`) in any case."""
    person = sys.stderr.isatty()
    lines = [figures.line()] * person + [figures.details()] * talk.settings.stats
    for line in lines:
        click.secho(wrapped(line) if person else f"partita: {line}", dim=person, err=True)


def unseen(figures: Figures) -> Iterator[str]:
    """What standard output does not show where it is no terminal."""
    if figures.calls:
        names = ", ".join(printable(call.name) or "a tool" for call in figures.calls)
        yield f"partita: the reply calls {names}: --json shows it"
    elif figures.thought and not figures.text:
        yield f"partita: the reply is nothing but thoughts ({counted(figures.thought_tokens)}): --json shows them"
