"""The progress of a run on standard error: one line that lives on a terminal, plain lines at intervals elsewhere.

Knows no trainer: it is told numbers. Writes nothing to standard output. A step of minutes shows how far it is, on a
terminal only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from partita.printable import printable
from partita.units import duration, memory_size

from ..terminal import console, draws

INTERVAL = 10.0  # seconds between plain lines
SLOW = 2.0  # seconds after which a step or an evaluation shows how far it is
_MEMORY = 0.9  # of what was before, in smoothed numbers
_SHORT = 10  # steps; runs of fewer are not smoothed


class Line:
    """total: steps of the run. done: steps of an earlier process. quiet: say nothing. now: a clock, in seconds. Use as
    a context.

    A terminal or a disk that takes no more lines is no reason to lose a run: it goes on quietly.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
    ):
        self.total, self.step, self.quiet, self._now = total, done, quiet, now
        self._part: tuple[str, int, int | None] | None = None  # what goes on, batches done, of how many
        self._began = 0.0
        self.stream = sys.stderr if stream is None else stream
        self._loss, self._seconds, self._rate = Smoothed(loss_memory(total)), Smoothed(), Smoothed()
        self._valid: float | None = None
        self._memory = 0
        self._bar: Any = None
        self._task: Any = None
        self._told = -INTERVAL

    def __enter__(self) -> Line:
        if draws(self.stream) and not self.quiet:
            self._bar, self._task = _bar(self.stream, self.total, self.step, self.shown)
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """The line as it is now stays where it is."""
        if self._bar is not None:
            with self._spared():
                self._bar.stop()
            self._bar = None

    def advance(self, step: int, loss: float, tokens: int, seconds: float, memory: int) -> None:
        """A step is done. tokens: fed. seconds: of the step. memory: bytes, the peak."""
        self.step, self._memory, self._part = step, memory, None
        self._loss.add(loss)
        self._seconds.add(seconds)
        self._rate.add(tokens / max(seconds, 1e-9))
        if self._bar is not None:
            with self._spared():
                self._bar.update(self._task, completed=step)
        elif self._now() - self._told >= INTERVAL or step == self.total:
            self._told = self._now()
            self.say(f"step {step}/{self.total} · {self.words()}")

    def within(self, what: str, done: int, total: int | None) -> None:
        """`done` batches of what goes on are through, of `total` or of nobody knows how many: an `OnBatch`."""
        if done == 0:
            self._began = self._now()
        self._part = (what, done, total)
        if self._bar is not None and what == "step" and total:
            with self._spared():
                self._bar.update(self._task, completed=self.step + done / total)

    def part(self) -> str:
        """How far a step or an evaluation of some seconds is: "batch 3/8, 40 s of about 2 min"; "" for a short one."""
        part, seconds = self._part, self._now() - self._began
        if part is None or seconds < SLOW:
            return ""
        what, done, total = part
        count = f"{done + 1}" if total is None else f"{min(done + 1, total)}/{total}"
        usual = f" of about {duration(self._seconds.value)}" if what == "step" and self._seconds.value else ""
        return f"{'' if what == 'step' else f'{what} '}batch {count}, {duration(seconds)}{usual}"

    def shown(self) -> str:
        """The words beside the bar as they are now."""
        return " · ".join(text for text in (self.part(), self.words() if self._seconds.value else "") if text)

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        self._valid, self._part = loss, None
        self.say(f"step {step}: validation loss {loss:.4f}{' (best)' if best and step else ''}")

    def say(self, text: str) -> None:
        """A line of its own, above the living one."""
        if self.quiet:
            return
        with self._spared():
            if self._bar is not None:
                self._bar.console.print(printable(text), markup=False, highlight=False)
            else:
                print(printable(text), file=self.stream, flush=True)

    @contextmanager
    def _spared(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.quiet = True

    def words(self) -> str:
        """The numbers of the line."""
        parts = [f"loss {self._loss.value:.4f}"]
        if self._valid is not None:
            parts.append(f"valid {self._valid:.4f}")
        parts += [f"{self._rate.value:,.0f} tokens/s", memory_size(self._memory)]
        left = (self.total - self.step) * self._seconds.value
        return " · ".join([*parts, f"{duration(left)} left"] if self.step < self.total else parts)


class Smoothed:
    """A mean that forgets, and that is right from the first number on (as the moments of Adam are)."""

    def __init__(self, memory: float = _MEMORY) -> None:
        self._memory, self._sum, self._weight = memory, 0.0, 0.0

    def add(self, x: float) -> None:
        self._sum = self._memory * self._sum + (1 - self._memory) * x
        self._weight = self._memory * self._weight + (1 - self._memory)

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else 0.0


def loss_memory(steps: int) -> float:
    """How much a smoothed loss keeps at each step of a run of so many: in a short one it would lag behind otherwise."""
    return min(_MEMORY, max(1 - _SHORT / max(steps, 1), 0.0))


def _bar(stream: TextIO, total: int, done: int, words: Callable[[], str]) -> tuple[Any, Any]:
    """words: asked whenever the line is drawn, so that seconds go on during a long step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Words(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(words(), no_wrap=True, overflow="ellipsis")

    column = Words(table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (MofNCompleteColumn(), BarColumn(bar_width=16), column)
    bar = Progress(*columns, console=console(stream), refresh_per_second=4)
    task = bar.add_task("", total=total, completed=done)
    bar.start()
    bar.console.show_cursor(True)  # a process that is ended at once leaves a terminal that can be used
    return bar, task
