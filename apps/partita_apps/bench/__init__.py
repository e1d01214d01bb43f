"""`partita bench`: speed and memory measured here, beside a peer in the same run where one is named.

A figure is the median of several runs, the peer's in the same command and in turns with ours, on one thread unless
others are given: ratios of one command are what counts. Every report carries commit, device and versions, and `--json`
ends in one document. docs/benchmarks.md says what each command measures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from ..options import model_options
from .peers import NAMES, SERVERS
from .report import finish
from .train_peers import NAMES as TRAINERS

Rows = list[dict[str, Any]]
Run = Callable[..., Rows]


class Sizes(click.ParamType):
    """Numbers by commas; `4k` is 4,096."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        found = []
        for text in value.split(","):
            number, unit = text.strip().lower().removesuffix("k"), 1024 if text.strip().lower().endswith("k") else 1
            if not number.isdecimal() or not 0 < int(number) * unit < 2**24:
                self.fail(f"expected numbers >= 1 by commas, such as 128 or 1k,4k, got {value!r}", param, ctx)
            found.append(int(number) * unit)
        return tuple(found)


@click.group("bench")
def bench() -> None:
    """Measure speed and memory on this machine."""


def measured(function: Callable[..., Rows]) -> Callable[..., Any]:
    """A benchmark as a command: the options that all take, the model found, the report written."""

    @functools.wraps(function)
    def command(as_json: bool, model: str | None, **options: Any) -> None:
        from .charts import check
        from .models import model_path

        check(options.get("plot"))
        finish(function(model=model_path(model), **options), as_json)

    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output."),
        click.option("--runs", type=click.IntRange(1, 50), default=3, show_default=True, help="The median counts."),
        click.option(
            "--model",
            default=None,
            help="Model to measure, or shape:135m, shape:1b, shape:3b or shape:8b, random weights in the shape of a "
            "Llama of that size, shape:hybrid-4b of a Qwen3.5, shape:dense-4b of its sibling with attention alone; the "
            "default model if left out.",
        ),
        model_options,
    ):
        command = option(command)
    return command


def against(names: tuple[str, ...] = NAMES) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options of benchmarks that a peer can run too."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "--against", type=click.Choice(names), default=None, help="Measure this peer in the same run."
            ),
            click.option(
                "--peer-python", default=None, help="Python that has the peer installed; this one if left out."
            ),
        ):
            function = option(function)
        return function

    return decorate


plotted = click.option("--plot", default=None, metavar="FILE", help="Also draw the figures, as PNG.")


@bench.command(short_help="Measure decoding, one token at a time.")
@against()
@click.option("--prompt", type=Sizes(), default="128", show_default=True, help="Tokens before the first, by commas.")
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens to decode.")
@plotted
@measured
def decode(prompt: tuple[int, ...], **options: Any) -> Rows:
    """Measure tokens per second of decoding, one token at a time, after a prompt."""
    from .speed import run

    return run("decode", lengths=prompt, **options)


@bench.command()
@against()
@click.option("--prompt", type=Sizes(), default="512", show_default=True, help="Tokens of the prompt, by commas.")
@plotted
@measured
def prefill(prompt: tuple[int, ...], **options: Any) -> Rows:
    """Measure tokens per second of reading a prompt."""
    from .speed import run

    return run("prefill", lengths=prompt, tokens=2, **options)


@bench.command(short_help="Measure decoding of several sequences at once.")
@against()
@click.option("--rows", type=Sizes(), default="1,2,4,8,16", show_default=True, help="How many at once, by commas.")
@click.option("--prompt", type=click.IntRange(1), default=64, show_default=True, help="Tokens before the first.")
@click.option("--tokens", type=click.IntRange(2), default=32, show_default=True, help="Tokens to decode of each row.")
@plotted
@measured
def batch(**options: Any) -> Rows:
    """Measure tokens per second of several sequences decoded together, beside one alone."""
    from .batch import run

    return run(**options)


