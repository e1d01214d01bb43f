"""What fine-tuning leaves in the data folder, and nowhere else: uploaded data, and a folder for each run.

    tuning/data/ID/about.json, data.jsonl | data.txt        as it was uploaded
    tuning/ID/record.json                                   what is known of the run
    tuning/ID/data.jsonl | data.txt                         its data: a run needs no upload to go on
    tuning/ID/out/                                          as `partita finetune --out` leaves it

Not here: processes. Invariants: an id is made here and is looked up, so nothing that a request says becomes a path;
everything is readable by its owner alone; a record is replaced whole or not at all.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from partita.errors import DataError
from partita.files.atomic import remove, whole_file

from ...asked import Refused
from .frames import Checked, Example, Sample

SUFFIXES = (".jsonl", ".txt")
MAX_DATA = 16 << 20
"""Bytes of an upload: a body of 32 MiB holds so much as base64."""
MOST_UPLOADS = 50
POINTS = 600
"""Of a curve that is shown."""
METRICS, ADAPTER = "metrics.jsonl", "adapter_config.json"
_ID = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")

State = Literal["running", "done", "stopped", "failed", "interrupted"]


class Upload(msgspec.Struct, frozen=True):
    """name: of the file, as it was called. kind, rows, characters, examples: as in `frames.Checked`."""

    id: str
    name: str
    bytes: int
    created: float
    kind: str
    rows: int
    characters: int
    examples: list[Example]


class Record(msgspec.Struct):
    """A run. model: its name in the registry; path: of its files. data: name of the upload. settings: what a person
    chose. used: whether its adapter is a model's. seconds: of all its processes. message: why it ended, where that is
    not plain. ready, ended: the frames' fields."""

    id: str
    name: str
    model: str
    path: str
    data: str
    rows: int
    suffix: str
    settings: dict[str, Any]
    created: float
    state: State = "running"
    used: bool = False
    seconds: float = 0.0
    step: int = 0
    steps: int = 0
    message: str | None = None
    field: str | None = None
    ready: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None
    samples: list[Sample] = []
    notes: list[str] = []


T = TypeVar("T")


