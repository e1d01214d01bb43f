"""The command: a table of tools, or the settings of one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from partita.errors import DataError
from partita.printable import json_text

from ...completion import one_of
from ...options import tell
from ...terminal import console, say
from .agents import AGENTS
from .apps import APPS
from .guide import KEY_VARIABLE, Client, Server, Settings
from .libraries import LIBRARIES

if TYPE_CHECKING:
    from rich.table import Table

CLIENTS = {client.name: client for client in (*AGENTS, *LIBRARIES, *APPS)}


@click.command("clients")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=one_of(*CLIENTS))
@click.option("--url", default=None, metavar="URL", help="A server's address.  [default: the one that runs here]")
@click.option("--model", default=None, metavar="MODEL", help="A model by the name that the server gives it.")
@click.option(
    "--api-key",
    envvar=KEY_VARIABLE,
    default=None,
    metavar="KEY",
    help=f"The server's key (or in {KEY_VARIABLE}), with which it is asked; it is never shown.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def clients(name: str | None, url: str | None, model: str | None, api_key: str | None, as_json: bool) -> None:
    """Show how tools are pointed at this machine's server: the settings of the tool NAME, or a table of all tools.

    Address, model and context are those of the server that runs. Where none does, they are those that `partita serve`
    would have.
    """
    if name is None and not as_json:
        if url is not None or model is not None:
            raise click.UsageError("--url and --model are for the settings of a tool: give its NAME")
        _table()
        return
    if name is not None and name.lower() not in CLIENTS:
        raise DataError(f"unknown tool {name}; expected one of {', '.join(CLIENTS)}")
    from .facts import find

    server = find(url, model, api_key)
    chosen = list(CLIENTS.values()) if name is None else [CLIENTS[name.lower()]]
    if as_json:
        documents = [document(client, server) for client in chosen]
        click.echo(json_text({"server": about(server), "clients": documents}))
        return
    for client in chosen:
        say("\n".join(shown(client, server)))
        tell(warning(client, server))


def about(server: Server) -> dict[str, Any]:
    return {
        "url": server.url,
        "model": server.model,
        "context": server.context,
        "needs_key": server.keyed,
        "running": server.running,
    }


def document(client: Client, server: Server) -> dict[str, Any]:
    """All that there is to say of a tool."""
    settings = client.settings(server)
    return {
        "name": client.name,
        "title": client.title,
        "api": client.api,
        "ran": client.ran,
        "first_request": client.needs,
        "files": [{"path": file.path, "text": file.text} for file in settings.files],
        "environment": dict(settings.environment),
        "start": settings.start,
        "steps": list(settings.steps),
        "python": settings.python,
        "notes": list(settings.notes),
    }


def shown(client: Client, server: Server) -> Iterator[str]:
    """The lines for a person, which can be copied from as they stand."""
    yield f"{client.title}: {client.tested()}"
    key = ", with a key" if server.keyed else ""
    yield f"{server.model} at {server.url}{'' if server.running else ' (not running)'}, context {server.context}{key}"
    yield from body(client.settings(server))


def body(settings: Settings) -> Iterator[str]:
    """What a tool is told."""
    for i, step in enumerate(settings.steps, 1):
        yield from (["", f"{i}. {step}"] if i == 1 else [f"{i}. {step}"])
    for file in settings.files:
        yield from ("", f"{file.path}:", "", *_indented(file.text))
    if settings.python is not None:
        yield from ("", *_indented(settings.python))
    lines = [f"export {name}={value}" for name, value in settings.environment.items()]
    if settings.start is not None:
        lines.append(settings.start)
    if lines:
        yield from ("", *_indented("\n".join(lines)))
    for note in settings.notes:
        yield from ("", note)


def _indented(text: str) -> Iterator[str]:
    return (f"    {line}".rstrip() for line in text.rstrip().splitlines())


def warning(client: Client, server: Server) -> str | None:
    """A line where the tool's first request leaves little of the context, or does not fit it."""
    if client.needs is None or client.needs + server.reply <= server.context:
        return None
    model = shlex.quote(server.model)
    return (
        f"{client.title} begins with about {client.needs} tokens, and {model} holds {server.context}: "
        "serve a model with a longer context"
    )


def table() -> Table:
    """A row for each tool."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "tool", "calls", "first request", "settings"):
        found.add_column(heading, overflow="fold")
    for client in CLIENTS.values():
        needs = "" if client.needs is None else f"{client.needs} tokens"
        found.add_row(client.name, client.title, client.api, needs, client.tested())
    return found


def _table() -> None:
    out = console(highlight=False)
    if not out.is_terminal:
        out.width = 2000
    out.print(table())
