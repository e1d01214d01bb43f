"""A run that goes on: its process, the room that is made for it, what it says, and how it ended.

Not here: which runs there are (`tunings`), and what a run computes (`child`). Invariants: the record on the disk says
how a run ended, however it ended; memory that the run will take is counted from before it loads until its process is
gone.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Protocol, TypeVar

import msgspec
import psutil

from partita.cache.budget import RESERVE
from partita.units import memory_size

from ...asked import Refused
from ...channel import Channel, Closed, ended
from ...frames import Hello, Load
from ...guests import Guests
from . import frames
from .frames import Ended, Failed, Go, Look, Note, Phase, Predicted, Ready, Samples, Saved, Step, Stop, Train, Valid
from .log import Log
from .store import Record, Store

PROGRAM = (sys.executable, "-P", "-m", "partita_apps.serve.app.tuning.child")
_NOTES = 20  # lines that are kept of a run
_STEPS = 20  # by whose time the rest is estimated
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Room(Protocol):
    """What is used of the registry."""

    settings: Load
    guests: Guests

    def free(self) -> int: ...
    def present(self, but: str = "") -> list[str]: ...
    def making_room(self) -> AbstractAsyncContextManager[Callable[[], Awaitable[bool]]]: ...


async def opened(task: msgspec.Struct) -> Channel:
    """A process that was given a task. Raises Refused."""
    try:
        channel = await Channel.open(PROGRAM, up=frames.Up)
    except Closed as error:
        raise Refused(f"the fine-tuning process: {error}", "engine") from None
    try:
        hello = await channel.receive()
        if not isinstance(hello, Hello) or hello.version != frames.VERSION:
            raise Refused("the fine-tuning process is of another version: start the server again", "engine")
    except Closed as error:
        status = await channel.close()
        raise Refused(f"the fine-tuning process: {error} ({ended(status)})", "engine") from None
    except BaseException:
        await channel.close(0.0)
        raise
    channel.send(task)
    return channel


async def answer(task: msgspec.Struct, kind: type[T]) -> T:
    """What a process says that does one thing and ends. Raises Refused. Cancelled, it ends the process."""
    channel = await opened(task)
    try:
        found = await channel.receive()
    except Closed as error:
        status = await channel.close()
        raise Refused(f"the fine-tuning process: {error} ({ended(status)})", "engine") from None
    finally:
        await channel.close(0.0)
    if isinstance(found, Failed):
        raise Refused(found.message, field=found.field)
    if not isinstance(found, kind):
        raise Refused("the fine-tuning process said what was not asked for", "internal")
    return found


class Live:
    """A run with its process. settings: all of them, for the process. changed: called when the record was written."""

    def __init__(
        self, record: Record, settings: Mapping[str, Any], store: Store, room: Room, changed: Callable[[], None]
    ) -> None:
        self.record, self.log = record, Log()
        self._settings, self._store, self._room, self._changed = settings, store, room, changed
        self._channel: Channel | None = None
        self._stopping = False
        self._paces: deque[float] = deque(maxlen=_STEPS)

    async def go(self) -> None:
        """Until the run has ended, which the record then says. resume: where there is something to go on with."""
        begun, record = time.monotonic(), self.record
        record.state, record.message, record.field, record.ended = "running", None, None, None
        before = record.seconds
        self._write()
        try:
            record.state = await self._through()
        except Refused as why:
            record.state, record.message, record.field = "failed", why.message, why.field
        except asyncio.CancelledError:
            record.state, record.message = "interrupted", "the server ended before the run could be saved"
            raise
        except Exception:
            _log.exception("a fine-tuning run failed")
            record.state, record.message = "failed", "the server failed; its log has more"
        finally:
            record.seconds = before + time.monotonic() - begun
            self._write()
            self.log.add("end", {"state": record.state, "message": record.message, "field": record.field})
            self.log.close()
            self._changed()

    def stop(self) -> None:
        """Finish the step and save; said twice, end now: what was done since the last checkpoint is lost."""
        channel, again = self._channel, self._stopping
        self._stopping = True
        self.log.add("phase", {"what": "stopping", "done": 0, "total": None})
        if channel is not None:
            if again:
                channel.kill()
            else:
                channel.send(Stop())

    def kill(self) -> None:
        if self._channel is not None:
            self._channel.kill()

    # The process

    async def _through(self) -> Any:
        """The state that the run ended in. Raises Refused."""
        out = self._store.out(self.record)
        resume = (out / "run.json").is_file()
        task = Train(dict(self._settings), self.record.data, str(out), resume)
        self._phase("starting")
        channel = self._channel = await opened(task)
        name = f"the fine-tuning run {self.record.name}"
        try:
            if self._stopping:
                channel.send(Stop())
            await self._admitted(channel, name)
            return await self._followed(channel)
        except Closed:
            status = await channel.close()
            return self._interrupted(status)
        finally:
            self._channel = None
            await channel.close(5.0)
            self._room.guests.drop(name)

    def _interrupted(self, status: int) -> str:
        """Of a process that has ended without a word."""
        if self._stopping:
            return "stopped"
        self.record.message = f"the run's process ended ({ended(status)})" + (
            "; memory may have run out" if status == -9 else ""
        )
        return "interrupted"

    async def _admitted(self, channel: Channel, name: str) -> None:
        """Make room for what the run will take, and let it go on. Raises Refused with the numbers, and Closed."""
        await self._until(channel, Predicted)
        async with self._room.making_room() as unload:
            while True:
                channel.send(Look(self._room.free()))
                found = await self._until(channel, Predicted)
                if found.needs <= found.free - RESERVE:
                    break
                if not await unload():
                    if found.refusal is not None:
                        raise Refused(self._no_room(found), "memory")
                    break  # with gradient checkpointing
            self._room.guests.add(name, _left(channel.pid, found.needs))
            channel.send(Go())

    def _no_room(self, found: Predicted) -> str:
        others = ", ".join(self._room.present())
        beside = f"; {others} stay loaded: pinned, or in use" if others else ""
        return f"{found.refusal}; the weights take {memory_size(found.weights)} besides{beside}"

    async def _until(self, channel: Channel, kind: type[T]) -> T:
        while True:
            frame = await channel.receive()
            if isinstance(frame, kind):
                return frame
            self._heard(frame)

    async def _followed(self, channel: Channel) -> str:
        """The state that the run ended in."""
        while True:
            frame = await channel.receive()
            if isinstance(frame, Ended):
                self.record.step = frame.step
                self.record.ended = msgspec.structs.asdict(frame)
                return "stopped" if frame.reason == "stopped" else "done"
            self._heard(frame)

    # What it says

    def _heard(self, frame: Any) -> None:
        """Raises Refused where the run has failed."""
        record = self.record
        match frame:
            case Phase(what, done, total):
                self._phase(what, done, total)
            case Note(lines):
                record.notes = [*record.notes, *lines][-_NOTES:]
                self.log.add("note", {"lines": lines})
            case Ready():
                record.ready = msgspec.structs.asdict(frame)
                record.step, record.steps = frame.step, frame.steps
                self._write()
                self.log.add("ready", record.ready)
            case Step():
                record.step = frame.step
                self.log.add("step", self._step(frame))
            case Valid():
                self.log.add("valid", frame)
            case Saved(step):
                self._write()
                self.log.add("saved", {"step": step})
            case Samples(samples):
                record.samples = samples
                self._write()
                self.log.add("samples", {"samples": samples})
            case Failed(message, field, memory):
                raise Refused(message, "memory" if memory else "invalid", field=field)
            case _:
                raise Refused("the fine-tuning process said what it should not", "internal")

    def _step(self, frame: Step) -> dict[str, Any]:
        self._paces.append(frame.seconds)
        pace = statistics.median(self._paces)  # the first steps compile, and take long
        speed = frame.tokens / max(frame.seconds, 1e-9)
        left = pace * max(self.record.steps - frame.step, 0)
        return {**msgspec.structs.asdict(frame), "tokens_per_second": speed, "left": left}

    def _phase(self, what: str, done: int = 0, total: int | None = None) -> None:
        self.log.add("phase", {"what": what, "done": done, "total": total})

    def _write(self) -> None:
        try:
            self._store.write(self.record)
        except Refused as error:  # a full disk ends no run: its own files say what it can be resumed from
            _log.warning("%s", error)


def _left(pid: int, needs: int) -> Callable[[], int]:
    """What a process will still take of what it was promised."""

    def held() -> int:
        with suppress(psutil.Error):
            return psutil.Process(pid).memory_info().rss
        return 0

    first = held()
    return lambda: max(needs - max(held() - first, 0), 0)
