"""A run from its first step, or the one it was stopped at, to the files it leaves. What is told, and to whom.

The trainer computes and keeps checkpoints; here its events become lines, metrics and results. Invariants: nothing of a
folder that holds another run is touched; whatever ends a run, its folder can be gone on with.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from partita.errors import DataError, PartitaError, TrainingError
from partita.files.atomic import LOCK, alone
from partita.training import state as train_state
from partita.training.group import Group
from partita.training.trainer import Evaluation, Finished, Saved, Step
from partita_backends import together

from ..options import tell
from . import allocator, samples
from .interrupts import LAUNCHERS, stopping
from .line import Line
from .metrics import NAME, Metrics, Row
from .prepare import CHECKPOINTS, Prepared, prepare, test_batches
from .report import plot, write_report
from .results import RUN, write_adapter, write_model, write_run
from .settings import Settings, read_run
from .words import summary


@dataclass
class Outcome:
    """reason: how it ended, as `Finished` has it. step: after which. best: whose values the result has. test: the loss
    of the test data with these values."""

    reason: str
    step: int
    rows: list[Row]
    peak: int
    result: Path
    best: int | None = None
    test: float | None = None
    asked: list[samples.Prompt] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    drawn: bool = False

    @property
    def tokens_per_second(self) -> float | None:
        seconds = sum(row["seconds"] for row in self.rows if "seconds" in row)
        return sum(row["tokens"] for row in self.rows if "tokens" in row) / seconds if seconds else None

    def column(self, name: str) -> list[list[Any]]:
        return [[row["step"], row[name]] for row in self.rows if name in row]


def look(out: Path, resume: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """What a folder says of the run in it: settings and earlier samples by prompt; nothing for a new one. DataError
    where `out` cannot be begun in, or gone on with. Of several processes the first alone minds what it would write."""
    kept = out / RUN
    if not together.first() and not (resume and kept.is_file()):
        return {}, {}  # on another host, where flags say what there is to know
    if resume:
        if not kept.is_file():
            raise DataError(f"--resume: {out} holds no run ({RUN} is missing): leave --resume out to begin one there")
        return read_run(kept)
    if kept.exists() or (out / CHECKPOINTS).exists():
        raise DataError(f"{out} holds a run already: add --resume to go on with it, or choose another --out")
    try:
        if out.exists() and not out.is_dir():
            raise DataError(f"{out} is no folder: choose another --out")
        if out.exists() and any(path.name != LOCK for path in out.iterdir()):
            raise DataError(f"{out} is not empty: choose another --out")
        _refuse_place(out)
    except OSError as error:
        raise DataError(f"{out} cannot be read: {error.strerror or error}: choose another --out") from None
    return {}, {}


def run(settings: Settings, out: Path, before: dict[str, str], *, resume: bool) -> tuple[Prepared, Outcome]:
    """Train, and leave everything in `out`. before: the untrained model's replies that an earlier process had."""
    with ExitStack() as place:
        if resume and together.first():
            place.enter_context(_alone(out))
        prepared = prepare(settings, out)
        if prepared.ops.rank == 0 and not resume:
            _make(out)
            place.enter_context(_alone(out))
            look(out, resume)  # another run may have been quicker
        return prepared, _run(prepared, out, before, resume=resume)


def _run(prepared: Prepared, out: Path, before: dict[str, str], *, resume: bool) -> Outcome:
    """Train, in a folder that is this run's alone."""
    trainer = prepared.trainer
    writes = prepared.ops.rank == 0
    if resume:
        trainer.resume(tell)
    if writes:
        tell(*summary(prepared))
        if resume:
            tell(f"going on after step {trainer.step} of {prepared.settings.steps}")
    asked = samples.prompts(prepared) if writes else []
    if trainer.step == 0:
        before |= samples.replies(prepared, trainer.values, [prompt for prompt in asked if prompt.text not in before])
    if writes:
        write_run(out, prepared, before)
    if prepared.settings.grad_checkpoint:
        allocator.give_back()
    prepared.ops.reset_peak()
    metrics = Metrics(out / NAME, trainer.step) if writes else None
    try:
        finished = _train(prepared, out, metrics)
    except TrainingError as error:
        raise TrainingError(f"{error}{_rescued(prepared, out)}") from error
    finally:
        if metrics is not None:
            metrics.close()
    outcome = Outcome(finished.reason, finished.step, [], prepared.ops.memory().peak, out, asked=asked, before=before)
    if metrics is not None:
        outcome.rows = metrics.rows
    # who has asked for an end already should not lose what is left of the run by the launcher's repeating it
    with stopping(_nothing, _nothing, _apart(prepared)) if outcome.reason == "stopped" else nullcontext():
        _finish(prepared, out, outcome)
    Group(prepared.ops).wait()  # a launcher ends everything when one process has ended badly, or was stopped
    return outcome


