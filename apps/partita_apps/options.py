"""Options that commands share, and a model loaded from them with its progress shown. Judges no value: the runtime does.

Nothing here imports the runtime's heavy modules before a model is loaded.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from partita.errors import DataError
from partita.files.paths import own
from partita.printable import printable

from .aliases import option
from .completion import folders, one_of
from .messages import shown

if TYPE_CHECKING:
    from partita.adapters.read import Adapter
    from partita.backend import Backend
    from partita.language_model import LanguageModel

Command = TypeVar("Command", bound=Callable[..., Any])


class Sinks(click.ParamType):
    """A number of tokens, or `system` where there is a system prompt to pin."""

    name = "sinks"

    def __init__(self, system: bool):
        self.system = system

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int) or (value == "system" and self.system):
            return value
        if value == "system":
            self.fail("'system' pins the system prompt, which only chat has: give a number", param, ctx)
        try:
            return int(value)
        except ValueError:
            self.fail(f"expected a number of tokens{' or system' if self.system else ''}, got {value!r}", param, ctx)


class Context(click.ParamType):
    """A number of tokens, or `auto` for as many as fit into memory."""

    name = "context"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int) or value == "auto":
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"expected a number of tokens or auto, got {value!r}", param, ctx)


def _stacked(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """The options as one decorator, in the order in which help shows them."""

    def decorate(function: Command) -> Command:
        for each in reversed(options):
            function = each(function)
        return function

    return decorate


model_options = _stacked(
    click.option(
        "--backend",
        default="auto",
        metavar="NAME",
        shell_complete=one_of("auto", "mlx", "torch", "numpy"),
        help="auto, mlx, torch or numpy.  [default: auto]",
    ),
    click.option(
        "--device",
        default=None,
        metavar="NAME",
        shell_complete=one_of("cpu", "cuda", "metal", "rocm"),
        help="Where the backend computes: cpu, metal, cuda or rocm.",
    ),
    click.option(
        "--dtype",
        default="auto",
        metavar="NAME",
        shell_complete=one_of("auto", "float32", "bfloat16", "float16"),
        help="auto, float32, bfloat16 or float16.  [default: auto]",
    ),
    option(
        "--threads",
        also=("-t",),
        type=int,
        default=None,
        metavar="N",
        help="CPU threads; torch only, other backends choose by themselves.",
    ),
)
"""Keywords: backend, device, dtype, threads. What `load_model` takes."""


adapter_option = option(
    "--adapter",
    also=("--adapter-path",),
    default=None,
    metavar="DIR",
    shell_complete=folders,
    help="A fine-tuned adapter for the model: a PEFT or mlx-lm folder.",
)
"""Keyword: adapter. What `load_model` takes."""
adapter_options = option(
    "--adapter",
    "adapters",
    also=("--adapter-path",),
    multiple=True,
    metavar="DIR",
    shell_complete=folders,
    help="A fine-tuned adapter, PEFT's or mlx-lm's; of several, /adapter NAME switches.",
)
"""Keyword: adapters, a tuple."""


def _cache_options(system: bool) -> Callable[[Command], Command]:
    sinks = "First tokens that are never dropped" + (", or system for the whole system prompt" if system else "")
    return _stacked(
        option(
            "--context",
            also=("-c", "--ctx-size"),
            type=Context(),
            default=None,
            metavar="N|auto",
            help="Tokens that the model sees; auto: as many as fit into memory.  [default: the model's]",
        ),
        click.option(
            "--sinks",
            type=Sinks(system),
            default=None,
            metavar="N|system" if system else "N",
            help=f"{sinks}.  [default: 4]",
        ),
        click.option(
            "--kv",
            default="auto",
            metavar="FORMAT",
            shell_complete=one_of("auto", "16", "k8v8", "k8v4", "k4v4", "k4v4h"),
            help="Bits of cached keys and values: auto (16 if it fits), 16, k8v8, k8v4, k4v4; k4v4h rotates first, "
            "k4v4:64 has groups of 64 in place of 32.",
        ),
    )


cache_options = _cache_options(system=False)
"""Keywords: context, sinks, kv. What `LanguageModel.cache_spec` takes."""
chat_cache_options = _cache_options(system=True)
"""The same; sinks may be "system"."""


sampling_options = _stacked(
    option(
        "--temperature",
        also=("--temp",),
        type=float,
        default=None,
        metavar="F",
        help="0 takes the most probable token.  [default: the model's in a conversation, else 0]",
    ),
    click.option(
        "--top-k", type=int, default=None, metavar="N", help="Sample from the N most probable tokens; 0: all."
    ),
    click.option(
        "--top-p",
        type=float,
        default=None,
        metavar="F",
        help="Sample from the most probable tokens that add up to F; 1: all.",
    ),
    click.option(
        "--min-p",
        type=float,
        default=None,
        metavar="F",
        help="Leave out tokens less than F times as probable as the most probable one.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        default=None,
        metavar="F",
        help="Divide the logits of tokens that have occurred by F; 1: none.",
    ),
    click.option(
        "--presence-penalty",
        type=float,
        default=None,
        metavar="F",
        help="Subtract F from the logits of generated tokens.",
    ),
    click.option(
        "--frequency-penalty",
        type=float,
        default=None,
        metavar="F",
        help="Subtract F for each time that a token was generated.",
    ),
    click.option("--seed", type=int, default=None, metavar="N", help="Make sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the reply before TEXT; repeatable."),
    click.option(
        "-n", "--max-tokens", type=int, default=None, metavar="N", help="Longest reply, in tokens.  [default: 512]"
    ),
)
"""Keywords: the fields of `Sampling` and max_tokens, None where not given; stop, a tuple."""


def load_model(
    model: str | None,
    *,
    backend: str | Backend = "auto",
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    adapter: str | None = None,
    what: str = "the model",
) -> LanguageModel:
    """The model that a user named, or the default one. A fetch and a long load are shown on standard error.

    backend: a name, or an instance that another model is on already (the other options are then its own). adapter:
    as in `partita.load`.
    """
    from partita.adapters.read import open_adapter
    from partita.language_model import load
    from partita.sources.resolve import resolve
    from partita_backends import first_use

    from .progress import TerminalProgress, bar

    model, own_adapter = adapter_as_model(model)
    if own_adapter is not None and adapter is not None:
        raise DataError(f"{own_adapter} is an adapter, and so is --adapter {adapter}: leave one of them out")
    adapter = adapter if own_adapter is None else own_adapter
    found = None if adapter is None else open_adapter(adapter)
    resolve(model, progress=TerminalProgress())  # first by itself: two bars at a time would fight for the line
    notes: list[str] = []
    with bar(f"loading {what}") as advance:
        placed = {"backend": backend, "device": device, "dtype": dtype, "threads": threads, "on_fallback": notes.append}
        loaded = load(model, **placed, on_layer=advance)
    tell(*notes, *loaded.notes)
    if sys.stderr.isatty():  # progress, which is for those who wait
        tell(first_use(loaded.ops))
    if found is None:
        return loaded
    adapted = loaded.with_adapter(found)
    tell(other_base(found, model))
    return adapted


def adapter_as_model(name: str | None) -> tuple[str | None, str | None]:
    """The model to load and the adapter for it, where the folder of an adapter was given as MODEL: its base's name and
    the folder. Otherwise the name as it is and None.

    Raises DataError for an adapter that does not name its base, and what `open_adapter` raises.
    """
    from partita.adapters.read import is_adapter, open_adapter

    if name is None or not is_adapter(Path(own(name))):
        return name, None
    base = open_adapter(name).base_model
    if not base:
        raise DataError(f"{name} is an adapter that does not name its base: give the model and --adapter {name}")
    tell(f"{name} is an adapter for {base}, which is loaded with it")
    return base, name


def other_base(adapter: Adapter, model: str | None) -> str | None:
    """A line where an adapter says that it was trained on a model of another name than the one that was asked for.

    Names are all there is to compare: last parts of paths, without what says a version or a kind of file.
    """
    from partita.sources.resolve import full_name

    model = None if model is None else full_name(model)
    trained, used = (_last_part(name) for name in (adapter.base_model, model))
    if trained is None or used is None or trained.lower() == used.lower():
        return None
    return f"{adapter.path.name} was trained on {adapter.base_model}; on {model} it may say something else, or nonsense"


def _last_part(name: str | None) -> str | None:
    """Of a model's name or path; None for one that says nothing."""
    if not name:
        return None
    last = Path(name).resolve().name if os.path.exists(name) else re.split(r"[/\\:]", name.rstrip("/\\"))[-1]
    last = last.split("==")[0].removesuffix(".gguf")
    return None if re.fullmatch(r"[0-9a-f]{40}|", last) else last  # a folder of the Hub's cache


def tell(*lines: str | None) -> None:
    """Notes for a person though nothing failed, on standard error, with this command's options. None: no note."""
    for line in lines:
        if line is not None:
            click.echo(printable(shown(line)), err=True)
