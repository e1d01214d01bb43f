"""The process in which strangers' templates are compiled and rendered: started when first needed, kept warm, bounded.

A template is a program, and a single step of one (`1|round(10**9)`) can hold an interpreter for hours, deaf to signals
and to other threads. So it runs in an interpreter of its own (`template_child`), which is ended when it takes too long
or too much memory; the next rendering starts another.

Not here: what a template means. Invariants: a rendering stays within its limits; Ctrl-C is answered at once; the
process ends with this one, however that ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import TemplateError
from ..units import memory_size
from .template_child import FAILED, MAX_TEXT, MEMORY, OUT_OF_MEMORY

START_SECONDS = 60.0  # of a machine that is very busy
_STEP = 0.05  # seconds between two looks at how much memory it has
_SOURCES = 64  # templates that one process compiles before another takes its place
_LONGEST = 4 * MAX_TEXT + 1  # bytes of an answer
_PROGRAM = Path(__file__).with_name("template_child.py")
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ", "TZDIR", "LANG", "LC_ALL")


@cache
def shared() -> TemplateProcess:
    """The one of this interpreter, in which the templates of all models take turns."""
    return TemplateProcess()


class TemplateProcess:
    """Safe to share between threads. Whatever goes wrong is a TemplateError of one line; seconds are of wall time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def start(self) -> None:
        """Begin to start it, without waiting: for those who will render soon."""
        with self._lock:
            self._living()

    def stop(self) -> None:
        with self._lock:
            self._end()

    def compile(self, source: str, seconds: float) -> None:
        with self._lock:
            self._number(source, seconds)

    def render(self, source: str, request: Mapping[str, Any], seconds: float) -> list[str]:
        """A text for each of the request's `renderings`: (spans of messages as (begin, end); more variables).

        request: beside these `messages`, `variables`, and as `today` (year, month, day), None for the clock's. seconds:
        for each text.
        """
        with self._lock:
            number = self._number(source, seconds)
            return self._ask({**request, "template": number, "seconds": seconds}, len(request["renderings"]))

    def _number(self, source: str, seconds: float) -> int:
        """Under which number the process has the source compiled."""
        known = self._living().known
        if source not in known:
            if len(known) == _SOURCES:
                self._end()
                known = self._living().known
            self._ask({"template": len(known), "source": source, "seconds": seconds}, 1)
            known[source] = len(known)
        return known[source]

    def _ask(self, request: Mapping[str, Any], count: int) -> list[str]:
        data = _encoded(request)
        child = self._living()
        texts: list[str] = []
        try:
            child.send(data)
            while len(texts) < count:
                status, text = child.answer(request["seconds"])
                if status == FAILED:
                    raise _Refused(text)
                texts.append(text)
        except _Refused as error:  # the process is as good as before
            raise TemplateError(f"chat template: {' '.join(str(error).split())}") from None
        except BaseException:  # Ctrl-C among them: an answer may still be on its way
            self._end()
            raise
        return texts

    def _living(self) -> _Child:
        if self._child is None or not self._child.usable:
            self._end()
            self._child = _Child()
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _Refused(Exception):
    """What the process said against a request."""


class _Child:
    """One process. known: the sources that it has compiled, by number."""

    def __init__(self) -> None:
        self._connection, self._process = _started()
        self._owner = os.getpid()
        self._ready = False
        self.known: dict[str, int] = {}
        self.end = weakref.finalize(
            self, _finish, self._connection, self._process, self._owner
        )  # at exit at the latest

    @property
    def usable(self) -> bool:
        return os.getpid() == self._owner and self._process.poll() is None  # a fork of this process has no child

    def send(self, data: bytes) -> None:
        if not self._ready:
            self.answer(START_SECONDS)
            self._ready = True
        try:
            self._connection.send_bytes(data)
        except OSError:
            raise self._ended() from None

    def answer(self, seconds: float) -> tuple[bytes, str]:
        """The next one, status and text. Raises TemplateError where there is none: the process is then to be ended."""
        deadline = time.monotonic() + seconds
        try:
            while not self._connection.poll(_STEP):
                if self._resident() > MEMORY:
                    raise TemplateError(_TOO_MUCH)
                if time.monotonic() > deadline and not self._connection.poll():  # both may have stood still meanwhile
                    raise TemplateError(f"chat template: it did not finish within {seconds:g} seconds")
            data = self._connection.recv_bytes(_LONGEST)
        except (EOFError, OSError):
            raise self._ended() from None
        return data[:1], data[1:].decode("utf-8", "surrogatepass")

    def _resident(self) -> int:
        import psutil

        try:
            return psutil.Process(self._process.pid).memory_info().rss
        except psutil.Error:
            return 0

    def _ended(self) -> TemplateError:
        """What to say of a process that ended by itself."""
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            status = None
        if status == OUT_OF_MEMORY:
            return TemplateError(_TOO_MUCH)
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        did = "ended" if self._ready else "could not start"
        return TemplateError(f"chat template: the process that renders it {did} ({how})")


_TOO_MUCH = f"chat template: it takes more than {memory_size(MEMORY)} of memory"


def _started() -> tuple[Any, subprocess.Popen[Any]]:
    """Our end of a connection, and the process that has the other."""
    from multiprocessing.connection import Pipe

    ours, theirs = Pipe()
    handle = theirs.fileno()
    how: dict[str, Any]
    if sys.platform == "win32":
        os.set_handle_inheritable(handle, True)
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW  # Ctrl-C is not for it
        how = {"stdin": subprocess.DEVNULL, "close_fds": False, "creationflags": flags}
    else:
        how, handle = {"stdin": handle, "start_new_session": True}, 0  # Ctrl-C is not for it
    command = [sys.executable, "-I", "-S", "-B", str(_PROGRAM), str(handle), *_folders("jinja2", "markupsafe")]
    how["env"] = {name: os.environ[name] for name in _KEPT if name in os.environ}
    with theirs:
        try:
            return ours, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
        except OSError as error:
            ours.close()
            raise TemplateError(
                f"chat template: the process that renders it could not start: {error.strerror or error}"
            ) from None


def _folders(*packages: str) -> list[str]:
    """Where packages are found. The process looks nowhere else, so that it starts fast."""
    found = [find_spec(package) for package in packages]
    return list(dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin))


def _finish(connection: Any, process: subprocess.Popen[Any], owner: int) -> None:
    connection.close()
    if os.getpid() == owner:
        process.kill()
        process.wait()
    else:
        process.returncode = 0  # a fork has it in its memory, and it is no child of a fork


def _encoded(request: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(request).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(f"chat template: its messages and variables cannot be written as JSON: {error}") from None