@bench.command(short_help="Measure the time of a token with the cache.")
@click.option("--tokens", type=click.IntRange(8), default=200, show_default=True, help="Tokens with and without cache.")
@click.option("--context", type=click.IntRange(64), default=1024, show_default=True, help="Size of the ring.")
@click.option("--far/--no-far", default=True, show_default=True, help="Also measure at positions 1,100 and 5,000.")
@click.option("--contexts", type=Sizes(), default=None, help="Measure a token at these lengths instead, as 1k,4k,16k.")
@click.option(
    "--kv",
    default="16,k8v4",
    show_default=True,
    help="With --contexts: formats that keep everything, by commas, or none.",
)
@click.option(
    "--ring", default="k8v4", show_default=True, help="With --contexts: formats in a ring, by commas, or none."
)
@click.option("--snapshots", is_flag=True, help="With --contexts: restore generated snapshots instead of reading text.")
@click.option("--plot", default=None, metavar="FILE", help="Draw the figures, as PNG.")
@measured
def cache(
    contexts: tuple[int, ...] | None,
    kv: str,
    ring: str,
    tokens: int,
    far: bool,
    context: int,
    snapshots: bool,
    **options: Any,
) -> Rows:
    """Measure the time of a token with the cache and by recomputing the sequence, and far beyond the ring; or, with
    --contexts, by the number of cached tokens."""
    from . import growth
    from .cache import run

    if contexts is not None:
        return growth.run(contexts=contexts, kv=kv, ring=ring, context=context, snapshots=snapshots, **options)
    return run(tokens=tokens, far=far, context=context, **options)


@bench.command(short_help="Measure seconds until a process answers.")
@against()
@measured
def startup(**options: Any) -> Rows:
    """Measure seconds to the help text, to the first word of a chat, and of a process that decodes 8 tokens."""
    from .startup import run

    return run(**options)


@bench.command(short_help="Measure peak memory of a long prompt.")
@against()
@click.option(
    "--tokens", type=Sizes(), default=None, help="Length of the prompt, by commas.  [default: 8k; 128 beside a peer]"
)
@click.option("--layers", type=click.IntRange(1), default=None, help="Cut the decoder to its first layers.")
@click.option("--kv", default=None, help="Formats to compare with 16 bits, by commas.  [default: k8v4,k4v4:64]")
@plotted
@measured
def memory(
    against: str | None,
    peer_python: str | None,
    tokens: tuple[int, ...] | None,
    layers: int | None,
    kv: str | None,
    **options: Any,
) -> Rows:
    """Measure peak memory of a long prompt above the weights, beside a 16-bit cache; with --against, the peak of a
    process for weights, a prompt and 16 tokens. Each in a separate process."""
    from .memory import beside, run

    if against is None:
        return run(tokens=tokens or (8192,), layers=layers, kv=kv or "k8v4,k4v4:64", **options)
    if layers or kv:
        raise click.UsageError("--layers and --kv are for ours alone: leave out --against", click.get_current_context())
    return beside(tokens=tokens or (128,), against=against, peer_python=peer_python, **options)


@bench.command(short_help="Measure decoding with drafts looked up.")
@click.option("--tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens of the reply.")
@click.option("--count", type=click.IntRange(1), default=None, help="Most tokens drafted at once.")
@measured
def speculative(**options: Any) -> Rows:
    """Measure tokens per second of a repeating text, with drafts looked up in it and without."""
    from .speculative import run

    return run(**options)


@bench.command(short_help="Measure seconds to a second turn's first token.")
@click.option("--prompt", type=click.IntRange(1), default=4000, show_default=True, help="Tokens of the first turn.")
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens of the reply to it.")
@measured
def reuse(**options: Any) -> Rows:
    """Measure seconds to the first token of a second turn, which reads only new tokens, beside the first turn's."""
    from .reuse import run

    return run(**options)


@bench.command(short_help="Measure speed and memory of fine-tuning.")
@against(TRAINERS)
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Rows of a step.")
@click.option("--length", type=click.IntRange(8), default=256, show_default=True, help="Tokens of a row.")
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Size of the adapters.")
@measured
def train(**options: Any) -> Rows:
    """Measure tokens per second and memory of fine-tuning with adapters on all projections, in separate processes."""
    from .train import run

    return run(**options)


@bench.command(short_help="Measure seconds and memory of a conversion.")
@click.option("--to", type=click.Choice(("mlx", "gguf")), default="mlx", show_default=True, help="What is written.")
@click.option("--quantize", default="4", show_default=True, metavar="RECIPE", help="As for partita convert.")
@click.option("--calibration", default=None, metavar="TEXTFILE|none", help="As for partita convert.")
@click.option("--against", is_flag=True, help="Measure the peer of that form too: mlx-lm, or llama.cpp's quantizer.")
@click.option("--peer-python", default=None, help="Python that has the peer installed; this one if left out.")
@measured
def convert(**options: Any) -> Rows:
    """Measure seconds and memory of a conversion of bfloat16 weights; each in a separate process."""
    from .convert import run

    return run(**options)