class Store:
    """folder: of everything here; made, for its owner alone, when something is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # Data

    def uploads(self) -> list[Upload]:
        """The newest first."""
        found = [self._read(path, Upload) for path in self._ids(self.folder / "data", "about.json")]
        return sorted((each for each in found if each is not None), key=lambda each: -each.created)

    def upload(self, id: str) -> Upload:
        """Raises Refused."""
        found = self._read(self.folder / "data" / id / "about.json", Upload) if _ID.fullmatch(id) else None
        if found is None:
            raise Refused("this data is not here any more: upload it again", "not_found", field="data")
        return found

    def begin_upload(self, name: str, content: bytes) -> Path:
        """Its file, not yet listed. Raises Refused."""
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES:
            raise Refused("the data must be a .jsonl or a .txt file", field="name")
        if len(content) > MAX_DATA:
            raise Refused(f"the data is larger than {MAX_DATA >> 20} MiB", "too_large", field="data")
        if len(self.uploads()) >= MOST_UPLOADS:
            raise Refused(
                f"there are {MOST_UPLOADS} files of data already: remove one that is not needed", field="data"
            )
        path = self._folder("data", _new()) / f"data{suffix}"
        with _ours():
            path.touch(0o600)
            path.write_bytes(content)
        return path

    def keep_upload(self, path: Path, name: str, found: Checked) -> Upload:
        parts = found.kind, found.rows, found.characters, found.examples
        upload = Upload(path.parent.name, name, path.stat().st_size, time.time(), *parts)
        self._write(path.parent / "about.json", upload)
        return upload

    def drop_upload(self, id: str) -> None:
        remove(self.folder / "data" / self.upload(id).id)

    # Runs

    def records(self) -> list[Record]:
        """The newest first."""
        found = [self._read(path, Record) for path in self._ids(self.folder, "record.json")]
        return sorted((each for each in found if each is not None), key=lambda each: -each.created)

    def begin(self, name: str, model: str, path: Path, upload: Upload, settings: Mapping[str, Any]) -> Record:
        """A new run with its own copy of the data."""
        suffix = Path(upload.name).suffix.lower()
        source = self.folder / "data" / upload.id / f"data{suffix}"
        parts = name, model, str(path), upload.name, upload.rows, suffix
        record = Record(_new(), *parts, settings=dict(settings), created=time.time())
        folder = self._folder(record.id)
        with _ours():
            try:
                os.link(source, folder / source.name)
            except OSError:  # a file system without links
                shutil.copyfile(source, folder / source.name)
        self.write(record)
        return record

    def write(self, record: Record) -> None:
        self._write(self.folder / record.id / "record.json", record)

    def drop(self, record: Record) -> None:
        remove(self.folder / record.id)

    def data_of(self, record: Record) -> Path:
        return self.folder / record.id / f"data{record.suffix}"

    def out(self, record: Record) -> Path:
        return self.folder / record.id / "out"

    def has_adapter(self, record: Record) -> bool:
        return (self.out(record) / ADAPTER).is_file()

    def rows(self, record: Record) -> list[dict[str, Any]]:
        """Of metrics.jsonl, those that are whole."""
        found: list[dict[str, Any]] = []
        with suppress(OSError):
            for line in (self.out(record) / METRICS).read_bytes().splitlines():
                with suppress(msgspec.DecodeError):
                    row = msgspec.json.decode(line)
                    if isinstance(row, dict) and isinstance(row.get("step"), int):
                        found.append(row)
        return found

    # Files

    def _ids(self, folder: Path, name: str) -> Iterator[Path]:
        with suppress(OSError):
            for each in sorted(folder.iterdir()):
                if _ID.fullmatch(each.name):
                    yield each / name

    def _folder(self, *parts: str) -> Path:
        """A folder in ours, made where it is not there yet."""
        place = self.folder
        with _ours():
            place.mkdir(0o700, parents=True, exist_ok=True)
            for part in parts:
                place = place / part
                place.mkdir(0o700, exist_ok=True)
        return place

    def _read(self, path: Path, kind: type[T]) -> T | None:
        """None for what is not there, or is damaged."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError, ValueError):
            return None

    def _write(self, path: Path, value: Any) -> None:
        with _ours(), whole_file(path, private=True) as partial:
            partial.write_bytes(msgspec.json.encode(value))


def checked_name(name: str, known: Sequence[str]) -> str:
    """Of a run and its adapter. known: names that the model's adapters have. Raises Refused."""
    if not _NAME.fullmatch(name):
        raise Refused("`name` must be 1 to 48 letters, digits, dots, dashes or underscores", field="name")
    if name in known:
        raise Refused(f"`name` {name} is taken by another run or adapter of this model", field="name")
    return name


def free_name(wanted: str, known: Sequence[str]) -> str:
    """A name out of that of a file, with a number where it is taken."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(wanted).stem).strip("-._")[:40] or "run"
    return next(name for i in range(1, len(known) + 2) if (name := base if i == 1 else f"{base}-{i}") not in known)


def thinned(points: Sequence[tuple[int, float]], most: int = POINTS) -> list[tuple[int, float]]:
    """A curve of so many points at most: means of neighbours, each at the last one's step."""
    width = -(-len(points) // most)
    if width <= 1:
        return list(points)
    groups = [points[at : at + width] for at in range(0, len(points), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _new() -> str:
    return secrets.token_hex(8)


@contextmanager
def _ours() -> Iterator[None]:
    """What the disk refuses, as a refusal that a person can act on."""
    try:
        yield
    except DataError as error:
        raise Refused(str(error), "engine") from None
    except OSError as error:
        raise Refused(f"the data folder cannot be written: {error.strerror or error}", "engine") from None
