"""What a run says while it goes on: what its preparation says, then its events and its end. Decides and shows nothing.

Calls come in the order of the methods, from the thread that trains, in every process of a run; `prepared.group.rank`
is 0 in the first one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..sources.listener import Listener
from ..training.trainer import Event
from .outcome import Outcome
from .prepare import Prepared


class Observer(Listener):
    """Every method does nothing: override those of interest."""

    def prepared(self, prepared: Prepared, *, resumed: bool) -> None:
        """Everything stands, nothing is trained yet. resumed: it goes on after step `prepared.trainer.step`."""

    def training(self, prepared: Prepared) -> AbstractContextManager[None]:
        """Around the steps. `prepared.trainer.stop()` ends them after the step at hand."""
        return nullcontext()

    def within(self, what: str, done: int, total: int | None) -> None:
        """How far a step or an evaluation is: `trainer.OnBatch`."""

    def event(self, event: Event) -> None:
        """A step, an evaluation, a checkpoint or the end, after the files of the run say so."""

    def finishing(self, prepared: Prepared, *, stopped: bool) -> AbstractContextManager[None]:
        """Around everything that comes after the steps: the result, the loss of the test data, samples."""
        return nullcontext()

    def finished(self, prepared: Prepared, outcome: Outcome, out: Path) -> None:
        """The result is in the run's folder `out`, and all that belongs to the run. In the first process alone."""
