"""A run from its first step, or the one it was stopped at, to the files it leaves: metrics, adapter or model, run.json.

The trainer computes and keeps checkpoints; an observer hears what happens. Invariants: nothing of a folder that holds
another run is touched; whatever ends a run, its folder can be gone on with.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DataError, PartitaError, TrainingError
from ..files.atomic import LOCK, alone
from ..training import state as train_state
from ..training.data_parallel import DataParallel
from ..training.trainer import Evaluation, Finished, Saved, Step
from . import samples
from .metrics import NAME, Metrics, Row
from .observer import Observer
from .outcome import Outcome
from .prepare import CHECKPOINTS, Prepared, prepare, test_batches
from .results import RUN, WriteFolder, write_adapter, write_model, write_run
from .settings import Settings

DATA = "data.jsonl"
"""The records of a run whose data was no file."""


def check_place(out: Path, resume: bool) -> None:
    """DataError where a run cannot be begun in `out`, or gone on with."""
    kept = out / RUN
    if resume:
        if not kept.is_file():
            raise DataError(
                f"`resume`: {out} holds no run ({RUN} is missing): leave `resume` out to begin one there",
                field="resume",
            )
        return
    if kept.exists() or (out / CHECKPOINTS).exists():
        raise DataError(
            f"{out} holds a run already: add `resume` to go on with it, or choose another `out`", field="out"
        )
    try:
        if out.exists() and not out.is_dir():
            raise DataError(f"{out} is not a folder: choose another `out`", field="out")
        if out.exists() and any(path.name != LOCK for path in out.iterdir()):
            raise DataError(f"{out} is not empty: choose another `out`", field="out")
        _refuse_place(out)
    except OSError as error:
        raise DataError(f"{out} cannot be read: {error.strerror or error}: choose another `out`", field="out") from None


def run(
    settings: Settings,
    out: Path,
    observer: Observer | None = None,
    *,
    write_folder: WriteFolder,
    resume: bool = False,
    before: Mapping[str, str] | None = None,
    records: Sequence[Mapping[str, Any]] | None = None,
    first: bool = True,
) -> tuple[Prepared, Outcome]:
    """Train, and leave everything in `out`, a folder that `check_place` has nothing against.

    write_folder: writes a checkpoint as a model's folder, after full training. before: the untrained model's replies
    that an earlier process had. records: the data, in place of `settings.data`. first: whether this is the first of
    several processes, or the only one.
    """
    observer = observer or Observer()
    with ExitStack() as place:
        if resume and first:
            place.enter_context(_alone(out))
        if records is not None:
            settings = replace(settings, data=str(place.enter_context(_written(records))))
        prepared = prepare(settings, out, observer)
        writes = prepared.group.rank == 0
        if writes and not resume:
            _make(out)
            place.enter_context(_alone(out))
            check_place(out, resume)  # another run may have been quicker
        if writes and records is not None:
            prepared = _with_own_data(prepared, out)
        return prepared, _run(prepared, out, observer, dict(before or {}), write_folder, resume=resume)


def _run(
    prepared: Prepared, out: Path, observer: Observer, before: dict[str, str], write: WriteFolder, *, resume: bool
) -> Outcome:
    """Train, in a folder that is this run's alone."""
    trainer = prepared.trainer
    writes = prepared.group.rank == 0
    if resume:
        trainer.resume(observer.note)
    observer.prepared(prepared, resumed=resume)
    asked = samples.prompts(prepared) if writes else []
    if trainer.step == 0:
        unknown = [prompt for prompt in asked if prompt.text not in before]
        before |= samples.replies(prepared, trainer.values, unknown, observer.spelled)
    if writes:
        write_run(out, prepared, before)
    prepared.ops.reset_peak()
    metrics = Metrics(out / NAME, trainer.step) if writes else None
    try:
        finished = _train(prepared, observer, metrics)
    except TrainingError as error:
        raise TrainingError(f"{error}{_rescued(prepared, out, observer)}") from error
    finally:
        if metrics is not None:
            metrics.close()
    rows = [] if metrics is None else metrics.rows
    peak = prepared.ops.memory().peak
    outcome = Outcome(finished.reason, finished.step, rows, peak, out, asked=asked, before=before)
    with observer.finishing(prepared, stopped=outcome.reason == "stopped"):
        _finish(prepared, out, observer, outcome, write)
    DataParallel(
        prepared.ops, prepared.group
    ).barrier()  # a launcher ends everything when one process has ended badly, or was stopped
    return outcome


