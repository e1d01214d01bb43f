"""The progress of a run on standard error: one line that lives on a terminal, plain lines at intervals elsewhere.

Knows no trainer: it is told numbers. Writes nothing to standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from partita.admission import size
from partita.printable import printable

from ..terminal import console, draws

INTERVAL = 10.0  # seconds between plain lines
_MEMORY = 0.9  # of what was before, in smoothed numbers
_SHORT = 10  # steps; runs of fewer are not smoothed


class Line:
    """total: steps of the run. done: steps of an earlier process. quiet: say nothing. Use as a context.

    A terminal or a disk that takes no more lines is no reason to lose a run: it goes on quietly.
    """

    def __init__(self, total: int, done: int = 0, stream: TextIO | None = None, *, quiet: bool = False):
        self.total, self.step, self.quiet = total, done, quiet
        self.stream = sys.stderr if stream is None else stream
        self._loss, self._seconds, self._rate = Smoothed(loss_memory(total)), Smoothed(), Smoothed()
        self._valid: float | None = None
        self._memory = 0
        self._bar: Any = None
        self._task: Any = None
        self._told = -INTERVAL

    def __enter__(self) -> Line:
        if draws(self.stream) and not self.quiet:
            self._bar, self._task = _bar(self.stream, self.total, self.step)
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
        self.step, self._memory = step, memory
        self._loss.add(loss)
        self._seconds.add(seconds)
        self._rate.add(tokens / max(seconds, 1e-9))
        if self._bar is not None:
            with self._spared():
                self._bar.update(self._task, completed=step, words=self.words())
        elif time.monotonic() - self._told >= INTERVAL or step == self.total:
            self._told = time.monotonic()
            self.say(f"step {step}/{self.total} · {self.words()}")

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        self._valid = loss
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
        parts += [f"{self._rate.value:,.0f} tokens/s", size(self._memory)]
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


def duration(seconds: float) -> str:
    """For people: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _bar(stream: TextIO, total: int, done: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    words = TextColumn("{task.fields[words]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (MofNCompleteColumn(), BarColumn(bar_width=16), words)
    bar = Progress(*columns, console=console(stream), refresh_per_second=4)
    task = bar.add_task("", total=total, completed=done, words="")
    bar.start()
    bar.console.show_cursor(True)  # a process that is ended at once leaves a terminal that can be used
    return bar, task
