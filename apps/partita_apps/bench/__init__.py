"""`partita bench`: speed and memory measured here, beside a peer in the same run where one is named.

A figure is the median of several runs, the peer's in the same command, on one thread unless others are given: ratios of
one command are what counts. Every report carries commit, device and versions, and `--json` ends in one document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..options import model_options
from .report import finish
from .train_peers import NAMES as TRAINERS

Rows = list[dict[str, Any]]


@click.group("bench")
def bench() -> None:
    """Measure speed and memory on this machine."""


def measured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every benchmark takes."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output."),
        click.option("--runs", type=click.IntRange(1, 50), default=3, show_default=True, help="The median counts."),
        click.option("--model", default=None, help="Model to measure; the default model if left out."),
        model_options,
    ):
        function = option(function)
    return function


def against(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of benchmarks that a peer can run too."""
    from .peers import NAMES

    for option in (
        click.option("--against", type=click.Choice(NAMES), default=None, help="Measure this peer in the same run."),
        click.option("--peer-python", default=None, help="Python that has the peer installed; this one if left out."),
    ):
        function = option(function)
    return function


@bench.command()
@measured
@against
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True, help="Tokens before the first.")
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens to decode.")
def decode(as_json: bool, **options: Any) -> None:
    """Tokens per second one at a time, after a prompt."""
    from .speed import run

    finish(run("decode", **options), as_json)


@bench.command()
@measured
@against
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens of the prompt.")
def prefill(as_json: bool, **options: Any) -> None:
    """Tokens per second of a prompt."""
    from .speed import run

    finish(run("prefill", tokens=2, **options), as_json)


@bench.command()
@measured
@click.option("--tokens", type=click.IntRange(8), default=200, show_default=True, help="Tokens with and without cache.")
@click.option("--context", type=click.IntRange(64), default=1024, show_default=True, help="Size of the ring.")
@click.option("--far/--no-far", default=True, show_default=True, help="Also measure at positions 1,100 and 5,000.")
@click.option("--plot", default="cache.png", show_default=True, help="Where the picture of both curves goes.")
def cache(as_json: bool, **options: Any) -> None:
    """Time of each token with the cache and by recomputing the sequence; time far beyond the ring."""
    from .cache import run

    finish(run(**options), as_json)


@bench.command()
@measured
@click.option("--peer-python", default=None, help="Python that has mlx-lm installed, to measure it in the same run.")
def startup(as_json: bool, **options: Any) -> None:
    """Seconds to the help text, and from the command to the first token."""
    from .startup import run

    finish(run(**options), as_json)


@bench.command()
@measured
@click.option("--tokens", type=click.IntRange(1), default=8192, show_default=True, help="Length of the prompt.")
@click.option("--layers", type=click.IntRange(1), default=None, help="Cut the decoder to its first layers.")
@click.option("--kv", default="k8v4,k4v4:64", show_default=True, help="Formats to compare with 16 bits, by commas.")
def memory(as_json: bool, **options: Any) -> None:
    """MiB above the weights at the peak of a long prompt, beside a 16-bit cache; each in a process of its own."""
    from .memory import run

    finish(run(**options), as_json)


@bench.command()
@measured
@click.option("--tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens of the reply.")
@click.option("--count", type=click.IntRange(1), default=None, help="Most tokens drafted at once.")
def speculative(as_json: bool, **options: Any) -> None:
    """Tokens per second of a repeating text, with drafts looked up in it and without."""
    from .speculative import run

    finish(run(**options), as_json)


@bench.command()
@measured
@click.option("--prompt", type=click.IntRange(1), default=4000, show_default=True, help="Tokens of the first turn.")
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens of the reply to it.")
def reuse(as_json: bool, **options: Any) -> None:
    """Seconds to the first token of a second turn, which feeds only what is new, beside the first turn's."""
    from .reuse import run

    finish(run(**options), as_json)


@bench.command()
@measured
@click.option("--against", type=click.Choice(TRAINERS), default=None, help="Measure this peer in the same run.")
@click.option("--peer-python", default=None, help="Python that has the peer installed; this one if left out.")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Rows of a step.")
@click.option("--length", type=click.IntRange(8), default=256, show_default=True, help="Tokens of a row.")
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Size of the adapters.")
def train(as_json: bool, **options: Any) -> None:
    """Tokens per second and memory of fine-tuning with adapters on all projections; each in a process of its own."""
    from .train import run

    finish(run(**options), as_json)
