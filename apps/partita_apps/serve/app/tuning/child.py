"""The process of a fine-tuning run: `python -m partita_apps.serve.app.tuning.child`, started by `serve.channel`.

It does one thing that the server asks for (check data, predict, train) and ends. What trains is `partita.finetuning`;
here its observer speaks frames. Invariants: the process ends with the server, however that ends, and what its folder
holds then can be gone on with; an exception's words stay in the log, and the server hears one line.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import psutil

from partita.errors import MemoryBudgetError, PartitaError
from partita.finetuning.settings import Settings
from partita.printable import printable

from ...channel import Closed, Line
from ...child_process import serve_parent
from ...frames import Hello
from . import data
from .frames import VERSION, Check, Down, Ended, Failed, Go, Look, Phase, Predict, Predicted, Stop, Train

if TYPE_CHECKING:
    from partita.finetuning.predict import Prediction

_log = logging.getLogger("partita.tuning")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Do what the server asks for; then the process ends. Does not return."""
    os.umask(0o077)

    def work(line: Line) -> None:
        inbox = Inbox(line)
        line.send(Hello(VERSION, os.getpid()))
        line.send(_done(line, inbox))

    serve_parent("tuning", Down, work, arguments)


class Inbox:
    """What the server says, read by a thread of its own. stop: what `Stop` does; until a run sets it, there is nothing
    to be saved, and the process ends."""

    def __init__(self, line: Line) -> None:
        self._frames: SimpleQueue[Any] = SimpleQueue()
        self._line = line
        self.stop: Callable[[], None] = _leave
        for name in ("SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)  # the server decides
        signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._read, daemon=True).start()

    def get(self) -> Any:
        return self._frames.get()

    def _read(self) -> None:
        try:
            while True:
                frame = self._line.receive()
                if isinstance(frame, Stop):
                    self.stop()
                else:
                    self._frames.put(frame)
        except Closed:
            _leave()

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        """A service manager ends all processes of a service at once."""
        self.stop()


def _leave() -> None:
    os._exit(0)


def _done(line: Line, inbox: Inbox) -> msgspec.Struct:
    """What was asked for, or why it was not done."""
    asked = inbox.get()
    name, path = asked.name, asked.path if isinstance(asked, Check) else asked.settings["data"]
    try:
        match asked:
            case Check():
                return data.checked(Path(path))
            case Predict():
                from partita.finetuning.predict import predict

                return predicted(predict(_settings(asked.settings)))
            case Train():
                return _trained(line, inbox, asked)
            case _:
                raise Closed(f"a {type(asked).__name__} where a task should be")
    except PartitaError as error:
        message = printable(str(error).replace(str(path), name))
        return Failed(message, error.field, isinstance(error, MemoryBudgetError))
    except Closed:
        raise
    except Exception as error:
        _log.exception("it failed")
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, of a device
        what = "memory ran out; a smaller `batch_size` or `max_length` needs less" if memory else "the log says more"
        return Failed(f"fine-tuning failed ({type(error).__name__}): {what}", memory=memory)


def _settings(document: dict[str, Any]) -> Settings:
    """Lists were tuples before they were sent."""
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in document.items()}
    return Settings(**values)


def predicted(found: Prediction, free: int | None = None) -> Predicted:
    """free: what the server says of the machine's memory; a device with its own knows better."""
    left = found.free if free is None or found.device.startswith("cuda") else min(found.free, free)
    rest = found.rest
    return Predicted(
        backend=found.backend,
        device=found.device,
        dtype=found.settings.dtype,
        max_length=found.settings.max_length or 0,
        needs=found.needs,
        least=found.least,
        weights=found.weights,
        values=found.values,
        optimizer=rest.optimizer,
        activations=rest.activations,
        logits=rest.logits,
        batches=rest.batches,
        free=left,
        process=psutil.Process().memory_info().rss,
        refusal=found.refusal(left),
        steps=None if found.data is None else found.settings.steps,
        data=None if found.data is None else {name: dict(counts) for name, counts in found.data.items()},
        notes=list(found.notes),
    )


def _trained(line: Line, inbox: Inbox, asked: Train) -> Ended:
    from partita.finetuning import run as finetuning
    from partita.finetuning.predict import predict

    from ....finetune.run import write_folder
    from ....finetune.settings import merged, read_run
    from .observer import Told

    settings, out, before = _settings(asked.settings), Path(asked.out), dict[str, str]()
    finetuning.check_place(out, asked.resume)
    if asked.resume:
        kept, before = read_run(out / finetuning.RUN)
        kept |= {name: asked.settings[name] for name in ("model", "data", "backend", "device", "threads")}
        settings = merged({name: value for name, value in kept.items() if value is not None})
    line.send(Phase("memory"))
    _wait_for_room(line, inbox, settings, lambda settings: predict(settings, reads_data=False))
    observer = Told(line, inbox, asked.name, out)
    how = {"resume": asked.resume, "before": before, "write_folder": write_folder}
    _, outcome = finetuning.run(settings, out, observer, **how)
    return Ended(
        reason=outcome.reason,
        step=outcome.step,
        best=outcome.best,
        test_loss=outcome.test,
        peak=outcome.peak,
        tokens_per_second=outcome.tokens_per_second,
    )


def _wait_for_room(line: Line, inbox: Inbox, settings: Settings, predict: Callable[[Settings], Prediction]) -> None:
    """Tell the server what the run will take, as often as it asks, until it says that there is room."""
    found, free = predict(settings), None
    while True:
        line.send(predicted(found, free))
        match inbox.get():
            case Go():
                return
            case Look(free=said):
                found, free = predict(settings), said
            case other:
                raise Closed(f"a {type(other).__name__} in place of Go")


if __name__ == "__main__":
    main()
