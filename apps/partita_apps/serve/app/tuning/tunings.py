"""All fine-tuning of a server: uploads, runs, the one that goes on, and adapters that became models.

Not here: HTTP (`endpoints`), a run's process (`live`), files (`store`). Invariants: one run at a time on a data folder,
also where several servers share it; a run whose server died says so and can be gone on with; an adapter that was put to
use is one again when the server is started again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from partita.errors import DataError
from partita.files.atomic import alone, remove
from partita.finetuning.settings import Settings

from ...asked import Refused
from ...names import Entry
from .frames import Check, Checked, Predict, Predicted
from .live import Live, Room, answer
from .store import Record, Store, Upload, checked_name, free_name

CHOSEN = ("rank", "steps", "epochs", "learning_rate", "max_length", "batch_size", "accumulate", "sample")
"""Settings that a person chooses here; the others are those of `partita finetune`."""
MACHINE = ("backend", "device", "dtype", "threads")
"""Settings that are the server's."""
_log = logging.getLogger(__name__)


@runtime_checkable
class Models(Room, Protocol):
    """What is used of the registry."""

    def entry(self, name: str) -> Entry: ...
    def idle_bytes(self) -> int: ...
    async def put_adapter(self, path: Path, name: str, folder: str | None) -> str | None: ...


def defaults() -> dict[str, Any]:
    """Of what a person chooses; None: decided when model and data are known."""
    found = {each.name: each.default for each in fields(Settings) if each.name in CHOSEN}
    return {name: None if value is MISSING else value for name, value in found.items()}


