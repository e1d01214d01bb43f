"""Which models are loaded: each when it is asked for, idle ones unloaded when another needs their memory.

Not here: how a name is understood (`names`), how a model computes (`worker`). Invariants: one load or unload at a time,
so that what is predicted of memory stays true meanwhile; a model that somebody uses is never unloaded; an unloaded one
gives its memory back, since its process ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import psutil

from partita.cache.budget import RESERVE
from partita.checkpoint.open import open_checkpoint
from partita.errors import PartitaError
from partita.units import memory_size

from .asked import Refused
from .frames import Load, Loaded
from .guests import Guests
from .model_text import ModelText
from .names import Entry, Names
from .worker import Worker

DRAIN = 30.0
"""Seconds that replies have to finish when the server ends."""
_LOOK = 0.5  # seconds between two signs of life of a load
_EXPIRE = 5.0  # seconds between two looks for models that nobody has used for long
_REVIVE = 1.0  # seconds between two looks for pinned models whose process has ended
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """For a list of models. base: of an adapter, the model that it is put on. created: seconds since 1970. bytes: on
    disk; memory: of its process, 0 without one. context: tokens, as it was loaded the last time, or before that what it
    would be with memory enough, None where nobody knows. facts: None before it was loaded."""

    name: str
    base: str | None
    state: Literal["unloaded", "loading", "loaded"]
    created: int
    bytes: int
    memory: int
    context: int | None
    pinned: bool
    facts: Loaded | None


@dataclass(frozen=True)
class Model:
    """A loaded one. adapter: for `Request.adapter`."""

    name: str
    adapter: str
    worker: Worker
    text: ModelText


@dataclass
class _Slot:
    """A model and its process. users: how many use it or wait for it. seen: what was said of it when it was loaded."""

    entry: Entry
    worker: Worker | None = None
    text: ModelText | None = None
    loading: asyncio.Task[None] | None = None
    users: int = 0
    last_used: float = 0.0
    seen: Loaded | None = None

    @property
    def ready(self) -> bool:
        return self.text is not None and self.worker is not None and self.worker.state == "loaded"

    @property
    def present(self) -> bool:
        """Whether it takes memory."""
        return self.worker is not None and self.worker.state in ("loading", "loaded")

    @property
    def idle(self) -> bool:
        """Whether there is something to unload, and nobody who would miss it."""
        return self.worker is not None and not self.users and self.loading is None and not self.entry.pinned


class Registry:
    """An asynchronous context: it loads the pinned models when it begins, again where a process of theirs has ended,
    and ends all processes when it ends.

    settings: of every load but for `model` and `adapters`. ttl: seconds after which a model that nobody uses is
    unloaded. patience: seconds for which a load waits until models that are used can be unloaded. start: makes a
    Worker. free: bytes of memory for another model.
    """

    def __init__(
        self,
        names: Names,
        settings: Load,
        *,
        ttl: float | None = None,
        patience: float = 60.0,
        start: Callable[[Load], Worker] = Worker,
        free: Callable[[], int] = lambda: psutil.virtual_memory().available,
    ) -> None:
        self._names, self._ttl, self._start, self._available = names, ttl, start, free
        self.settings, self.guests = settings, Guests()
        self._patience = patience
        self._slots: dict[Path, _Slot] = {}
        self._released = asyncio.Event()  # another one each time
        self._changing = asyncio.Lock()
        self._looking: list[asyncio.Task[None]] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        for each in self._names.entries():
            if each.pinned:
                self._begin(self._slot(each))
        self._looking.append(asyncio.create_task(self._revive()))
        if self._ttl is not None:
            self._looking.append(asyncio.create_task(self._expire(self._ttl)))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None):
        await self.close()

    async def close(self, patience: float = DRAIN) -> None:
        """Take nothing new, let replies finish for some seconds, and end all processes."""
        self._closed = True
        slots = list(self._slots.values())
        tasks = [*self._looking, *(slot.loading for slot in slots if slot.loading is not None)]
        for task in tasks:
            task.cancel()
        workers = [slot.worker for slot in slots if slot.worker is not None]
        await asyncio.gather(*tasks, *(worker.stop(patience) for worker in workers), return_exceptions=True)

    def names(self) -> list[str]:
        """All that a request may name, the server's own models first."""
        return [name for name, _, _ in self._names]

    def describe(self, name: str) -> Description:
        """Raises Refused (not_found)."""
        entry, adapter = self._names.find(name)
        slot = self._slots.get(entry.path) or _Slot(entry)
        worker, facts = slot.worker, slot.seen
        state = "loaded" if slot.ready else "unloaded" if slot.loading is None else "loading"
        beat = None if worker is None else worker.beat
        return Description(
            name=f"{entry.name}:{adapter}" if adapter else entry.name,
            base=entry.name if adapter else None,
            state=state,
            created=_created(entry.path),
            bytes=entry.bytes,
            memory=0 if beat is None else beat.memory,
            context=self._expected(entry) if facts is None else facts.context,
            pinned=entry.pinned,
            facts=facts,
        )

    def _expected(self, entry: Entry) -> int | None:
        """Tokens of a context that has not been allocated yet."""
        asked, trained = self.settings.context, entry.trained_context
        return trained if trained is None or not isinstance(asked, int) else min(asked, trained)

    def workers(self) -> dict[str, Worker]:
        """Of all models that are loaded or being loaded, by name."""
        return {slot.entry.name: slot.worker for slot in self._slots.values() if slot.worker is not None}

    @asynccontextmanager
    async def use(self, name: str) -> AsyncGenerator[Model, None]:
        """A loaded model, which stays loaded meanwhile. Raises Refused: not_found, memory, engine."""
        async with self._held(name) as (slot, adapter):
            while not slot.ready:
                task = self._begin(slot)
                await asyncio.wait([task])
                _raise(task)
            assert slot.worker is not None
            assert slot.text is not None
            slot.seen = slot.worker.facts  # it may have been begun again since, with another context
            slot.text.context = slot.seen.context
            yield Model(slot.entry.name, adapter, slot.worker, slot.text)

    async def loading(self, name: str) -> AsyncGenerator[tuple[int, int], None]:
        """Have a model loaded, and say now and then (layers done, of how many) until it is. Raises as `use`."""
        async with self._held(name) as (slot, _):
            while not slot.ready:
                task = self._begin(slot)
                await asyncio.wait([task], timeout=_LOOK)
                if task.done():
                    _raise(task)
                else:
                    yield (0, 0) if slot.worker is None else slot.worker.progress

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncGenerator[tuple[_Slot, str], None]:
        """A slot that is not unloaded meanwhile, and the adapter."""
        entry, adapter = self._names.find(name)
        slot = self._slot(entry)
        slot.users += 1
        try:
            yield slot, adapter
        finally:
            slot.users -= 1
            slot.last_used = time.monotonic()
            if not slot.users:
                self._released.set()
                self._released = asyncio.Event()

    def _slot(self, entry: Entry) -> _Slot:
        slot = self._slots.setdefault(entry.path, _Slot(entry))
        slot.entry = entry  # it may have adapters that came later
        return slot

    # Beside models

    def entry(self, name: str) -> Entry:
        """A model that is no adapter. Raises Refused."""
        found, adapter = self._names.find(name)
        if adapter:
            raise Refused(f"{name} is an adapter: name its model, {found.name}", field="model")
        return found

    def predicted(self, name: str) -> int:
        """Bytes of a model in memory. Raises Refused."""
        entry, _ = self._names.find(name)
        return self._predicted(self._slots.get(entry.path) or _Slot(entry))

    async def generation_config(self, name: str) -> Mapping[str, Any]:
        """What the makers of a model recommend for it, loaded or not. Raises Refused."""
        entry, _ = self._names.find(name)
        try:
            checkpoint = await asyncio.to_thread(open_checkpoint, entry.path)
        except PartitaError as error:
            raise Refused(str(error), "engine", field=error.field) from None
        return checkpoint.generation_config

    async def unload(self, name: str) -> None:
        """Give a model's memory back now. Raises Refused: conflict while somebody uses it, or where it is pinned."""
        entry, _ = self._names.find(name)
        slot = self._slots.get(entry.path)
        if slot is None or slot.worker is None:
            return
        if slot.entry.pinned:
            raise Refused(f"{entry.name} is pinned: start the server without --pin to unload it", "conflict")
        async with self._changing:
            if slot.users or slot.loading is not None:
                raise Refused(f"{entry.name} is being used: wait until its replies end, or stop them", "conflict")
            if slot.worker is not None:
                await self._unload(slot)

    def free(self) -> int:
        """Bytes of memory that nobody has, and nobody was promised."""
        return self._available() - self.guests.bytes

    def present(self, but: str = "") -> list[str]:
        """Names of the models that take memory."""
        return [slot.entry.name for slot in self._slots.values() if slot.present and slot.entry.name != but]

    def idle_bytes(self) -> int:
        """Of the models that would be unloaded for somebody else."""
        beats = [slot.worker.beat for slot in self._slots.values() if slot.idle and slot.worker is not None]
        return sum(beat.memory for beat in beats if beat is not None)

    @asynccontextmanager
    async def making_room(self) -> AsyncGenerator[Callable[[], Awaitable[bool]], None]:
        """For a guest: nothing is loaded meanwhile. What is given unloads the idle model that was used least recently,
        and says whether there was one."""
        async with self._changing:
            yield lambda: self._unload_one(None)

    async def put_adapter(self, path: Path, name: str, folder: str | None) -> str | None:
        """Have a model with an adapter from now on, whether it is loaded or not; None: no longer. What requests name,
        None where there is no such model here. Raises Refused."""
        entry = self._names.put_adapter(path, name, folder)
        if entry is None:
            return None
        slot = self._slots.get(path)
        try:
            if slot is not None:
                slot.entry = entry
                if slot.worker is not None:
                    await slot.worker.put_adapter(name, folder)
        except Refused:
            self._names.put_adapter(path, name, None)
            raise
        return f"{entry.name}:{name}"

    def _begin(self, slot: _Slot) -> asyncio.Task[None]:
        """The one task that loads a model."""
        if self._closed:
            raise Refused("the server is shutting down", "engine", retry_after=10)
        if slot.loading is None:
            slot.loading = asyncio.create_task(self._load(slot))
            slot.loading.add_done_callback(lambda task: self._loaded(slot, task))
        return slot.loading

    def _loaded(self, slot: _Slot, task: asyncio.Task[None]) -> None:
        slot.loading, slot.last_used = None, time.monotonic()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.warning("%s was not loaded: %s", slot.entry.name, error)

    async def _load(self, slot: _Slot) -> None:
        if slot.worker is not None:
            await slot.worker.rest()  # others may be loaded meanwhile
        deadline = time.monotonic() + self._patience
        while not slot.ready:
            released = self._released
            try:
                await self._load_now(slot)
            except Refused as error:
                left = deadline - time.monotonic()
                if error.kind != "memory" or left <= 0 or not self._in_the_way(slot):
                    raise
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await released.wait()

    async def _load_now(self, slot: _Slot) -> None:
        """With what memory there is, that of idle models included. Raises Refused."""
        async with self._changing:
            while not slot.ready:
                await self._make_room(slot)
                try:
                    await self._start_worker(slot)
                except Refused as error:
                    if error.kind != "memory" or not await self._unload_one(slot):
                        raise

    def _in_the_way(self, slot: _Slot) -> bool:
        """Whether a model takes memory that will be idle once nobody uses it."""
        return any(each.present and not each.entry.pinned for each in self._slots.values() if each is not slot)

    async def _start_worker(self, slot: _Slot) -> None:
        """The process and the text side of a model, at the same time."""
        entry, worker = slot.entry, slot.worker
        if worker is None or worker.state == "stopped":
            path, adapters = str(entry.path), dict(entry.adapters)
            load = msgspec.structs.replace(self.settings, model=path, adapters=adapters)
            worker = slot.worker = self._start(load)
        try:
            slot.seen, text = await asyncio.gather(worker.start(), self._opened(slot))
        except PartitaError as error:  # in its files; a process says Refused
            await worker.stop(0.0)
            slot.worker = None
            raise Refused(str(error), "engine", field=error.field) from None
        if slot.seen.note is not None:
            _log.warning("%s: %s", entry.name, slot.seen.note)
        slot.text = text

    async def _opened(self, slot: _Slot) -> ModelText:
        if slot.text is not None:
            return slot.text
        entry = slot.entry
        return await asyncio.to_thread(ModelText.open, entry.name, entry.path, context=0, endless=entry.endless)

    async def _make_room(self, slot: _Slot) -> None:
        """Unload what is idle until a model's weights fit. Raises Refused where what is in use leaves too little.

        A model that is alone is tried in any case: its process knows better what there is.
        """
        needed = self._predicted(slot) + RESERVE
        while (free := self.free()) < needed:
            if await self._unload_one(slot):
                continue
            others = [*self.present(slot.entry.name), *self.guests.names]
            if others:
                raise Refused(
                    f"{slot.entry.name} needs {memory_size(needed)} of memory, {memory_size(free)} are free beside "
                    f"{', '.join(others)}, which stay loaded while they are used",
                    "memory",
                    retry_after=10,
                )
            return

    def _predicted(self, slot: _Slot) -> int:
        """Bytes of a model in memory: what it took the last time, else what its files have."""
        if slot.seen is not None:
            return slot.seen.bytes
        widened = self.settings.dtype == "float32" and slot.entry.path.suffix != ".gguf"  # most are stored in 16 bits
        return slot.entry.bytes * (2 if widened else 1)

    async def _unload_one(self, keep: _Slot | None) -> bool:
        """Unload the idle model that was used least recently; whether there was one."""
        idle = [slot for slot in self._slots.values() if slot is not keep and slot.idle]
        if not idle:
            return False
        await self._unload(min(idle, key=lambda slot: slot.last_used))
        return True

    async def _unload(self, slot: _Slot) -> None:
        """Of a model that is idle; who asks for it meanwhile has it loaded again."""
        assert slot.worker is not None
        _log.info("unloading %s", slot.entry.name)
        slot.text = None
        await slot.worker.stop()
        slot.worker = None
        gc.collect()  # a tokenizer with a large vocabulary is not left until somebody does

    async def _revive(self) -> None:
        """Load pinned models again whose process has ended: somebody may wait for `/health` before asking for one."""
        while True:
            await asyncio.sleep(_REVIVE)
            for slot in list(self._slots.values()):
                if slot.entry.pinned and slot.seen is not None and not slot.ready:
                    self._begin(slot)

    async def _expire(self, ttl: float) -> None:
        while True:
            await asyncio.sleep(min(ttl / 2, _EXPIRE))
            async with self._changing:
                for slot in list(self._slots.values()):
                    if slot.idle and time.monotonic() - slot.last_used >= ttl:
                        await self._unload(slot)


def _raise(task: asyncio.Task[None]) -> None:
    """What ended a load, if it failed."""
    if task.cancelled():
        raise Refused("the server is shutting down", "engine", retry_after=10)
    task.result()


def _created(path: Path) -> int:
    with suppress(OSError):
        return int(path.stat().st_mtime)
    return 0
