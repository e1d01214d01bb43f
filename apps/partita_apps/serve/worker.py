"""One loaded model: the process that computes it, watched, and begun again after it has ended.

Not here: which models there are, and when one is loaded or unloaded (`registry`). Invariants: every request comes to
one end, `Finished` or `Failed`, also when the process dies, hangs or says nonsense; at most one process at a time; what
a slow reader leaves unread is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from partita.engine.request import Cancel, Event, Failed, Finished, Request
from partita.printable import printable

from .asked import Refused
from .channel import PASSES_SOCKETS, Channel, Closed, ended
from .frames import VERSION, AdapterPut, Beat, Events, Hello, Load, Loaded, Loading, NotLoaded, PutAdapter, Stop
from .suspects import Mark, Suspects, mark

PROGRAM = (sys.executable, "-P", "-m", "partita_apps.serve.child")  # -P: nothing is imported from where we are
MAX_UNREAD = 8192  # events of one request
STEPS = 20
"""A step that takes so many times what was predicted has come to a halt."""
_TICK = 0.25  # seconds
_log = logging.getLogger(__name__)

State = Literal["unloaded", "loading", "loaded", "stopped"]


@dataclass(frozen=True)
class Patience:
    """Seconds. step: for a step, however short it was predicted to be. first_step: of a process, which may compile.
    loading: between two signs of life of a process that loads. pause, longest_pause: before a process is begun again,
    doubled with each death until a request finishes."""

    step: float = 10.0
    first_step: float = 120.0
    loading: float = 300.0
    pause: float = 0.5
    longest_pause: float = 30.0


@dataclass
class _Open:
    """A request under way. reader: where its events go, None once nobody waits for them."""

    mark: Mark
    reader: asyncio.Queue[Event] | None = field(default_factory=lambda: asyncio.Queue[Event]())


@dataclass
class _Process:
    """One that has loaded the model. silent: seconds since it said something, while there is work."""

    channel: Channel
    facts: Loaded
    beat: Beat | None = None
    silent: float = 0.0
    hung: bool = False


class Worker:
    """For one event loop. program: what is started; it is told its end of the channel (`channel.Line.of`)."""

    def __init__(
        self,
        load: Load,
        *,
        program: Sequence[str] = PROGRAM,
        patience: Patience | None = None,
        loopback: bool = not PASSES_SOCKETS,
    ) -> None:
        self._load, self._program, self._loopback = load, program, loopback
        self._patience = Patience() if patience is None else patience
        self._process: _Process | None = None
        self._starting: asyncio.Task[_Process] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._open: dict[int, _Open] = {}
        self._putting: dict[str, asyncio.Future[str | None]] = {}
        self._last_id = 0
        self._suspects = Suspects()
        self._deaths, self._died = 0, 0.0
        self._stopping = False
        self.progress = 0, 0
        """Layers on the device, of how many, while it is loading."""

    @property
    def state(self) -> State:
        if self._stopping:
            return "stopped"
        if self._process is not None:
            return "loaded"
        return "unloaded" if self._starting is None else "loading"

    @property
    def facts(self) -> Loaded:
        """What the model is computed with. Raises Refused while it is not loaded."""
        if self._process is None:
            raise Refused("the model is not loaded", "engine", retry_after=1)
        return self._process.facts

    @property
    def beat(self) -> Beat | None:
        """What the process said last of its work."""
        return None if self._process is None else self._process.beat

    @property
    def pid(self) -> int | None:
        """Of the process, while the model is loaded."""
        return None if self._process is None else self._process.channel.pid

    async def start(self) -> Loaded:
        """Have the model loaded, by one process however many ask. After a death it is begun again, with a pause.

        Raises Refused: kind "memory" where it may be loaded once there is room, else "engine".
        """
        if self._stopping:
            raise _unloading()
        if self._process is not None:
            return self._process.facts
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(self._started)
        starting = self._starting
        await asyncio.wait([starting])
        if starting.cancelled():
            raise _unloading()
        return starting.result().facts

    async def rest(self) -> None:
        """Wait for the end of the pause that follows a death."""
        if self._deaths:
            pause = min(self._patience.pause * 2 ** (self._deaths - 1), self._patience.longest_pause)
            await asyncio.sleep(max(0.0, self._died + pause - time.monotonic()))

    async def events(self, request: Request) -> AsyncGenerator[Event, None]:
        """What happens to a request, whose id is replaced: `Finished` or `Failed` comes last, in any case.

        Closing the iterator cancels the request (`contextlib.aclosing`: one that is dropped is closed some time later).
        A model whose process has ended is loaded again first.
        """
        known = mark(request)
        if self._suspects.refused(known):
            yield Failed(request.id, "the model's process ended twice while it computed this request", "input")
            return
        try:
            await self.start()
        except Refused as error:
            yield Failed(request.id, error.message, "memory" if error.kind == "memory" else "internal", error.field)
            return
        self._last_id += 1
        id, opened = self._last_id, _Open(known)
        self._open[id], reader = opened, opened.reader
        assert reader is not None
        try:
            self._submit(msgspec.structs.replace(request, id=id))
            while True:
                event = await reader.get()
                yield event
                if isinstance(event, Finished | Failed):
                    return
        finally:
            self._leave(id)

    async def put_adapter(self, name: str, folder: str | None) -> None:
        """Have the model with an adapter, now and whenever its process is begun again; None: no longer. Raises Refused
        where the loaded model does not take it: then it has none of that name."""
        self._load = msgspec.structs.replace(self._load, adapters=_with(self._load.adapters, name, folder))
        if self._starting is not None:  # it may have been told what to load before
            await asyncio.wait([self._starting])
        process = self._process
        if process is None:
            return
        while name in self._putting:
            await asyncio.wait([self._putting[name]])
        answer = self._putting[name] = asyncio.get_running_loop().create_future()
        process.channel.send(PutAdapter(name, folder))
        message = await answer
        if message is not None:
            self._load = msgspec.structs.replace(self._load, adapters=_with(self._load.adapters, name, None))
            raise Refused(message, "engine")

    def _was_put(self, name: str, message: str | None) -> None:
        answer = self._putting.pop(name, None)
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def stop(self, patience: float = 5.0) -> None:
        """Let requests finish for some seconds, then end the process. Nothing new is taken any more."""
        self._stopping = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        process, listening = self._process, self._listening
        if process is not None:
            process.channel.send(Stop())
        if listening is None:
            return
        for end, seconds in ((None, patience), (Channel.terminate, 1.0), (Channel.kill, None)):
            if end is not None and process is not None:
                end(process.channel)
            done, _ = await asyncio.wait([listening], timeout=seconds)
            if done:
                return

    # Requests

    def _submit(self, request: Request) -> None:
        if self._process is None:  # it ended as soon as it had begun
            self._deliver(Failed(request.id, "the model's process ended"))
            return
        try:
            self._process.channel.send(request)
        except ValueError:
            self._deliver(Failed(request.id, "the request is too large for the model's process", "input"))

    def _deliver(self, event: Event) -> None:
        """To whoever waits for it."""
        found = self._open.get(event.id)
        if found is None:
            return
        last = isinstance(event, Finished | Failed)
        if last:
            del self._open[event.id]
        if isinstance(event, Finished) and event.reason != "cancelled":
            self._suspects.clear(found.mark)
            self._deaths = 0
        if found.reader is None:
            return
        if last or found.reader.qsize() < MAX_UNREAD:
            found.reader.put_nowait(event)
        else:
            found.reader.put_nowait(Failed(event.id, f"nobody has read the last {MAX_UNREAD} events of this reply"))
            self._leave(event.id)

    def _leave(self, id: int) -> None:
        """Nobody waits for a request any more. It counts as being computed until the process says that it has ended."""
        found = self._open.get(id)
        if found is not None and found.reader is not None:
            found.reader = None
            if self._process is not None:
                self._process.channel.send(Cancel(id))

    # The process

    async def _start(self) -> _Process:
        if self._listening is not None:
            await asyncio.wait([self._listening])  # the last one is still being ended
        await self.rest()
        self.progress = 0, 0
        try:
            channel = await Channel.open(self._program, loopback=self._loopback)
        except Closed as error:
            raise self._not_started(str(error)) from None
        try:
            facts = await self._loaded(channel)
        except Refused:
            self._count_death()
            await channel.close()
            raise
        except Closed as error:
            status = await channel.close()
            raise self._not_started(f"{error} ({ended(status)}) before the model was loaded") from None
        except BaseException:  # it is to be stopped
            await channel.close(0.0)
            raise
        self._process = process = _Process(channel, facts)
        self._listening = asyncio.create_task(self._listen(process))
        return process

    def _started(self, task: asyncio.Task[_Process]) -> None:
        self._starting = None
        if not task.cancelled():
            task.exception()  # everybody who waited may have gone

    def _not_started(self, why: str) -> Refused:
        self._count_death()
        return Refused(f"the model's process: {why}", "engine", retry_after=1)

    def _count_death(self) -> None:
        self._deaths, self._died = min(self._deaths + 1, 16), time.monotonic()

    async def _loaded(self, channel: Channel) -> Loaded:
        """Have the process load the model. Raises Closed and Refused."""
        hello = await self._soon(channel.receive())
        if not isinstance(hello, Hello) or hello.version != VERSION:
            raise Refused("the model's process is of another version than the server: start the server again", "engine")
        channel.send(self._load)
        while True:
            match await self._soon(channel.receive()):
                case Loading(done, total):
                    self.progress = done, total
                case Loaded() as facts:
                    return facts
                case NotLoaded(message, field, memory):
                    raise Refused(printable(message), "memory" if memory else "engine", field=field)
                case frame:
                    raise channel.nonsense(f"a {type(frame).__name__} in place of a model")

    async def _soon(self, frame: Coroutine[Any, Any, Any]) -> Any:
        seconds = self._patience.loading
        try:
            async with asyncio.timeout(seconds):  # unlike `wait_for`, it loses no cancellation on Python 3.11
                return await frame
        except TimeoutError:
            raise Refused(f"the model was not loaded: no layer within {seconds:g} s", "engine", retry_after=1) from None

    async def _listen(self, process: _Process) -> None:
        """Pass on what a process says until it ends, and then tell everybody."""
        watching = asyncio.create_task(self._watch(process))
        why = "the server ends"
        try:
            while True:
                match await process.channel.receive():
                    case Events(events):
                        for event in events:
                            self._deliver(event)
                    case Beat() as beat:
                        process.beat = beat
                    case AdapterPut(name, message):
                        self._was_put(name, message)
                    case frame:
                        raise process.channel.nonsense(f"a {type(frame).__name__} of a loaded model")
                process.silent = 0.0
        except Closed as error:
            why = str(error)
        finally:
            watching.cancel()
            self._process = None
            status = await process.channel.close()
            self._bury(process, why, status)

    def _bury(self, process: _Process, why: str, status: int) -> None:
        """What follows from the end of a process: nobody waits for it any longer."""
        if self._stopping:
            message = "the model was unloaded"
        else:
            message = f"the model's process {'hung and was ended' if process.hung else 'ended'} ({ended(status)})"
            self._count_death()
            self._suspects.strike(each.mark for each in self._open.values())
            _log.error("%s, process %d: %s", message, process.channel.pid, why)
        for id in list(self._open):
            self._deliver(Failed(id, message))
        for name in list(self._putting):
            self._was_put(name, None)  # the next process is told when it loads

    async def _watch(self, process: _Process) -> None:
        """End a process that makes no step though there is work. Counts ticks: a machine may sleep in between."""
        while process.silent < self._allowed(process.beat):
            await asyncio.sleep(_TICK)
            process.silent = process.silent + _TICK if self._open else 0.0
        process.hung = True
        process.channel.kill()

    def _allowed(self, beat: Beat | None) -> float:
        """Seconds that the process may be silent."""
        if beat is None or not (beat.generated or beat.prefilled):
            return self._patience.first_step
        return max(self._patience.step, STEPS * beat.step_seconds)


def _with(adapters: dict[str, str], name: str, folder: str | None) -> dict[str, str]:
    others = {each: path for each, path in adapters.items() if each != name}
    return others if folder is None else {**others, name: folder}


def _unloading() -> Refused:
    return Refused("the model is being unloaded", "engine", retry_after=1)
