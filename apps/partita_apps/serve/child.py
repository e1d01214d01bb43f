"""The process that computes one model for the server: `python -m partita_apps.serve.child`, started by `channel`.

Ids in, ids out; everything else of a request is the server's business. Invariants: the process ends with the server,
however that ends; an exception's words stay in the log of this process, and the server hears one line.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, NoReturn, Protocol

import psutil

from partita.engine.request import Event, Failed, Request
from partita.errors import MemoryBudgetError, PartitaError

from .channel import Closed, Line
from .child_process import serve_parent
from .frames import (
    VERSION,
    AdapterPut,
    Beat,
    Cancel,
    Down,
    Events,
    Hello,
    Load,
    Loaded,
    Loading,
    NotLoaded,
    PutAdapter,
    Stop,
)

IDLE = 1.0  # seconds between two beats without work
STUCK = 0.1  # seconds between two steps while requests wait and none is computed
_log = logging.getLogger("partita.child")


class Steps(Protocol):
    """What is used of an engine."""

    @property
    def idle(self) -> bool: ...
    @property
    def step_seconds(self) -> float: ...
    @property
    def model(self) -> Any: ...
    def put(self, adapter: str, model: Any) -> None: ...
    def submit(self, request: Request) -> None: ...
    def cancel(self, id: int) -> None: ...
    def step(self) -> list[Event]: ...
    def statistics(self) -> Mapping[str, int]:
        """The fields of `Beat` that are not this process's."""
        ...


Open = Callable[[Load, Callable[[int, int], None]], tuple[Steps, Loaded]]
"""From what to load and who hears of each layer to an engine and what the server is told of it."""


def main(open_engine: Open, arguments: list[str] | None = None) -> NoReturn:
    """Compute for the server until it has had enough; then the process ends. Does not return."""

    def work(line: Line) -> None:
        inbox = _Inbox(line)
        line.send(Hello(VERSION, os.getpid()))
        engine = _loaded(line, inbox, open_engine)
        if engine is not None:
            _run(line, inbox, engine)

    serve_parent("model", Down, work, arguments)


class _Inbox:
    """What the server says, read by a thread of its own: the process ends with the server, whatever is computed."""

    def __init__(self, line: Line):
        self._frames: SimpleQueue[Down] = SimpleQueue()
        self._stopping = False
        self._line = line
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides
        signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._read, daemon=True).start()

    def get(self, wait: float) -> Down | None:
        """The next frame, None where none comes within some seconds."""
        try:
            return self._frames.get(timeout=wait) if wait else self._frames.get_nowait()
        except Empty:
            return None

    def _read(self) -> None:
        try:
            while True:
                self._frames.put(self._line.receive())
        except Closed:
            os._exit(0)

    def _terminated(self, signal: int, frame: FrameType | None) -> None:
        """A service manager ends all processes of a service at once: the first time, requests are finished."""
        if self._stopping:
            os._exit(0)
        self._stopping = True
        self._frames.put(Stop())


def _loaded(line: Line, inbox: _Inbox, open_engine: Open) -> Steps | None:
    """The engine that the server asks for first; None where it cannot be, which the server then knows."""
    load = None
    while load is None:
        load = inbox.get(IDLE)
    if not isinstance(load, Load):
        return None
    try:
        engine, facts = open_engine(load, lambda done, total: line.send(Loading(done, total)))
    except PartitaError as error:
        line.send(NotLoaded(str(error), error.field, isinstance(error, MemoryBudgetError)))
        return None
    except Closed:
        raise
    except Exception as error:
        _log.exception("the model cannot be loaded")
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, of a device
        line.send(NotLoaded(f"the model cannot be loaded ({type(error).__name__}; the log says more)", memory=memory))
        return None
    line.send(facts)
    return engine


