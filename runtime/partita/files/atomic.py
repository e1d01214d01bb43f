"""Folders and files that replace what was there, whole or not at all: written beside their place, flushed, renamed.

For one writer at a time, who owns the place (`alone` sees to it); `partita_convert.atomic` is for places that must be
new. Invariants: after a crash the old one is there, or the new one, or for a folder in one short moment neither but
never a part; what killed writers left goes with the next write; where a link stands it stays, and what it leads to is
replaced.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    import numpy as np

LOCK = ".lock"
"""In a folder that is somebody's alone."""
_MARK = ".partial-"
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})  # what such a file system says


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `target` when the block ends well. DataError where the disk refuses."""
    with _beside(target) as partial:
        partial.mkdir()
        yield partial
        for path in (*partial.rglob("*"), partial):
            flush(path)
        place = _resolved(target)
        if place.exists():
            shutil.rmtree(place)
        os.rename(partial, place)


@contextmanager
def whole_file(target: Path, *, private: bool = False) -> Iterator[Path]:
    """The same for a file, which the block must make. private: it is there, empty and its owner's alone, in a folder
    that must be there; else the folder is made."""
    with _beside(target, make=not private) as partial:
        if private:
            partial.touch(0o600, exist_ok=False)
        yield partial
        flush(partial)
        os.replace(partial, _resolved(target))


@contextmanager
def _beside(target: Path, make: bool = True) -> Iterator[Path]:
    partial = None
    try:
        place = _resolved(target)
        partial = place.parent / f".{place.name}{_MARK}{uuid.uuid4().hex[:8]}"
        if make:
            place.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        flush(place.parent)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            remove(partial)


@contextmanager
def alone(place: Path, refusal: str) -> Iterator[None]:
    """Be the only one in such a block for `place`, a file or a folder that is there; DataError(refusal) for any other.

    What holds a place ends with its process, however it ends. Where a file system has no locks, nobody is refused.
    """
    from filelock import FileLock, Timeout

    file = _lock_of(place)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(refusal) from None
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise DataError(f"{place} cannot be written: {error.strerror or error}: choose another place") from error
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # before it is let go: who has opened it meanwhile sees that it is not the one
                file.unlink()
            lock.release()


def _lock_of(place: Path) -> Path:
    """In a folder; beside a file, which is another one after each write. The same by whatever link it is reached."""
    place = _resolved(place)
    return place / LOCK if place.is_dir() else place.parent / f".{place.name}.lock"


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`, nobody writing there now."""
    for path in folder.glob(f".*{_MARK}*"):
        remove(path)


def remove_leftovers_of(file: Path) -> None:
    """Remove what killed writers of one file left, nobody writing it now."""
    file = _resolved(file)
    for path in file.parent.glob(f".{glob.escape(file.name)}{_MARK}*"):
        remove(path)


def remove(path: Path) -> None:
    """Whatever is there, as far as it can be."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """fsync, for files and, where the system can, for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(path: Path, values: Mapping[str, np.ndarray]) -> None:
    """A safetensors file. OSError where the disk refuses."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, path, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
