"""`partita models suggest`: the machine's memory, a short table of models that fit, and how the first is run.

Answers go to standard output. Fetches nothing and opens no model; a backend is asked only for its memory, and not where
--memory says it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from partita.printable import json_text
from partita.units import disk_size, memory_size

from ..aliases import option
from ..terminal import console

if TYPE_CHECKING:
    from .catalogue import Use
    from .fit import Fit, Suggestion

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?) ?([kmgt])(i?)(b?)", re.IGNORECASE | re.ASCII)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


class Size(click.ParamType):
    """Bytes of memory: 16GiB, 16G (the same), 16GB (in thousands)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(value.strip())
        if found is None:
            self.fail(f"expected a size such as 16GiB, got {value!r}", param, ctx)
        number, unit, binary, byte = found.groups()
        size = int(float(number) * (1000 if byte and not binary else 1024) ** _POWERS[unit.lower()])
        if size == 0:
            self.fail(f"expected more than nothing, got {value!r}", param, ctx)
        return size


@dataclass(frozen=True)
class Room:
    """Bytes that a model may take; of how many, on which backend and device, where they were measured."""

    free: int
    total: int | None = None
    backend: str | None = None
    device: str | None = None

    def __str__(self) -> str:
        if self.total is None:
            return f"{memory_size(self.free)}, as --memory says"
        return f"{memory_size(self.free)} free of {memory_size(self.total)}, {self.backend} on {self.device}"


def measured() -> Room:
    """The memory of the device that `--backend auto` takes."""
    from partita_backends import choose

    ops = choose().backend
    memory = ops.memory()
    return Room(memory.free, memory.total, ops.name, ops.device)


@click.command(
    "suggest",
    short_help="Name public models that fit this machine.",
    help="Name public models that fit this machine's memory, the largest that fits comfortably first. They come from a "
    "list in the package: nothing is fetched or looked up.",
)
@click.option("--for", "use", type=click.Choice(["chat", "code", "tools"]), default=None, help="What it should be for.")
@option(
    "--context",
    also=("-c", "--ctx-size"),
    type=int,
    default=None,
    metavar="N",
    help="Tokens that it should see at once.  [default: 8192, or what it was trained on]",
)
@click.option(
    "--memory",
    type=Size(),
    default=None,
    metavar="SIZE",
    help="What it may take, such as 16GiB.  [default: what is free here]",
)
@click.option("--json", "json", is_flag=True, help="Print one JSON document on standard output.")
def suggest_command(use: Use | None, context: int | None, memory: int | None, json: bool) -> None:
    from .catalogue import read_catalogue
    from .fit import suggest

    room = measured() if memory is None else Room(memory)
    catalogue = read_catalogue()
    found = suggest(catalogue.model, room.free, use, context)
    if json:
        click.echo(json_text(document(found, room, catalogue.noted)))
    else:
        show(found, room, catalogue.noted)


def document(found: Suggestion, room: Room, noted: str) -> dict[str, Any]:
    """Bytes and tokens. tried: whether partita's own tests load the weights. helps: options of
    `partita chat`, each of which suffices."""
    from .fit import RESERVE

    rows = found.rows
    return {
        "memory": {**asdict(room), "reserve": RESERVE},
        "models": [row(fit) for fit in rows],
        "tight": [row(fit) for fit in found.tight],
        "nearly": [{**row(each.fit), "helps": list(each.helps)} for each in found.nearly],
        "run": rows[0].command if rows else None,
        "noted": noted,
    }


def row(fit: Fit) -> dict[str, Any]:
    model = fit.model
    return {
        "name": model.name,
        "model_type": model.model_type,
        "quantization": model.quantization,
        "parameters": model.parameters,
        "download": model.download,
        "weights": model.weights,
        "context": fit.context,
        "cache": fit.cache,
        "needs": fit.needs,
        "trained_context": model.context,
        "licence": model.licence,
        "suits": list(model.suits),
        "tried": model.tried,
    }


def show(found: Suggestion, room: Room, noted: str) -> None:
    from .fit import RESERVE

    click.echo(f"memory: {room}; a model needs weights, cache and {memory_size(RESERVE)} that are kept back")
    if found.rows:
        print_table(found.rows)
        click.echo(f"To fetch the first and talk with it: {found.rows[0].command}")
    else:
        click.echo(nothing(found))
    if found.tight:
        names = (f"{fit.model.name} ({memory_size(fit.needs)})" for fit in found.tight)
        click.echo(f"With little room left: {', '.join(names)}")
    if found.nearly:
        names = (f"{each.fit.model.name} with {' or '.join(each.helps)}" for each in found.nearly)
        click.echo(f"Nearly fit: {', '.join(names)}")
    if any(not fit.model.tried for fit in found.rows):
        click.echo(
            "Never tried: no weights of theirs were loaded in partita's tests, where their families were judged on "
            "small random models."
        )
    click.echo(f"The list is of {noted}: read the licence where the model is.")


def nothing(found: Suggestion) -> str:
    if not found.considered:
        return "No model of the list was trained on so many tokens: give a smaller --context."
    least = found.considered[0]
    needs = f"{memory_size(least.needs)} at a context of {least.context}"
    return f"No model of the list fits: {least.model.name} needs least, {needs}."


def print_table(rows: tuple[Fit, ...]) -> None:
    """One row a model; where a terminal is too narrow for that, its name and a line below it. Names are for copying:
    no name is cut or folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console(highlight=False)
    if not out.is_terminal:
        out.width = 2000
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("name", "download", "memory", "context", "licence", "suits", "tried"):
        table.add_column(name, justify="right" if name in ("download", "memory", "context") else "left", no_wrap=True)
    cells = [_cells(fit) for fit in rows]
    for each in cells:
        table.add_row(*map(Text, each))
    if out.measure(table, options=out.options.update(width=2000)).maximum <= out.width:
        out.print(table)
        return
    for name, download, memory, context, licence, suits, tried in cells:
        click.echo(f"{name}\n  {download}, {memory} at {context}; {licence}; {suits}; tried: {tried}")


def _cells(fit: Fit) -> tuple[str, ...]:
    model = fit.model
    sizes = disk_size(model.download), memory_size(fit.needs), str(fit.context)
    return (model.name, *sizes, model.licence, ", ".join(model.suits), "yes" if model.tried else "never")