def _run(line: Line, inbox: _Inbox, engine: Steps) -> None:
    """Steps until the server says Stop and everything is finished. What a step raises ends the process."""
    own, stopping, stuck = psutil.Process(), False, False
    while True:
        refused: list[Event] = []
        wait = STUCK if stuck else IDLE if engine.idle and not stopping else 0.0
        while (frame := inbox.get(wait)) is not None:
            wait = 0.0
            match frame:
                case Request():
                    refused += _submitted(engine, frame, stopping)
                case Cancel(id):
                    engine.cancel(id)
                case PutAdapter():
                    line.send(_put(engine, frame))
                case Stop():
                    stopping = True
                case Load():
                    raise Closed("a second model")
        if engine.idle and stopping:
            if refused:
                line.send(Events(refused))
            return
        events = refused + ([] if engine.idle else engine.step())
        beat = Beat(step_seconds=engine.step_seconds, memory=own.memory_info().rss, **engine.statistics())
        stuck = bool(beat.waiting and not (beat.rows or beat.prefilling or events))  # until there is memory again
        line.send(*([Events(events)] if events else []), beat)


def _submitted(engine: Steps, request: Request, stopping: bool) -> list[Event]:
    """Nothing, or why the request is not done."""
    if stopping:
        return [Failed(request.id, "the model is being unloaded", "busy")]
    try:
        engine.submit(request)
    except PartitaError as error:
        kind = "memory" if isinstance(error, MemoryBudgetError) else "input"
        return [Failed(request.id, str(error), kind, error.field)]
    except Exception as error:
        _log.exception("a request was not taken")
        return [Failed(request.id, f"the engine did not take the request ({type(error).__name__})")]
    return []


def _put(engine: Steps, asked: PutAdapter) -> AdapterPut:
    """Put an adapter on the loaded model, or take it away, and say how that went."""
    from partita.adapters.read import open_adapter

    try:
        folder = asked.folder
        engine.put(asked.name, None if folder is None else engine.model.with_adapter(open_adapter(folder)))
    except PartitaError as error:
        return AdapterPut(asked.name, str(error))
    except Exception as error:
        _log.exception("an adapter was not taken")
        return AdapterPut(asked.name, f"the adapter cannot be used ({type(error).__name__}; the log says more)")
    return AdapterPut(asked.name)


def open_model(load: Load, on_layer: Callable[[int, int], None]) -> tuple[Steps, Loaded]:
    """The engine of a model, its adapters and the cache that the settings ask for. Errors as of `partita.load`."""
    import partita  # and with it an array library: nothing else of the server needs one
    from partita.adapters.read import open_adapter
    from partita.cache.budget import full_bytes
    from partita.cache.prefix_cache import PrefixCache
    from partita.cache.prefix_reuse import default_bytes
    from partita.engine.constraint import Grammars
    from partita.engine.engine import Engine

    passed: list[str] = []
    model = partita.load(
        load.model,
        backend=load.backend,
        device=load.device,
        dtype=load.dtype,
        threads=load.threads,
        on_layer=on_layer,
        on_fallback=passed.append,
    )
    choice = model.choose_cache(context=load.context, sinks=load.sinks, kv=load.kv)
    kept = default_bytes(model.ops) if load.prefix_bytes is None else load.prefix_bytes
    grammars = Grammars(model.tokenizer, model.config.vocab_size)
    grammars.prepare()  # or the first constraint would have all replies wait for it
    models = {"": model, **{name: model.with_adapter(open_adapter(path)) for name, path in load.adapters.items()}}
    memory = model.ops.memory()
    engine = Engine(
        models, choice.spec, max_waiting=load.max_waiting, prefixes=PrefixCache(kept), matchers=grammars.matcher
    )
    notes = [*passed, *model.notes, *filter(None, [choice.text, model.kv_warning(choice.spec)])]
    facts = Loaded(
        backend=model.ops.name,
        device=model.ops.device,
        dtype=model.ops.dtype,
        kv=str(choice.spec.kv),
        context=choice.spec.context or model.config.max_positions,
        trained_context=model.config.max_positions,
        bytes=memory.active,
        row_bytes=full_bytes(choice.spec),
        free=memory.free,
        note="; ".join(notes) or None,
    )
    return engine, facts


if __name__ == "__main__":
    main(open_model)