def _train(prepared: Prepared, observer: Observer, metrics: Metrics | None) -> Finished:
    with observer.training(prepared):
        for event in prepared.trainer.run(observer.within):
            if metrics is not None:
                if isinstance(event, Step):
                    metrics.add(_row(event))
                elif isinstance(event, Evaluation):
                    metrics.add({"step": event.step, "valid_loss": event.loss, "best": event.best})
                elif isinstance(event, Saved):
                    metrics.keep()
            observer.event(event)
            if isinstance(event, Finished):
                return event
    raise AssertionError("a run ends with Finished")


def _row(step: Step) -> Row:
    return {
        "step": step.step,
        "train_loss": step.loss,
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "tokens": step.tokens,
        "trained_tokens": step.trained,
        "seconds": round(step.seconds, 6),
        "memory_bytes": step.memory,
    }


# The end


def _finish(prepared: Prepared, out: Path, observer: Observer, outcome: Outcome, write: WriteFolder) -> None:
    """Everything after the last step, in all processes; the first one writes. A run that was stopped is not tested, as
    it will go on, and has no samples, as a person waits for its end."""
    writes, stopped = prepared.group.rank == 0, outcome.reason == "stopped"
    outcome.best = prepared.trainer.take_best()
    if writes:
        _leave(prepared, out, outcome, write)
    if not stopped:
        outcome.test = _tested(prepared, observer)
    if writes:
        if not stopped:
            outcome.after = samples.replies(prepared, prepared.trainer.values, outcome.asked, observer.spelled)
        observer.finished(prepared, outcome, out)


def _leave(prepared: Prepared, out: Path, outcome: Outcome, write: WriteFolder) -> None:
    """The result. Of a full run that was stopped, its checkpoint is enough."""
    full = prepared.lora is None
    if full and outcome.reason == "stopped":
        return
    host = {name: prepared.ops.to_numpy(x) for name, x in prepared.trainer.values.items()}
    if full:
        outcome.result = write_model(out, prepared, host, write)
    else:
        write_adapter(out, prepared, host)


def _tested(prepared: Prepared, observer: Observer) -> float | None:
    """The loss of the test data, in all processes. One that is not finite is reported and costs nothing else."""
    batches = test_batches(prepared)
    if batches is None:
        return None
    try:
        return prepared.trainer.measure(batches, "test")
    except TrainingError as error:
        if prepared.group.rank == 0:
            observer.note(str(error))
        return None


def _rescued(prepared: Prepared, out: Path, observer: Observer) -> str:
    """What is kept of a run with a loss that is not finite, in words: the adapter of a checkpoint from which a step was
    made since, as the latest values may be what is wrong."""
    if prepared.lora is None or prepared.group.rank != 0:
        return ""
    try:
        state = train_state.latest(out / CHECKPOINTS, observer.note, before=prepared.trainer.step)
        if state is None:
            return ""
        write_adapter(out, prepared, state.values)
    except PartitaError as error:
        return f"; no adapter is left ({error})"
    return f"; the adapter of step {state.step} is in {out}"


# The folder


def _alone(out: Path) -> AbstractContextManager[None]:
    return alone(out, f"a run is going on in {out}: wait for its end, stop it, or choose another `out`")


def _refuse_place(out: Path) -> None:
    """DataError where a folder that is not there yet cannot be made, by the nearest one that is."""
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise DataError(f"{out} cannot be made: {place} is a file: choose another `out`", field="out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DataError(f"{out} cannot be made: nothing may be written to {place}: choose another `out`", field="out")


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be made: {error.strerror or error}: choose another `out`", field="out") from None


@contextmanager
def _written(records: Sequence[Mapping[str, Any]]) -> Generator[Path, None, None]:
    """A file that holds the records. DataError for one that is not JSON, by its index."""
    lines: list[str] = []
    for i, record in enumerate(records):
        try:
            lines.append(json.dumps(record, allow_nan=False) + "\n")
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"record {i} of the data is not JSON: {error}") from None
    with tempfile.TemporaryDirectory(prefix="partita-") as folder:
        path = Path(folder) / DATA
        path.write_text("".join(lines), encoding="utf-8")
        yield path


def _with_own_data(prepared: Prepared, out: Path) -> Prepared:
    """The same run with its records in its own folder, so that it can be gone on with."""
    kept = out / DATA
    try:
        if not kept.exists():
            shutil.copyfile(prepared.settings.data, kept)
    except OSError as error:
        raise DataError(f"{kept} cannot be written: {error.strerror or error}") from None
    return replace(prepared, settings=replace(prepared.settings, data=str(kept)))
