"""`partita eval`: perplexity of a text file, overall and by segment, through a cache of any size and format."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from partita.errors import DataError

from .options import cache_options, load_model, model_options


@click.command("eval")
@click.argument("model")
@click.argument("textfile", type=click.Path(path_type=Path))
@click.option("--max-tokens", type=int, default=None, help="Use the first N tokens of the text only.")
@click.option("--segment", type=int, default=2048, show_default=True, help="Tokens a segment of the report covers.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@model_options
@cache_options
def evaluate(
    model: str,
    textfile: Path,
    max_tokens: int | None,
    segment: int,
    as_json: bool,
    context: int | None,
    sinks: int | None,
    kv: str,
    **backend: Any,
) -> None:
    """Perplexity of TEXTFILE (UTF-8) under MODEL, streamed once through the cache.

    --kv takes several formats, separated by commas, for a table.
    """
    if max_tokens is not None and max_tokens < 2:
        raise DataError(f"--max-tokens must be at least 2, one token to predict the next from, not {max_tokens}")
    text = read_text(textfile)
    language_model = load_model(model, **backend)
    formats = [name.strip() for name in kv.split(",")]
    specs = [language_model.cache_spec(context=context, sinks=sinks, kv=name) for name in formats]
    tokens = language_model.tokenizer.encode(text)[:max_tokens]
    rows = [measure(language_model, spec, tokens, segment) for spec in specs]
    if as_json:
        click.echo(json.dumps(rows[0] if len(rows) == 1 else {"rows": rows}))
    else:
        show(rows)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: name a text file that can be read") from None


def measure(language_model: Any, spec: Any, tokens: list[int], segment: int) -> dict[str, Any]:
    """One row of the report: figures of one pass over the tokens with an empty cache."""
    from partita.cache import Cache
    from partita.perplexity import perplexity, segments, token_losses

    from .progress import bar

    ops = language_model.ops
    cache = Cache(ops, spec)
    weights = ops.memory().active
    ops.reset_peak()
    with bar(f"reading at --kv {spec.kv}") as advance:
        losses = token_losses(ops, language_model.decoder, cache, tokens, on_progress=advance)
    return {
        "perplexity": perplexity(losses),
        "tokens": len(tokens),
        "segments": [asdict(part) for part in segments(losses, segment)],
        "backend": ops.name,
        "device": ops.device,
        "dtype": ops.dtype,
        "kv": str(spec.kv),
        "context": spec.context,
        "sinks": spec.sinks,
        "bytes_per_token": cache.bytes_per_token(),
        "cache_bytes": cache.nbytes,
        "peak_bytes": ops.memory().peak,
        "peak_above_weights_bytes": max(ops.memory().peak - weights, 0),
    }


def show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    title = f"{first['tokens']} tokens, {first['backend']} on {first['device']}, context {first['context']}"
    table = Table(title=title, title_justify="left")
    table.add_column("tokens")
    for row in rows:
        table.add_column(f"--kv {row['kv']}", justify="right")
    for i, part in enumerate(first["segments"]):
        label = f"{part['start']} … {part['end'] - 1}"
        table.add_row(label, *(f"{row['segments'][i]['perplexity']:.2f}" for row in rows))
    table.add_section()
    table.add_row("all", *(f"{row['perplexity']:.2f}" for row in rows))
    table.add_row("bytes a token", *(f"{row['bytes_per_token']:,.0f}" for row in rows))
    table.add_row("cache", *(f"{row['cache_bytes'] / 2**20:.1f} MiB" for row in rows))
    Console().print(table)