@bench.command(short_help="Measure the server with several clients.")
@against(SERVERS)
@click.option("--clients", type=Sizes(), default="1,4,16", show_default=True, help="How many at once, by commas.")
@click.option("--prompt", type=click.IntRange(8), default=64, show_default=True, help="Tokens of each one's prompt.")
@click.option("--tokens", type=click.IntRange(8), default=128, show_default=True, help="Tokens of each reply.")
@click.option("--arriving", type=click.IntRange(0), default=4000, show_default=True, help="Tokens of a long prompt.")
@measured
def serve(**options: Any) -> Rows:
    """Measure what `partita serve` gives its clients: tokens per second of several at once, the wait for the first
    token, the steadiness of a reply while a long prompt arrives, memory; beside a peer's server."""
    from .serve import run

    return run(**options)


@bench.command(short_help="Count the kernels that a step launches.")
@click.option(
    "--step", type=click.Choice(("decode", "train")), default="decode", show_default=True, help="What to count."
)
@click.option("--backend", type=click.Choice(("mlx", "torch")), default=None, help="The peer's, or mlx if left out.")
@click.option("--kv", default=None, help="Format of the cache, 16 if left out; formats by commas, 16,k8v4, on torch.")
@click.option("--context", type=click.IntRange(8, 24), default=None, help="A ring so small that it has begun to turn.")
@click.option("--rows", "batch", type=click.IntRange(1), default=1, show_default=True, help="How many at once.")
@click.option("--length", type=click.IntRange(8), default=128, show_default=True, help="Tokens of a row in training.")
@click.option("--rank", type=click.IntRange(1), default=8, show_default=True, help="Size of the adapters in training.")
@click.option("--grad-checkpoint", "checkpoint", is_flag=True, help="Training that computes activations again.")
@click.option(
    "--dtype",
    type=click.Choice(("float16", "bfloat16", "float32")),
    default=None,
    help="float16, or bfloat16 on torch and in training.",
)
@click.option(
    "--against",
    type=click.Choice(("mlx-lm", "transformers", "peft")),
    default=None,
    help="Count this peer's too; peft's in training, transformers' in decoding.",
)
@click.option("--peer-python", default=None, help="Python that has the peer installed; this one if left out.")
@click.option("--model", default=None, help="Model to count, or shape:135m …; the default model if left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def launches(
    step: str,
    model: str | None,
    as_json: bool,
    length: int,
    rank: int,
    checkpoint: bool,
    kv: str | None,
    context: int | None,
    **options: Any,
) -> None:
    """Count the kernels that a step launches on MLX, or its operations on a GPU of torch, without a device to time it:
    of decoding, with a cache that keeps everything and beyond a ring's context; of training, with adapters on all
    projections."""
    from .launches import run as of_decoding
    from .models import model_path
    from .train_launches import run as of_training

    other = "transformers" if step == "train" else "peft"
    if options["against"] == other:
        raise click.UsageError(f"{other} does not {step}: leave out --against", click.get_current_context())
    if step == "decode":
        finish(of_decoding(model=model_path(model), kv=kv, context=context, **options), as_json)
        return
    if kv or context:
        raise click.UsageError("--kv and --context are of decoding: leave them out", click.get_current_context())
    sizes = {"length": length, "rank": rank, "checkpoint": checkpoint}
    finish(of_training(model=model_path(model), **sizes, **options), as_json)


@bench.command(short_help="Measure decode steps of a device.")
@click.option("--contexts", type=Sizes(), default="128,2k,8k", show_default=True, help="Tokens held, by commas.")
@click.option("--kv", default="16,k8v4", show_default=True, help="Formats of the cache, by commas.")
@click.option("--ring", type=click.IntRange(64), default=1024, show_default=True, help="A ring that has begun to turn.")
@click.option("--tokens", type=click.IntRange(2), default=32, show_default=True, help="Tokens to decode a run.")
@measured
def device(**options: Any) -> Rows:
    """Measure decode steps of a device by context and format, compiled and not, and the share of its memory bandwidth;
    nothing is timed where its predictions are not those of a CPU."""
    from .device import run

    return run(**options)


@bench.command(short_help="Measure the page in a real browser.")
@click.option("--turns", type=click.IntRange(1), default=500, show_default=True, help="Of the long chat.")
@click.option("--tokens", type=click.IntRange(100, 30_000), default=20_000, show_default=True, help="Of the reply.")
@click.option("--rate", type=click.IntRange(10), default=1000, show_default=True, help="Tokens a second of the reply.")
@click.option("--browser", default=None, help="Chromium or Chrome; one that is found if left out.")
@click.option("--runs", type=click.IntRange(1, 50), default=3, show_default=True, help="The median counts.")
@click.option("--model", default=None, help="Model whose tokenizer is used; the default model if left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def page(model: str | None, as_json: bool, **options: Any) -> None:
    """Measure the page in a real browser over a scripted model: first paint, a long chat, a long reply, and how long it
    does not react meanwhile."""
    from .models import model_path
    from .page import run

    finish(run(model=model_path(model), **options), as_json)
