"""A run on a terminal: its settings from a folder, its events as a line, signals answered, a report and a picture.

What trains and what it leaves are the runtime's (`partita.finetuning`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from partita.checkpoint.base import Checkpoint
from partita.finetuning import run as finetuning
from partita.finetuning.observer import Observer
from partita.finetuning.outcome import Outcome
from partita.finetuning.prepare import Prepared
from partita.finetuning.results import RUN
from partita.finetuning.settings import Settings
from partita.training.trainer import Evaluation, Event, Step
from partita_backends import together

from ..listening import OnTerminal
from ..options import tell
from . import allocator
from .interrupts import LAUNCHERS, stopping
from .line import Line
from .report import plot, write_report
from .settings import read_run
from .words import summary


def look(out: Path, resume: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """What a folder says of the run in it: settings and earlier samples by prompt; nothing for a new one. DataError
    where `out` cannot be begun in, or gone on with. Of several processes the first alone minds what it would write."""
    kept = out / RUN
    if not together.first() and not (resume and kept.is_file()):
        return {}, {}  # on another host, where flags say what there is to know
    finetuning.check_place(out, resume)
    return read_run(kept) if resume else ({}, {})


def run(settings: Settings, out: Path, before: dict[str, str], *, resume: bool) -> tuple[Prepared, Outcome, bool]:
    """Train, and leave everything in `out`; and whether a picture is there. before: the untrained model's replies that
    an earlier process had."""
    shown = Shown()
    how = {"resume": resume, "before": before, "first": together.first(), "write_folder": write_folder}
    return *finetuning.run(settings, out, shown, **how), shown.drawn


def write_folder(checkpoint: Checkpoint, place: Path) -> None:
    from partita_convert.write_folder import write_huggingface

    write_huggingface(checkpoint, place, replace=True)


class Shown(OnTerminal, Observer):
    """drawn: whether there is a picture of the losses."""

    def __init__(self) -> None:
        self.drawn = False
        self._line: Line | None = None

    def prepared(self, prepared: Prepared, *, resumed: bool) -> None:
        if prepared.group.rank == 0:
            tell(*summary(prepared))
            if resumed:
                tell(f"going on after step {prepared.trainer.step} of {prepared.settings.steps}")
        if prepared.settings.grad_checkpoint:
            allocator.give_back()

    @contextmanager
    def training(self, prepared: Prepared) -> Iterator[None]:
        trainer, total = prepared.trainer, prepared.settings.steps or 0

        def first() -> None:
            trainer.stop()
            line.say("finishing this step and saving; a second Ctrl-C leaves at once")

        with (
            Line(total, trainer.step, quiet=prepared.group.rank != 0) as line,
            stopping(first, line.leave, _apart(prepared)),
        ):
            self._line = line
            yield

    def within(self, what: str, done: int, total: int | None) -> None:
        if self._line is not None:
            self._line.within(what, done, total)

    def event(self, event: Event) -> None:
        if self._line is None:
            return
        if isinstance(event, Step):
            self._line.advance(event.step, event.loss, event.tokens, event.seconds, event.memory)
        elif isinstance(event, Evaluation):
            self._line.evaluated(event.step, event.loss, event.best)

    def finishing(self, prepared: Prepared, *, stopped: bool) -> AbstractContextManager[None]:
        # who has asked for an end already should not lose what is left of the run by the launcher's repeating it
        return stopping(_nothing, _nothing, _apart(prepared)) if stopped else nullcontext()

    def finished(self, prepared: Prepared, outcome: Outcome, out: Path) -> None:
        total = prepared.settings.steps or 0
        self.drawn = plot(out, outcome.column("train_loss"), outcome.column("valid_loss"), total)
        write_report(out, prepared, outcome, drawn=self.drawn)


def _apart(prepared: Prepared) -> float:
    """A launcher passes on the Ctrl-C that its processes have had from the terminal: that is no second one."""
    return 0.0 if prepared.group.world_size == 1 else LAUNCHERS


def _nothing() -> None:
    """Of a signal that changes nothing."""
