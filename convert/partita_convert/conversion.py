"""A conversion as a person asks for it: a source by name, texts by their files. What the command and `partita.convert`
call, so that both do the same.

Not here: one checkpoint in another layout (`convert.py`), what is shown (a `Listener`'s business). Invariant: options
are judged before the source is fetched, and what would end a check before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from partita.adapters.read import fused, is_adapter, open_adapter
from partita.backend import Backend
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError, PartitaError, UnsupportedModel
from partita.files.paths import own
from partita.files.texts import read_text
from partita.language_model import check_backend, open_backend
from partita.model.load import read_config
from partita.model.notes import notes
from partita.sources.listener import Listener
from partita.sources.resolve import resolve
from partita.text.load import load_tokenizer

from .adapters import Policy, write_mlx_lm, write_peft
from .calibration import SAMPLE
from .card import card
from .check import check_loss, check_other, check_tokens
from .convert import convert, laid_out
from .pickle_reader import open_source
from .planning import WRITING, Calibration, Request, check, check_options, check_outside, folder_bytes
from .report import Check, Other, Report
from .write_folder import WrittenTensor

NO_TEXT = "none"
LETTERS = 100_000  # of a text: more than the tokens that are used
Ops = Callable[[], Backend]
"""The backend, loaded when it is first needed: most conversions need none."""


@dataclass(frozen=True)
class Options:
    """What may be said of a conversion, as `partita.convert` explains it. offline: fetch nothing."""

    to: str | None = None
    quantize: str | None = None
    dtype: str | None = None
    exact: bool = False
    adapter: str | Path | None = None
    adapter_loss: Policy = "raise"
    calibration: str | Path | None = None
    imatrix: str | Path | None = None
    save_imatrix: str | Path | None = None
    check: str | Path | None = None
    against: str | None = None
    allow_pickle: bool = False
    offline: bool = False
    backend: str = "auto"
    device: str | None = None
    threads: int | None = None

    def form(self, dest: Path) -> str:
        """`to`, or what the name of the result says."""
        return self.to if self.to is not None else "gguf" if dest.suffix.lower() == ".gguf" else "mlx"


def run(source: str, dest: Path, options: Options, listener: Listener | None = None) -> Report:
    """Write `source`, a model or the folder of an adapter, as `dest`; errors as for `partita.convert`."""
    listener = listener or Listener()
    if is_adapter(own(source)):
        return _translate(own(source), dest, options)
    text = None if options.check is None else _text(options.check)
    adapter = None if options.adapter is None else open_adapter(options.adapter)
    request = Request(
        *(options.form(dest), options.quantize, options.dtype, options.exact, adapter, options.adapter_loss),
        imatrix=None if options.imatrix is None else own(options.imatrix),
        save_imatrix=None if options.save_imatrix is None else own(options.save_imatrix),
    )
    check_options(dest, request)
    check_backend(options.backend, device=options.device, threads=options.threads)
    weighed_by = _weighing(request, options.calibration)
    # float32: what is judged is the weights, not the kernels of a device's default
    ops = cache(
        lambda: open_backend(
            options.backend,
            device=options.device,
            dtype="float32",
            threads=options.threads,
            on_fallback=listener.note,
        )
    )
    path = resolve(source, progress=listener.fetching(), offline=options.offline, allow_pickle=options.allow_pickle)
    with open_source(path, allow_pickle=options.allow_pickle, near=dest) as checkpoint:
        other = _other(checkpoint, options, listener)
        if text is not None:
            check_tokens(checkpoint, text)
            ops()
        check(checkpoint, dest, request)
        with suppress(UnsupportedModel):
            listener.note(*notes(checkpoint))
        if request.searches and options.calibration != NO_TEXT and (request.imatrix is None or request.runs_the_model):
            request = replace(request, calibration=_calibrated(checkpoint, request, ops, weighed_by, listener))
        report = _written(checkpoint, dest, request, _asked(request, options), listener)
        if text is not None:
            report = replace(report, check=_checked(checkpoint, dest, request, text, ops(), listener))
        if text is not None and other is not None:
            lost = _checked(checkpoint, other.path, request, text, ops(), listener)
            report = replace(report, against=Other(other.path, other.nbytes(), lost))
    return report


def _other(checkpoint: Checkpoint, options: Options, listener: Listener) -> Checkpoint | None:
    """The file of others that is judged too. DataError: no text to judge by, or another model's."""
    if options.against is None:
        return None
    if options.check is None:
        raise DataError("`against` needs the text of `check`, on which both are judged", field="against")
    other = open_checkpoint(resolve(options.against, progress=listener.fetching(), offline=options.offline))
    check_other(checkpoint, other)
    return other


