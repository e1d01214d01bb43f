"""What a run says while it goes on, as frames for the server. Decides nothing; lives in the process of the run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from partita.finetuning import samples
from partita.finetuning.observer import Observer
from partita.finetuning.outcome import Outcome
from partita.finetuning.prepare import Prepared
from partita.finetuning.results import RUN
from partita.printable import printable
from partita.training import trainer

from ....finetune import allocator
from ....finetune.report import write_report
from ....finetune.settings import read_run
from ....finetune.words import summary
from ...channel import Line
from .frames import Note, Phase, Ready, Sample, Samples, Saved, Step, Valid

_PAUSE = 0.25  # seconds between two words on how far something is


class Stoppable(Protocol):
    """What the server's `Stop` does."""

    stop: Callable[[], None]


class Told(Observer):
    """line: to the server. name: of the data, which stands in for its path. out: the folder of the run."""

    def __init__(self, line: Line, inbox: Stoppable, name: str, out: Path) -> None:
        self._line, self._inbox, self._name, self._out = line, inbox, name, out
        self._said = 0.0

    def note(self, *lines: str) -> None:
        self._line.send(Note([printable(line) for line in lines]))

    @contextmanager
    def working(self, what: str) -> Iterator[Callable[[int, int], None]]:
        self._phase(what)
        yield lambda done, total: self._phase(what, done, total, seldom=True)

    def prepared(self, prepared: Prepared, *, resumed: bool) -> None:
        settings, splits = prepared.settings, prepared.splits
        if settings.grad_checkpoint:
            allocator.give_back()
        words = [self._spelled(line, prepared) for line in summary(prepared)]
        self._line.send(
            Ready(
                step=prepared.trainer.step,
                steps=settings.steps or 0,
                trained=prepared.trained,
                parameters=prepared.parameters,
                backend=prepared.ops.name,
                device=prepared.ops.device,
                dtype=prepared.ops.dtype,
                memory=prepared.weights + prepared.rest.total,
                chats=prepared.chats,
                settings={name: value for name, value in settings.document().items() if name not in ("model", "data")},
                data=splits.statistics(),
                words=words,
            )
        )
        if not resumed and settings.sample_tokens:
            self._phase("samples before training")

    def _spelled(self, line: str, prepared: Prepared) -> str:
        """A line of the command's, without paths and flags."""
        path = prepared.settings.model
        line = line.replace(prepared.settings.data, self._name).replace(path, Path(path).stem)
        return printable(re.sub(r"--max-length (\d+)", r"\1 tokens", line))

    @contextmanager
    def training(self, prepared: Prepared) -> Iterator[None]:
        """A `Stop` ends the run after its step, so that it can be gone on with."""
        _, before = read_run(self._out / RUN)
        shown = [
            Sample(each.text, before.get(each.text, ""), None, each.expected) for each in samples.prompts(prepared)
        ]
        self._line.send(Samples(shown), Phase("training"))
        self._inbox.stop = prepared.trainer.stop
        yield

    def within(self, what: str, done: int, total: int | None) -> None:
        if total != 1:  # a step of one batch is over as soon as it is said
            self._phase(what, done, total, seldom=True)

    def event(self, event: trainer.Event) -> None:
        match event:
            case trainer.Step():
                parts = event.learning_rate, event.grad_norm, event.tokens, event.seconds, event.memory
                self._line.send(Step(event.step, event.loss, *parts))
            case trainer.Evaluation():
                self._line.send(Valid(event.step, event.loss, event.best))
            case trainer.Saved():
                self._line.send(Saved(event.step))
            case trainer.Finished():
                self._inbox.stop = _nothing  # the end is near, and would be lost

    def finishing(self, prepared: Prepared, *, stopped: bool) -> AbstractContextManager[None]:
        self._phase("saving" if stopped else "samples after training")
        return super().finishing(prepared, stopped=stopped)

    def finished(self, prepared: Prepared, outcome: Outcome, out: Path) -> None:
        write_report(out, prepared, outcome, drawn=False)
        found = [
            Sample(each.text, outcome.before.get(each.text, ""), outcome.after.get(each.text), each.expected)
            for each in outcome.asked
        ]
        self._line.send(Samples(found))

    def _phase(self, what: str, done: int = 0, total: int | None = None, *, seldom: bool = False) -> None:
        now = time.monotonic()
        if not seldom or now - self._said >= _PAUSE:
            self._said = now
            self._line.send(Phase(what, done, total))


def _nothing() -> None:
    """Of a `Stop` that changes nothing any more."""