def _alone(out: Path) -> AbstractContextManager[None]:
    return alone(out, f"a run is going on in {out}: wait for its end, stop it, or choose another --out")


def _refuse_place(out: Path) -> None:
    """DataError where a folder that is not there yet cannot be made, by the nearest one that is."""
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise DataError(f"{out} cannot be made: {place} is a file: choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DataError(f"{out} cannot be made: nothing may be written to {place}: choose another --out")


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be made: {error.strerror or error}: choose another --out") from None


def _train(prepared: Prepared, out: Path, metrics: Metrics | None) -> Finished:
    trainer, total = prepared.trainer, prepared.settings.steps or 0

    def first() -> None:
        trainer.stop()
        line.say("finishing this step and saving; a second Ctrl-C leaves at once")

    with (
        Line(total, trainer.step, quiet=metrics is None) as line,
        stopping(first, line.leave, _apart(prepared)),
    ):
        for event in trainer.run(line.within):
            if isinstance(event, Finished):
                return event
            if metrics is None:
                continue
            if isinstance(event, Step):
                metrics.add(_row(event))
                line.advance(event.step, event.loss, event.tokens, event.seconds, event.memory)
            elif isinstance(event, Evaluation):
                metrics.add({"step": event.step, "valid_loss": event.loss, "best": event.best})
                line.evaluated(event.step, event.loss, event.best)
            elif isinstance(event, Saved):
                metrics.keep()
    raise AssertionError("a run ends with Finished")


def _apart(prepared: Prepared) -> float:
    """A launcher passes on the Ctrl-C that its processes have had from the terminal: that is no second one."""
    return 0.0 if prepared.ops.world_size == 1 else LAUNCHERS


def _nothing() -> None:
    """Of a signal that changes nothing."""


def _rescued(prepared: Prepared, out: Path) -> str:
    """What is kept of a run that met no number, in words: the adapter of a checkpoint from which a step was made since,
    as the latest values may be what is wrong."""
    if prepared.lora is None or prepared.ops.rank != 0:
        return ""
    try:
        state = train_state.latest(out / CHECKPOINTS, tell, before=prepared.trainer.step)
        if state is None:
            return ""
        write_adapter(out, prepared, state.values)
    except PartitaError as error:
        return f"; no adapter is left ({error})"
    return f"; the adapter of step {state.step} is in {out}"


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


def _finish(prepared: Prepared, out: Path, outcome: Outcome) -> None:
    """Everything after the last step, in all processes; the first one writes. A run that was stopped is not tested, as
    it will go on."""
    writes = prepared.ops.rank == 0
    outcome.best = prepared.trainer.take_best()
    if writes:
        _leave(prepared, out, outcome)
    if outcome.reason != "stopped":
        outcome.test = _tested(prepared)
    if writes:
        _report(prepared, out, outcome)


def _leave(prepared: Prepared, out: Path, outcome: Outcome) -> None:
    """The result. Of a full run that was stopped, its checkpoint is enough."""
    full = prepared.lora is None
    if full and outcome.reason == "stopped":
        return
    host = {name: prepared.ops.to_numpy(x) for name, x in prepared.trainer.values.items()}
    if full:
        outcome.result = write_model(out, prepared, host)
    else:
        write_adapter(out, prepared, host)


def _tested(prepared: Prepared) -> float | None:
    """The loss of the test data, in all processes. One that is no number is told and costs nothing else."""
    batches = test_batches(prepared)
    if batches is None:
        return None
    try:
        return prepared.trainer.measure(batches, "test")
    except TrainingError as error:
        if prepared.ops.rank == 0:
            tell(str(error))
        return None


def _report(prepared: Prepared, out: Path, outcome: Outcome) -> None:
    """Samples of the result, the picture and the report. Without samples where a person waits for the end."""
    if outcome.reason != "stopped":
        outcome.after = samples.replies(prepared, prepared.trainer.values, outcome.asked)
    total = prepared.settings.steps or 0
    outcome.drawn = plot(out, outcome.column("train_loss"), outcome.column("valid_loss"), total)
    write_report(out, prepared, outcome)
