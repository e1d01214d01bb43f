"""Outputs that are there whole or not at all: written under a temporary name beside their place, flushed, renamed.

Invariants: nothing that exists is replaced; what a killed process left under a temporary
name is removed by the next one that writes to the same place, and what a living one writes is not touched. A temporary
file or folder is locked by whoever writes it; such a lock ends with its process, so nothing is judged by names or ages.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partita.errors import DataError
from partita.files.atomic import flush, remove

_MARK = ".partial-"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `folder` when the block ends well, and vanishes when it does not.

    DataError: `folder` exists, or the disk refuses.
    """
    with _new(folder, is_folder=True) as partial:
        yield partial


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """The same for a file: it is there, empty, with the user's usual permissions."""
    with _new(path, is_folder=False) as partial:
        yield partial


@contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A temporary sibling of `place` for work on the way to it, which vanishes when the block ends."""
    target, partial, lock = place.absolute(), None, None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        partial, lock = _claim(target, is_folder=True)
        yield partial
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            remove(partial)
        if lock is not None:
            os.close(lock)


@contextmanager
def _new(place: Path, is_folder: bool) -> Iterator[Path]:
    refuse_existing(place)
    target = place.absolute()
    partial, lock = None, None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        partial, lock = _claim(target, is_folder)
        yield partial
        for path in (*partial.rglob("*"), partial) if is_folder else (partial,):
            flush(path)
        refuse_existing(place)  # made by somebody else meanwhile; a file would be replaced without a word
        os.rename(partial, target)
        flush(target.parent)
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            remove(partial)
        if lock is not None:
            os.close(lock)


def refuse_existing(place: Path) -> None:
    """DataError if something is there, a broken link included."""
    if os.path.lexists(place):
        raise DataError(f"{place} exists already; choose another name or remove it")


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left beside `target`, an absolute path."""
    prefix = f".{target.name}{_MARK}"
    for path in sorted(target.parent.iterdir()) if target.parent.is_dir() else ():
        if not path.name.startswith(prefix) or path.is_symlink():
            continue
        try:
            lock = _lock(path)
        except OSError:
            continue
        if lock is not None:
            remove(path)
            os.close(lock)


def _claim(target: Path, is_folder: bool) -> tuple[Path, int | None]:
    """A new temporary sibling and the lock on it. One that a sweep caught before it was locked is given up."""
    for _ in range(100):
        partial = target.parent / f".{target.name}{_MARK}{uuid.uuid4().hex[:8]}"
        if is_folder:
            partial.mkdir()
        else:
            partial.touch(exist_ok=False)
        try:
            lock = _lock(partial)
        except OSError:
            return partial, None  # a file system without locks: what is left there stays
        if lock is not None and os.path.lexists(partial):
            return partial, lock
        if lock is not None:
            os.close(lock)
        remove(partial)
    raise DataError(f"{target.parent}: another process removes temporary files here; choose another place to write to")


def _lock(path: Path) -> int | None:
    """The descriptor that locks a file or folder until it is closed; None if another process holds it or it is gone.

    OSError where the system has no such locks (Windows has none for folders).
    """
    if os.name == "nt":
        raise OSError(errno.ENOTSUP, "no locks on folders")
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
