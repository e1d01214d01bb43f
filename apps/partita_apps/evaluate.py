"""`partita eval`: perplexity of a text file through a cache of any size and format, and what the format loses."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from partita.errors import DataError, MemoryBudgetError
from partita.files.paths import own
from partita.files.texts import read_text
from partita.units import memory_size

from .aliases import model_option, shifted
from .completion import files, models
from .options import adapter_option, cache_options, load_model, model_options, tell
from .terminal import console


@click.command("eval")
@click.argument("model", required=False, metavar="MODEL", shell_complete=models)
@click.argument("textfile", required=False, metavar="TEXTFILE", shell_complete=files)
@click.option("--max-tokens", type=int, default=None, metavar="N", help="Use the first N tokens only; 2 or more.")
@click.option(
    "--segment", type=int, default=2048, show_default=True, metavar="N", help="Tokens a segment of the report covers."
)
@click.option(
    "--compare/--no-compare",
    default=None,
    help="KL (nats) and top-1 against a cache of full width.  [default: with several --kv]",
)
@click.option(
    "--decode", is_flag=True, help="Read a token at a time, as replies are written, beside the same model in float32."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@adapter_option
@model_option
@model_options
@cache_options
@click.pass_context
def evaluate(
    ctx: click.Context,
    model: str | None,
    textfile: str | None,
    named: str | None,
    max_tokens: int | None,
    segment: int,
    compare: bool | None,
    decode: bool,
    as_json: bool,
    context: int | str | None,
    sinks: int | None,
    kv: str,
    **backend: Any,
) -> None:
    """Perplexity of TEXTFILE (UTF-8) under MODEL, streamed once through the cache.

    --kv takes several formats, separated by commas, for a table, in which each is then read once more beside a cache of
    full width: KL is the mean divergence of the next token's probabilities in nats, top-1 how often the most probable
    token is the same. --decode gives the same figures for the dtype that replies are computed in, against float32.
    """
    model, textfile = shifted(named, model, textfile)
    if model is None or textfile is None:
        raise click.UsageError(f"Missing argument {'MODEL' if model is None else 'TEXTFILE'!r}", ctx)
    if max_tokens is not None and max_tokens < 2:
        raise DataError(f"--max-tokens must be >= 2, one token to predict the next from, got {max_tokens}")
    if segment < 2:
        raise DataError(f"--segment must be >= 2 tokens, got {segment}")  # now, not after minutes of reading
    text = read_text(own(textfile))
    language_model = load_model(model, **backend)
    formats = [name.strip() for name in kv.split(",")]
    choices = [language_model.choose_cache(context=context, sinks=sinks, kv=name) for name in formats]
    if context == "auto":  # one context for all formats, or they could not be compared
        least = min(choice.spec.context or 0 for choice in choices)
        choices = [language_model.choose_cache(context=least, sinks=sinks, kv=name) for name in formats]
    tell(*(choice.text for choice in choices), *(language_model.kv_warning(choice.spec) for choice in choices))
    tokens = language_model.tokenizer.encode(text)[:max_tokens]
    if decode:
        if len(choices) > 1 or compare:
            raise DataError("--decode compares dtypes, with one --kv and without --compare")
        report = decoded(language_model, choices[0].spec, load_model(model, **{**backend, "dtype": "float32"}), tokens)
        click.echo(json.dumps(report)) if as_json else show_decoded(report)
        return
    specs = [choice.spec for choice in choices]
    compared = len(specs) > 1 if compare is None else compare
    reference = reference_spec(language_model, specs[0], compare) if compared else None
    rows = [
        measure(language_model, spec, tokens, segment) for spec in specs
    ]  # peaks first: a comparison holds two caches
    for row, spec in zip(rows, specs, strict=True):
        row.update(losses_of_format(language_model, spec, reference, tokens))
    if as_json:
        click.echo(json.dumps(rows[0] if len(rows) == 1 else {"rows": rows}))
    else:
        show(rows)


def measure(language_model: Any, spec: Any, tokens: list[int], segment: int) -> dict[str, Any]:
    """One row of the report: figures of one pass over the tokens with an empty cache."""
    from partita.cache.state import Cache
    from partita.inference.perplexity import perplexity, segments, token_losses

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


def decoded(language_model: Any, spec: Any, exact: Any, tokens: list[int]) -> dict[str, Any]:
    """What decoding in the model's dtype loses against `exact`, the same model in float32."""
    from partita.cache.state import Cache
    from partita.inference.perplexity import compare_decoding, perplexity
    from partita.inference.runner import ModelRunner

    from .progress import bar

    tested, reference = (ModelRunner(each.ops, each.decoder, Cache(each.ops, spec)) for each in (language_model, exact))
    with bar("decoding beside float32") as advance:
        found = compare_decoding(tested, reference, tokens, on_progress=advance)
    ops = language_model.ops
    return {
        "perplexity": perplexity(found.losses),
        "reference_perplexity": perplexity(found.reference_losses),
        "kl": found.kl,
        "top1": found.top1,
        "tokens": len(tokens),
        "backend": ops.name,
        "device": ops.device,
        "dtype": ops.dtype,
        "decode_dtype": ops.decode_dtype,
        "reference_dtype": "float32",
        "kv": str(spec.kv),
        "context": spec.context,
    }


def reference_spec(language_model: Any, like: Any, asked: bool | None) -> Any:
    """A cache of full width with the same layout; None, and a line that says so, where memory has no room for it."""
    layout = {"context": like.context, "sinks": like.sinks, "kv": str(language_model.kv_format())}
    try:
        return language_model.choose_cache(**layout).spec
    except MemoryBudgetError as error:
        if asked:
            raise
        tell(f"KL and top-1 are left out, as they need a cache of full width too: {error}")
        return None


def losses_of_format(language_model: Any, spec: Any, reference: Any, tokens: list[int]) -> dict[str, Any]:
    """Mean KL in nats and share of equal most likely tokens against the reference; None where there is none."""
    from partita.cache.state import Cache
    from partita.inference.perplexity import compare

    from .progress import bar

    if reference is None:
        return {"kl": None, "top1": None, "reference_kv": None}
    if spec == reference:
        return {"kl": 0.0, "top1": 1.0, "reference_kv": str(reference.kv)}
    ops = language_model.ops
    with bar(f"comparing --kv {spec.kv} with {reference.kv}") as advance:
        found = compare(
            ops, language_model.decoder, Cache(ops, reference), Cache(ops, spec), tokens, on_progress=advance
        )
    return {"kl": found.kl, "top1": found.top1, "reference_kv": str(reference.kv)}


def show_decoded(report: dict[str, Any]) -> None:
    from rich.table import Table

    where = f"{report['backend']} on {report['device']}"
    table = Table(title=f"{report['tokens']} tokens, one at a time, {where}", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_row("perplexity", f"{report['perplexity']:.4f}")
    table.add_row("perplexity in float32", f"{report['reference_perplexity']:.4f}")
    table.add_row("KL against float32, nats", f"{report['kl']:.5f}")
    table.add_row("top-1 agreement", f"{report['top1']:.2%}")
    console().print(table)


def show(rows: list[dict[str, Any]]) -> None:
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
    if first["reference_kv"] is not None:
        table.add_row(f"KL against {first['reference_kv']}, nats", *(f"{row['kl']:.5f}" for row in rows))
        table.add_row("top-1 agreement", *(f"{row['top1']:.2%}" for row in rows))
    table.add_row("bytes a token", *(f"{row['bytes_per_token']:,.0f}" for row in rows))
    table.add_row("cache", *(memory_size(row["cache_bytes"]) for row in rows))
    console().print(table)
