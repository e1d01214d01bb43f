"""What a shell proposes for a word that is being typed. click asks these functions, through its own shell scripts.

Nothing here imports an array library or opens a model: a person waits with a finger on the Tab key.
"""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def one_of(*words: str) -> Completer:
    """Words that an option takes among others."""
    return lambda ctx, param, typed: [CompletionItem(word) for word in words if word.startswith(typed)]


def files(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    return [CompletionItem(typed, type="file")]


def folders(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    return [CompletionItem(typed, type="dir")]


def models(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Models on this machine by their names and short names; where none is meant, files and folders."""
    from partita.sources.resolve import list_models, short_name

    found = list_models() if typed else []
    names = [name for model in found for name in (short_name(model, found), model.name) if name is not None]
    return [CompletionItem(name) for name in names if name.startswith(typed)] or files(ctx, param, typed)
