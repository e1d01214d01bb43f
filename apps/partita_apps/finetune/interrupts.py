"""Ctrl-C, SIGTERM and SIGHUP during training: the first asks the run to stop, the second ends the process at once.

A pass through a model is one long call into a library, and Python runs signal handlers only between such calls. A
thread therefore waits for the signals' numbers on a socket, which the interpreter writes to in the moment they come:
the answer is immediate, and the second signal does not wait for the pass. Nothing is lost by it: checkpoints are there
whole or not at all. Nothing is a second signal beside a SIGHUP: systemd sends it with SIGTERM, shells send it twice,
and nobody watches any more.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..terminal import ENDING, HANGUP, leave_terminal

SIGNALS = (signal.SIGINT, *ENDING)
STATUS = 130
LAUNCHERS = 10.0  # seconds in which a launcher of several processes passes a signal on to them


@contextmanager
def stopping(first: Callable[[], None], second: Callable[[], None], apart: float = 0.0) -> Iterator[None]:
    """Call `first` at the first signal, from a thread; at another one `second`, and the process is gone.

    apart: seconds in which further signals are taken for the same one."""
    read, write = socket.socketpair()
    write.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(read, first, second, apart), daemon=True)
    nohup = HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_IGN
    heeded = [number for number in SIGNALS if not (nohup and number == HANGUP)]
    before = {number: signal.signal(number, lambda *_: None) for number in heeded}
    woken = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        write.close()  # the thread reads the end
        watcher.join()
        read.close()


def _watch(read: socket.socket, first: Callable[[], None], second: Callable[[], None], apart: float) -> None:
    came, hung_up = None, False
    while data := read.recv(64):
        for number in data:
            if number not in SIGNALS:
                continue
            if number == HANGUP:
                hung_up = True
                leave_terminal()
            if came is None:
                came = time.monotonic()
                first()
            elif not hung_up and time.monotonic() - came >= apart:
                second()
                os._exit(STATUS)
