"""Names that people bring from other tools: accepted where ours are, and left out of help, which shows a thing once.

No behaviour of its own: an alias does what its first name does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any

import click

CLOSE = 0.6  # difflib's own cutoff


class Aliased(click.Option):
    """An option that is parsed under the names of `also` too. Help, messages and completion know the first ones."""

    def __init__(self, names: Sequence[str], also: Sequence[str] = (), **how: Any):
        super().__init__(names, **how)
        self.also = tuple(also)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        shown = self.opts
        self.opts = [*shown, *self.also]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = shown


def option(*names: str, also: Sequence[str], **how: Any) -> Any:
    """`click.option` with further names that help does not show."""
    return click.option(*names, cls=Aliased, also=also, **how)


model_option = click.option("-m", "--model", "named", default=None, metavar="MODEL", hidden=True)
"""Keyword: named. MODEL as an option, for a command that has it as its first argument."""


def shifted(named: str | None, *arguments: str | None) -> tuple[str | None, ...]:
    """The values of MODEL and the arguments behind it, where --model may have named MODEL: the others then begin a
    place earlier. UsageError where MODEL was given both ways."""
    if named is None:
        return arguments
    *values, last = arguments
    if last is not None:
        context = click.get_current_context(silent=True)
        raise click.UsageError(
            "the model was given twice, as an argument and as --model: leave one of them out", context
        )
    return named, *values


def similar(typed: str, known: Iterable[str]) -> str:
    """ " Did you mean …?" for a mistyped word, or nothing. Dashes make no two options alike."""
    found = alike(typed, known)
    return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""


def alike(typed: str, known: Iterable[str]) -> list[str]:
    """The words that a mistyped one may stand for, the most similar first."""
    bare = typed.lstrip("-")
    found = get_close_matches(typed, list(known))
    return [word for word in found if SequenceMatcher(None, bare, word.lstrip("-")).ratio() >= CLOSE]