# Texts


@dataclass(frozen=True)
class _Text:
    """The beginning of a file. name: the file's, without its folder."""

    text: str
    name: str


def _text(path: str | Path) -> str:
    return read_text(own(path))[:LETTERS]


def _weighing(request: Request, calibration: str | Path | None) -> _Text | None:
    """The text of `calibration`; None without one. DataError where it, or leaving it out, makes no sense."""
    if calibration == NO_TEXT:
        if request.runs_the_model:
            raise DataError(
                f"`calibration` {NO_TEXT}: `quantize` {request.quantize} measures on a text; leave it out",
                field="calibration",
            )
        return None
    if calibration is None:
        return None
    if request.imatrix is not None and not request.runs_the_model:
        raise DataError("`imatrix` says what a `calibration` text would: leave one out", field="calibration")
    if not request.searches:
        raise DataError(
            "`calibration`: nothing is quantized here that a text would help; leave it out", field="calibration"
        )
    return _Text(_text(calibration), Path(calibration).name)


def _calibrated(
    checkpoint: Checkpoint, request: Request, ops: Ops, given: _Text | None, listener: Listener
) -> Calibration | None:
    """What the weights are judged with; None, and a line, where this version cannot run the model."""
    try:
        read_config(checkpoint)
        tokens = load_tokenizer(checkpoint).encode(SAMPLE if given is None else given.text)
    except PartitaError as error:
        if request.runs_the_model or given is not None:
            raise
        listener.note(f"the weights are rounded without a text to weigh errors by: {error}")
        return None
    if given is not None:
        return Calibration(ops(), tokens, given.name)
    if request.runs_the_model:
        listener.note(
            "bits are measured on a text that the model writes itself; `calibration` TEXTFILE measures on yours"
        )
        return Calibration(ops(), None, "written by the model")
    return Calibration(ops(), tokens, "partita's own")


# What is written


def _written(checkpoint: Checkpoint, dest: Path, request: Request, asked: str, listener: Listener) -> Report:
    """Convert, heard of part by part."""
    with _Parts(listener) as parts:
        return convert(checkpoint, dest, request, on_progress=parts, card=card(checkpoint, asked))


def _asked(request: Request, options: Options) -> str:
    """The command with the options that decide what is written."""
    said = {
        "to": request.to,
        "quantize": request.quantize,
        "dtype": request.dtype,
        "exact": request.exact,
        "adapter": request.adapter and request.adapter.path.name,
        "calibration": options.calibration and Path(options.calibration).name,
        "imatrix": request.imatrix and request.imatrix.name,
    }
    words = [f"--{name}" if value is True else f"--{name} {value}" for name, value in said.items() if value]
    return " ".join(["partita convert", *words])


class _Parts:
    """One kind of work after another: one ends where the next begins."""

    def __init__(self, listener: Listener):
        self._listener, self._what, self._open = listener, "", ExitStack()
        self._advance: Callable[[int, int], None] = lambda done, total: None

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._open.close()
            around = self._listener.moving if what == WRITING else self._listener.working
            self._what, self._advance = what, self._open.enter_context(around(what))
        self._advance(done, total)


def _checked(
    checkpoint: Checkpoint, result: Path, request: Request, text: str, ops: Backend, listener: Listener
) -> Check:
    """Source and result, ours or others', on a text, side by side."""
    source = checkpoint if request.adapter is None else fused(laid_out(checkpoint, request.to), request.adapter)
    with listener.working("checking") as advance:
        return check_loss(ops, source, result, text, advance)


def _translate(source: Path, dest: Path, options: Options) -> Report:
    """An adapter in the other library's layout."""
    form = options.form(dest)
    if form not in ("mlx", "huggingface"):
        raise DataError(f"{source} is an adapter: `to` huggingface writes PEFT's layout, `to` mlx mlx-lm's", field="to")
    of_models = options.quantize, options.dtype, options.adapter, options.check, options.calibration, options.against
    of_models += options.imatrix, options.save_imatrix
    if options.exact or any(option is not None for option in of_models):
        raise DataError(f"{source} is an adapter, which is copied as it is: only `to` can be said of it")
    check_outside(source, dest)
    adapter = open_adapter(source)
    (write_peft if form == "huggingface" else write_mlx_lm)(adapter, dest)
    rows = [
        WrittenTensor(name, change.shape, adapter.kind, form, change.a.nbytes + change.b.nbytes, 0.0)
        for name, change in sorted(adapter.changes.items())
    ]
    return Report(dest, form, folder_bytes(source), folder_bytes(dest), tuple(rows), rank=adapter.rank)
