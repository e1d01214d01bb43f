"""Libraries that segment text, called so that whatever they do is one line.

A panic of the `tokenizers` library is no `Exception`, and its work is done where no
signal reaches. Invariants: an error of a library is a CheckpointError that names the file; what may take the square of
a text's length has a limit of time, and Ctrl-C ends the wait.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from ..errors import CheckpointError, PartitaError
from ..units import duration

_SECONDS, _RATE = 5.0, 20_000  # time for a text: so long, and a second more for so many characters


def translated(error: BaseException, where: str) -> BaseException:
    """A library's own error as a CheckpointError; any other as it is."""
    panics = type(error).__name__ == "PanicException"
    if isinstance(error, PartitaError | MemoryError) or not (panics or isinstance(error, Exception)):
        return error
    return CheckpointError(f"{where}: the library refuses it: {' '.join(str(error).split())[:200]}")


@contextmanager
def guarded(where: str) -> Generator[None, None, None]:
    """What is done within ends in a CheckpointError that names `where` if a library fails."""
    try:
        yield
    except BaseException as error:
        raise translated(error, where) from None


@contextmanager
def without_collector() -> Generator[None, None, None]:
    """A vocabulary is a million objects, none of them garbage: half of the time goes into looking for some."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Watch:
    """Runs a function on texts, of which those of more than `easy` characters have a time limit.

    The function goes on by itself after that, since nothing can end it: until it is done there is only the same error.
    """

    def __init__(self, encode: Callable[[str], Any], where: str, easy: int) -> None:
        self._encode, self._where, self._easy = encode, where, easy
        self._late: threading.Thread | None = None

    def __call__(self, text: str) -> Any:
        if self._late is not None and self._late.is_alive():
            raise CheckpointError(f"{self._where}: its expressions are still busy with an earlier text")
        if len(text) <= self._easy:
            return self._encode(text)
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        thread = threading.Thread(target=self._answer, args=(text, answers), daemon=True)
        thread.start()
        seconds = _SECONDS + len(text) / _RATE
        try:
            answer, error = answers.get(timeout=seconds)
        except queue.Empty:
            self._late = thread
            raise CheckpointError(
                f"{self._where}: its expressions take more than {duration(seconds)} for a text of "
                f"{len(text)} characters"
            ) from None
        if error is not None:
            raise error
        return answer

    def _answer(self, text: str, answers: queue.SimpleQueue[tuple[Any, BaseException | None]]) -> None:
        try:
            answers.put((self._encode(text), None))
        except BaseException as error:
            answers.put((None, error))
