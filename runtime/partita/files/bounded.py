"""Files that somebody else wrote: which of them are opened, and how much of them is read.

Invariants: only regular files are opened, so nothing waits for a pipe or reads a device; a
file is no larger than its kind may be before a byte of it is read; a link in a model's folder leads to a file of that
folder, or from a snapshot of the Hub's cache to a blob beside it; what is not JSON, nested without end too, is a
ValueError or a CheckpointError and nothing else.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from ..errors import CheckpointError

SETTINGS = 16 << 20
"""Bytes of config.json, generation_config.json, tokenizer_config.json, adapter_config.json and the like, at most. The
largest published ones have 2 MB."""
INDEX = 64 << 20
"""Of the index of a sharded model: a line a tensor. The largest published ones have 10 MB."""
TEMPLATE = 4 << 20
"""Of a chat template's file: 2**20 characters of up to four bytes."""
TENSOR_NAME = 1024
"""Of a tensor's name, in characters. The longest published ones have 100; numbers in them are read as numbers."""
MAX_NESTING = 100
"""Tables within tables of one settings file."""


def find(folder: Path, name: str) -> Path | None:
    """The file `name` of a model's folder; None where there is none.

    CheckpointError: something else than a regular file has that name, or a link leads out of the folder. Within the
    Hub's cache, where every file of `snapshots/COMMIT` is a link into `blobs`, it may lead there.
    """
    path = folder / name
    try:
        kind = path.stat().st_mode
        root, target = folder.resolve(), path.resolve()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RuntimeError) as error:  # no access, a null byte, links in a circle
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(kind):
        raise _not_regular(path, kind)
    if target.is_relative_to(root) or any(target.is_relative_to(blobs) for blobs in _blobs(root)):
        return path
    raise CheckpointError(f"{path} is a link that leads out of its folder: copy the file itself there if it is yours")


def _blobs(root: Path) -> list[Path]:
    """Where the Hub's cache keeps the files of the snapshot that `root` is, or lies in."""
    return [above.parent.parent / "blobs" for above in (root, *root.parents) if above.parent.name == "snapshots"]


def begins_with(path: Path, magic: bytes) -> bool:
    """Whether a regular file that can be read begins with these bytes."""
    try:
        with open_regular(path) as file:
            return file.read(len(magic)) == magic
    except (CheckpointError, OSError):
        return False


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading. CheckpointError for anything else, or where the system refuses."""
    try:
        kind = path.stat().st_mode  # before it is opened: opening a device may do something
        if stat.S_ISREG(kind):
            file = os.fdopen(
                os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
            )
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file
            file.close()
        raise _not_regular(path, kind)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole regular file of at most `limit` bytes. CheckpointError names the file and its size."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= limit:
            try:
                return file.read(limit)
            except OSError as error:
                raise _unreadable(path, error) from error
    raise CheckpointError(f"{path}: {size} bytes are too many for a file of its kind, {limit} are the most")


def read_text(path: Path, limit: int) -> str:
    """The same as text. CheckpointError also for what is not UTF-8."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text (at byte {error.start})") from None


def read_object(path: Path, limit: int = SETTINGS) -> dict[str, Any]:
    """A file that holds a JSON object. CheckpointError names the file and what is wrong with it."""
    return parse_object(read_bytes(path, limit), path.name)


def parse_object(raw: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object whose keys differ and which is nested at most MAX_NESTING deep. CheckpointError begins with
    `what`."""
    try:
        value = parse(raw, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{what}: not JSON: {error.msg} in line {error.lineno}") from None
    except _Twice as error:
        raise CheckpointError(f"{what}: the key {error.args[0]!r} appears twice") from None
    except ValueError as error:
        raise CheckpointError(f"{what}: not JSON text: {error}") from None
    if not is_table(value):
        raise CheckpointError(f"{what}: not a JSON object")
    if nesting(value) > MAX_NESTING:
        raise CheckpointError(f"{what}: tables are nested more than {MAX_NESTING} deep")
    return value


def parse(raw: bytes | str, **options: Any) -> Any:
    """`json.loads`, whose only error is a ValueError: the library's own for what is nested deeper than it can follow
    is none."""
    try:
        return json.loads(raw, **options)
    except RecursionError:
        raise ValueError("nested too deep") from None


def is_table(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether what `parse` gave, or holds, is a JSON object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether it is a JSON array."""
    return isinstance(value, list)


def map_file(path: Path) -> mmap.mmap:
    """A regular file as private memory: arrays over it are writable without a copy, and the file is never written."""
    with open_regular(path) as file:
        try:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{path.name}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise _unreadable(path, error) from error


def forget(data: mmap.mmap, start: int, stop: int) -> None:
    """Whole pages of a mapped file between two bytes leave this process's memory, where the system can do that; what
    was written to them is lost, and what the file has is read again when it is asked for."""
    if hasattr(mmap, "MADV_DONTNEED"):
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            data.madvise(mmap.MADV_DONTNEED, first, last - first)


class _Twice(Exception):
    """A key that a JSON object holds twice: two readers would see two different files."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise _Twice(key)
        table[key] = value
    return table


def nesting(value: Any) -> int:
    """How deep tables and lists lie in one another; not followed further than one level too many."""
    level: list[Any] = [value]
    depth = 0
    while level and depth <= MAX_NESTING:
        level = [x for x in level if is_table(x) or is_list(x)]
        depth += bool(level)
        level = [item for x in level for item in (x.values() if is_table(x) else x)]
    return depth


def _not_regular(path: Path, kind: int) -> CheckpointError:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    what = next((name for test, name in kinds.items() if test(kind)), "a device")
    return CheckpointError(f"{path} is {what}, not a file")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) else error
    return CheckpointError(f"{path}: cannot be read: {reason}")