class Tunings:
    """An asynchronous context beside the registry's: adapters come back when it begins; the run is stopped, and saved,
    when it ends. changed: told the id of a run, or of an upload, whenever one of them is another."""

    def __init__(self, folder: Path, models: Models, changed: Callable[[str], None] = lambda id: None) -> None:
        self.store, self._models, self._changed = Store(folder), models, changed
        self.live: Live | None = None
        self._running: asyncio.Task[None] | None = None
        self._predicting: asyncio.Task[Any] | None = None
        self.leaving = False

    async def __aenter__(self) -> Self:
        for record in self.store.records():
            if record.state == "running":
                self._find_ended(record)
            if record.used and self.store.has_adapter(record):
                try:
                    await self._put(record)
                except Refused as error:
                    _log.warning("the adapter %s is not used: %s", record.name, error)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None):
        await self.close()

    def leave(self) -> None:
        """The server is about to end: nobody listens to a run any more."""
        self.leaving = True
        if self.live is not None:
            self.live.log.wake()

    async def close(self, patience: float = 30.0) -> None:
        """Stop the run, which has some seconds to save."""
        self.leave()
        if self._predicting is not None:
            self._predicting.cancel()
        running, live = self._running, self.live
        if running is None or live is None:
            return
        live.stop()
        done, _ = await asyncio.wait([running], timeout=patience)
        if not done:
            live.kill()
            await asyncio.wait([running], timeout=5.0)

    # Data

    async def upload(self, name: str, content: bytes) -> Upload:
        """Keep a file that a run could read. Raises Refused, which names the line that it could not."""
        path = await asyncio.to_thread(self.store.begin_upload, name, content)
        try:
            found = await answer(Check(str(path), name), Checked)
            upload = self.store.keep_upload(path, name, found)
        except BaseException:
            remove(path.parent)
            raise
        self._changed(upload.id)
        return upload

    def drop_upload(self, id: str) -> None:
        self.store.drop_upload(id)
        self._changed(id)

    # Before a run

    async def predict(self, model: str, upload: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What a run would take. Only the last one that is asked for is answered: one before it is refused."""
        found = self.store.upload(upload)
        path = self.store.folder / "data" / found.id / f"data{Path(found.name).suffix.lower()}"
        settings = self._settings(self._models.entry(model), path, chosen)
        if self._predicting is not None:
            self._predicting.cancel()
        task = self._predicting = asyncio.create_task(answer(Predict(settings, found.name), Predicted))
        try:
            frame = await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            if self._predicting is not task:
                raise Refused("another prediction was asked for", "conflict") from None
            raise
        idle = self._models.idle_bytes()
        return {"prediction": frame, "idle": idle, "busy": self.live is not None}

    def _settings(self, entry: Entry, data: Path, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that a process is told. Raises Refused, which names the field."""
        machine = {name: getattr(self._models.settings, name) for name in MACHINE}
        given = {name: value for name, value in chosen.items() if value not in (None, [], ())}
        sample = given.get("sample")
        if sample is not None:
            given["sample"] = tuple(sample)
        try:
            settings = Settings(model=str(entry.path), data=str(data), **machine, **given)
            _ = settings.rate
        except DataError as error:
            raise Refused(str(error), field=error.field) from None
        return settings.document()

    # Runs

    def find(self, id: str) -> Record:
        """Raises Refused."""
        if self.live is not None and self.live.record.id == id:
            return self.live.record
        found = next((each for each in self.store.records() if each.id == id), None)
        if found is None:
            raise Refused("this run is not here any more", "not_found")
        return found

    def records(self) -> list[Record]:
        live = None if self.live is None else self.live.record
        return [live if live is not None and each.id == live.id else each for each in self.store.records()]

    def start(self, name: str, model: str, upload: str, chosen: Mapping[str, Any]) -> Record:
        """Begin a run. name: of its adapter, "" for one out of the data's. Raises Refused."""
        self._refuse_second()
        entry, data = self._models.entry(model), self.store.upload(upload)
        known = [each.name for each in self.store.records() if each.path == str(entry.path)]
        known += list(entry.adapters)
        name = checked_name(name, known) if name else free_name(data.name, known)
        self._settings(entry, Path(data.name), chosen)  # refused before there is a folder
        record = self.store.begin(name, entry.name, entry.path, data, chosen)
        try:
            self._begin(record, entry)
        except Refused:
            self.store.drop(record)
            raise
        return record

    def resume(self, id: str) -> Record:
        """Go on with a run, exactly where it was saved; from the beginning where it was not. Raises Refused."""
        record = self.find(id)
        self._refuse_second()
        if record.state == "done":
            raise Refused(f"the run {record.name} is done", "conflict")
        entry = self._models.entry(record.model)
        if str(entry.path) != record.path:
            raise Refused(f"{record.model} is another model than this run began with", field="model")
        out = self.store.out(record)
        if not (out / "run.json").is_file():
            remove(out)
        self._begin(record, entry)
        return record

    def stop(self, id: str) -> Record:
        record = self.find(id)
        if self.live is None or self.live.record is not record:
            raise Refused(f"the run {record.name} does not go on", "conflict")
        self.live.stop()
        return record

    async def delete(self, id: str) -> None:
        """With its adapter, which no request may name any more."""
        record = self.find(id)
        if self.live is not None and self.live.record is record:
            raise Refused(f"the run {record.name} goes on: stop it first", "conflict")
        if record.used:
            await self._models.put_adapter(Path(record.path), record.name, None)
        self.store.drop(record)
        self._changed(id)

    async def use(self, id: str) -> str:
        """Make the adapter one that requests may name, and say how. Raises Refused."""
        record = self.find(id)
        if not self.store.has_adapter(record):
            raise Refused(f"the run {record.name} has left no adapter yet: let it end, or stop it", "conflict")
        name = await self._put(record)
        if name is None:
            raise Refused(f"the model {record.model} is not here any more", "not_found", field="model")
        record.used = True
        self.store.write(record)
        self._changed(id)
        return name

    async def _put(self, record: Record) -> str | None:
        return await self._models.put_adapter(Path(record.path), record.name, str(self.store.out(record)))

    def _refuse_second(self) -> None:
        if self.leaving:
            raise Refused("the server is shutting down", "engine", retry_after=10)
        if self.live is not None:
            raise Refused(f"the run {self.live.record.name} goes on: one at a time", "conflict")

    def _begin(self, record: Record, entry: Entry) -> None:
        settings = self._settings(entry, self.store.data_of(record), record.settings)
        place = ExitStack()
        try:
            place.enter_context(alone(self.store.folder, "another server fine-tunes a model: one at a time"))
        except DataError as error:
            raise Refused(str(error), "conflict") from None
        self.live = Live(record, settings, self.store, self._models, lambda: self._changed(record.id))
        self._running = asyncio.create_task(self._go(self.live, place))

    async def _go(self, live: Live, place: ExitStack) -> None:
        try:
            with place:
                await live.go()
        finally:
            self.live = None
        record = live.record
        if record.used and self.store.has_adapter(record):  # it has learnt more since
            with suppress(Refused):
                await self._put(record)
        self._changed(record.id)

    def _find_ended(self, record: Record) -> None:
        """Of a run whose server has ended without a word; nothing where another server goes on with it."""
        with suppress(DataError), alone(self.store.folder, ""):
            record.state, record.message = "interrupted", "the server ended during the run"
            self.store.write(record)
