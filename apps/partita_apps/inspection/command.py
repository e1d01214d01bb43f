"""`partita inspect`: what a model or adapter is, what its tensors take, and whether partita would run it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from partita.printable import printable
from partita.units import disk_size

from ..completion import models
from ..messages import shown
from ..terminal import console, facts

if TYPE_CHECKING:
    from .contents import Contents

FEW = 100  # characters of one value of the metadata


@click.command("inspect")
@click.argument("model", shell_complete=models)
@click.option("--tensors", "each", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output, with every tensor.")
def inspect(model: str, each: bool, as_json: bool) -> None:
    """Show what MODEL holds, and what partita would refuse of it. No weight is loaded.

    MODEL is a folder, a .gguf or .safetensors file, the folder of an adapter, owner/name on the Hub or a short name
    (`partita models list`); nothing is fetched.
    """
    from partita.files.paths import own
    from partita.sources.resolve import resolve

    from .contents import contents

    place = own(model)
    found = contents(place if place.exists() else resolve(model, offline=True))
    if as_json:
        click.echo(json.dumps(found.as_json()))
    else:
        show(found, each=each)


def show(found: Contents, *, each: bool) -> None:
    files = "1 file" if found.files == 1 else f"{found.files} files"
    click.echo(printable(f"{found.path}: {found.form}, {files}, {disk_size(found.nbytes)}"))
    facts(list(_facts(found)))
    if found.tensors:
        _show_types(found)
    if each:
        _show_tensors(found)


def _facts(found: Contents) -> Iterator[tuple[str, str]]:
    if found.refused:
        for i, line in enumerate(found.refused):
            yield "" if i else "refused", shown(line)
    elif found.form in ("gguf", "folder"):
        yield "runs", "yes: partita can load it"
    if found.architecture is not None:
        yield "architecture", found.architecture
    if found.model is not None:
        yield "model", _model(found.model)
    if found.adapter is not None:
        yield "adapter", _adapter(found.adapter)
    if (tokenizer := found.tokenizer) is not None:
        stops = ", ".join(tokenizer["stops"]) or "none"
        bos = f"begins with {tokenizer['bos']}, " if tokenizer["adds_bos"] else ""
        yield "tokenizer", f"{tokenizer['tokens']} tokens, {tokenizer['controls']} special; {bos}stops at {stops}"
        yield "template", "none: a base model" if found.template is None else _template(found.template)
    for i, note in enumerate(found.notes):
        yield "" if i else "note", shown(note)
    for i, (key, value) in enumerate(found.metadata.items()):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text = " ".join(text.split())
        yield "" if i else "metadata", f"{key} = {text[:FEW] + '…' if len(text) > FEW else text}"


def _model(model: Mapping[str, Any]) -> str:
    kinds = ("attention", "recurrent", "convolution", "sharing")
    parts = [f"{model[f'{kind}_layers']} {kind}" for kind in kinds if model[f"{kind}_layers"]]
    layers = f"{model['layers']} layers" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
    said = [layers, f"hidden size {model['hidden_size']}"]
    if model["heads"] is not None:
        said.append(f"{_range(model['heads'])} heads of {_range(model['head_dim'])}")
        said.append(f"{_range(model['kv_heads'])} KV heads")
    if model["window"] is not None:
        said.append(f"window {_range(model['window'])}")
    if (experts := model["experts"]) is not None:
        said.append(f"{experts['active']} of {experts['count']} experts")
    if model["intermediate_size"]:
        said.append(f"MLP {_range(model['intermediate_size'])}")
    said.append(f"vocabulary {model['vocab_size']}{' (tied)' if model['tied'] else ''}")
    said.append(f"context {model['context']}")
    return ", ".join(said)


def _range(values: int | list[int | None]) -> str:
    """One number, or the different ones of a list."""
    if isinstance(values, int):
        return str(values)
    return " or ".join(str(value) for value in sorted({value for value in values if value is not None}))


def _adapter(adapter: Mapping[str, Any]) -> str:
    kind = f"{adapter['kind']}, rank {adapter['rank']}{', DoRA' if adapter['dora'] else ''}"
    base = f", of {adapter['base_model']}" if adapter["base_model"] else ""
    return f"{kind}, {adapter['changes']} changes of {', '.join(adapter['targets'])}{base}"


def _template(template: Mapping[str, Any]) -> str:
    said = [f"{template['characters']} characters", "takes tools" if template["tools"] else "takes no tools"]
    if template["channels"]:
        said.append("channels of thoughts and calls")
    said += [f"{name} begin with {template[name]}" for name in ("thoughts", "calls") if template[name]]
    return ", ".join(said)


def _show_types(found: Contents) -> None:
    rows = [
        (row.type, str(row.tensors), f"{row.values:,}", disk_size(row.nbytes), f"{row.bits:.2f}") for row in found.types
    ]
    values, nbytes = sum(row.values for row in found.types), sum(row.nbytes for row in found.types)
    if len(rows) > 1:
        bits = f"{8 * nbytes / values:.2f}" if values else ""
        rows.append(("all", str(len(found.tensors)), f"{values:,}", disk_size(nbytes), bits))
    _table(("type", "tensors", "values", "size", "bits each"), rows)


def _show_tensors(found: Contents) -> None:
    rows = [(each.name, each.type, " × ".join(map(str, each.shape)), disk_size(each.nbytes)) for each in found.tensors]
    _table(("tensor", "type", "shape", "size"), rows)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console(highlight=False, soft_wrap=False)
    if not out.is_terminal:
        out.width = 2000
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column in ("tensors", "values", "size", "bits each")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    out.print(table)
