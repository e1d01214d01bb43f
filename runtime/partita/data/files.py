"""Files of training data: which file is which split, and the records in them with their places. Knows no tokens.

    a folder       train.jsonl, and valid.jsonl and test.jsonl where they exist (.txt in place of .jsonl too)
    a .jsonl file  one record a line
    a .txt file    one long text
    hf:owner/name  a data set of the Hub (.jsonl, or .parquet where pyarrow is installed)

A bad record is one DataError that names its file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files.paths import own
from ..sources import datasets as data_hub
from ..sources.store import Progress, Silent
from .records import Record, parse, parse_line

SUFFIXES = (".jsonl", ".txt", ".parquet")
BLOCK = 1 << 20  # characters of a long text that are tokenized at once
_HINT = "give a folder with train.jsonl, a .jsonl or .txt file, or hf:owner/name"


@dataclass(frozen=True)
class DataFiles:
    """The files of each split, those for training never empty."""

    train: tuple[Path, ...]
    valid: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()

    @property
    def every(self) -> tuple[Path, ...]:
        return (*self.train, *self.valid, *self.test)


def find(source: str | Path, *, progress: Progress | None = None, offline: bool = False) -> DataFiles:
    """The files that DATA stands for. Raises DataError, and SourceError for what the Hub cannot give."""
    if str(source).startswith("hf:"):
        fetched = data_hub.fetch(str(source), progress or Silent(), offline=offline)
        return DataFiles(**{split: tuple(paths) for split, paths in fetched.items()})
    try:
        path = own(source)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # too long
        raise DataError(f"{str(source)[:200]!r} cannot be a path ({error}): {_HINT}") from error
    if is_folder:
        return _folder(path)
    if not is_file:
        raise DataError(f"{path} does not exist: {_HINT}")
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is neither a .jsonl nor a .txt file: {_HINT}")
    return DataFiles((path,))


def _folder(folder: Path) -> DataFiles:
    found: dict[str, tuple[Path, ...]] = {}
    for split, names in data_hub.SPLITS.items():
        paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES for name in names]
        found[split] = tuple(path for path in paths if path.is_file())
        if len(found[split]) > 1:
            raise DataError(f"{folder} holds {' and '.join(path.name for path in found[split])}: keep one of them")
    if not found["train"]:
        raise DataError(f"{folder} holds no train.jsonl: {_HINT}")
    return DataFiles(**found)


@dataclass(frozen=True)
class Found:
    """A record, where it stands for a message, and how many bytes of its file are through with it."""

    record: Record
    place: str
    through: int


def records(path: Path) -> Iterator[Found]:
    """The records of a .jsonl or .parquet file in their order. Lines of white space hold none."""
    if path.suffix == ".parquet":
        yield from _rows(path)
        return
    through = 0
    for number, line in enumerate(_lines(path), 1):
        through += len(line)
        if line.strip():
            place = f"{path} line {number}"
            yield Found(_placed(parse_line, line, place), place, through)


def count(path: Path) -> int:
    """Number of records, without reading into them."""
    if path.suffix == ".parquet":
        return int(_parquet(path).metadata.num_rows)
    return sum(1 for line in _lines(path) if line.strip())


def blocks(path: Path) -> list[str]:
    """A text file in blocks of about BLOCK characters, cut after line ends. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start + 1})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise DataError(f"{path} is empty")
    parts: list[str] = []
    at = 0
    while at < len(text):
        end = text.rfind("\n", at, at + BLOCK) + 1 if at + BLOCK < len(text) else len(text)
        end = end or at + BLOCK
        parts.append(text[at:end])
        at = end
    return parts


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _rows(path: Path) -> Iterator[Found]:
    size, file = path.stat().st_size, _parquet(path)
    total = max(1, int(file.metadata.num_rows))
    for number, row in enumerate(_values(path, file), 1):
        place = f"{path} row {number}"
        yield Found(_placed(parse, row, place), place, size * number // total)


def _values(path: Path, file: Any) -> Iterator[Any]:
    try:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _parquet(path: Path) -> Any:
    try:
        library = import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(f"{path}: `pip install pyarrow` to read .parquet files, or give .jsonl") from error
    try:
        return library.ParquetFile(path)
    except (OSError, ValueError) as error:  # the library's own errors are among them
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot read parquet file: {' '.join(str(error).split())}")


def _placed(read: Any, value: Any, place: str) -> Record:
    try:
        return read(value)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
