"""A `partita` Progress for people: a bar on standard error, or two plain lines where that is no terminal.

Writes nothing to standard output, and imports rich only when there is something to draw.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from partita.units import disk_size, duration

from .terminal import console, draws


class TerminalProgress:
    """Bar, bytes, speed and time left while a fetch runs; the bar goes away with `done` and one line stays."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = sys.stderr if stream is None else stream
        self.bar: Any = None
        self.task: Any = None
        self.what = ""
        self.total: int | None = None
        self.count = 0
        self.began = 0.0

    def start(self, total: int | None, what: str) -> None:
        self.what, self.total, self.count, self.began = what, total, 0, time.monotonic()
        if not draws(self.stream):
            if total is None or total > 0:
                print(f"{what}{'' if total is None else f' ({disk_size(total)})'}", file=self.stream, flush=True)
            return
        from rich.progress import Progress

        self.bar = Progress(*columns(total), console=console(self.stream), transient=True)
        self.task = self.bar.add_task(what, total=total)
        self.bar.start()

    def advance(self, n: int) -> None:
        self.count += n
        if self.bar is not None:
            self.bar.advance(self.task, n)

    def done(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if self.total and self.count >= self.total:
            took = time.monotonic() - self.began
            print(f"{self.what}: {disk_size(self.total)} in {duration(took)}", file=self.stream, flush=True)


def columns(total: int | None) -> list[Any]:
    """What stands in the line: with an unknown total, only a spinner and the time so far."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    words = TextColumn("{task.description}", markup=False)
    if total is None:
        return [SpinnerColumn(), words, TimeElapsedColumn()]
    return [words, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]


@contextmanager
def bar(
    what: str, *, of_bytes: bool = False, stream: TextIO | None = None, delay: float = 0.5
) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that counts steps: call what it gives with (done, total). Gone when the work is.

    of_bytes: the steps are bytes, so that how many there are, and how many a second, stands in the line as well.

    Only on a terminal, and only for work that takes longer than `delay` seconds: short work shows nothing.
    """
    out = sys.stderr if stream is None else stream
    if not draws(out):
        yield lambda done, total: None
        return
    steps = _Steps(what, out, of_bytes)
    timer = threading.Timer(delay, steps.show)
    timer.daemon = True
    timer.start()
    try:
        yield steps.advance
    finally:
        timer.cancel()
        steps.hide()


class _Steps:
    """The bar behind `bar`. Shown from a timer's thread while the work goes on in its own: hence the lock."""

    def __init__(self, what: str, stream: TextIO, of_bytes: bool):
        self.what, self.stream, self.of_bytes = what, stream, of_bytes
        self.lock = threading.Lock()
        self.done, self.total = 0, 0
        self.over = False
        self.shown: Any = None

    def show(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        words = TextColumn("{task.description}", markup=False)
        counted = words, BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        with self.lock:
            if self.over:
                return
            self.shown = Progress(
                *(columns(self.total) if self.of_bytes else counted), console=console(self.stream), transient=True
            )
            self.shown.add_task(self.what, total=self.total or None, completed=self.done)
            self.shown.start()

    def advance(self, done: int, total: int) -> None:
        with self.lock:
            self.done, self.total = done, total
            if self.shown is not None:
                self.shown.update(self.shown.task_ids[0], completed=done, total=total)

    def hide(self) -> None:
        with self.lock:
            self.over = True
            if self.shown is not None:
                self.shown.stop()
