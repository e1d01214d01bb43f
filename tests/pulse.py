"""How long a program does not look at signals: whether Ctrl-C would be answered soon, whatever it is doing.

A step of a library written in C or Rust holds the interpreter, and a signal waits for its end. Not here: time spent in
waiting, which a signal ends, and of other threads. Counted is CPU time, so that a busy machine changes nothing.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

BEAT = 0.05  # CPU seconds


class Pulse:
    """longest: CPU seconds in which a pending signal was not handled, within `with` blocks. For the main thread."""

    def __init__(self) -> None:
        self.longest, self._last = 0.0, 0.0

    def __enter__(self) -> Pulse:
        self._before = signal.signal(signal.SIGPROF, self._beat)
        self._last = time.thread_time()
        signal.setitimer(signal.ITIMER_PROF, BEAT, BEAT)
        return self

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._beat(0, None)
        signal.signal(signal.SIGPROF, self._before)

    def _beat(self, number: int, frame: FrameType | None) -> None:
        now = time.thread_time()
        self.longest, self._last = max(self.longest, now - self._last), now
