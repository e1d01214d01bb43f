"""Files and folders that are there whole or not at all: written under a temporary name beside their place, flushed to
the disk, renamed. The one place where that is done.

Not here: what is written, and safetensors (`safetensors_writer`). Invariants: after a crash the old one is there, or
the new one, or for a folder in one short moment neither but never a part; where a link stands it stays, and what it
leads to is replaced; a file that is replaced keeps its permissions. What a killed process left goes with the next write
to the same place, and what a living one writes is not touched: whatever is temporary lies in a folder of its own beside
a lock that ends with its process, so nothing is judged by names or ages.

    .NAME.partial-0123abcd/lock     held by whoever writes
    .NAME.partial-0123abcd/new      becomes NAME
    .NAME.partial-0123abcd/old      a folder NAME that was replaced
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import NO_SPACE, DataError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".lock"
"""In a folder that is somebody's alone."""
_MARK = ".partial-"
_HELD = "lock"
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})  # what such a file system says


@contextmanager
def whole_file(target: Path, *, replace: bool = True, private: bool = False) -> Generator[Path, None, None]:
    """An empty temporary file that becomes `target` when the block ends well, and vanishes when it does not.

    replace: what stands there; else it must be new. private: readable by its owner alone, in a folder that must be
    there; else the folder is made. DataError: the disk refuses, or `target` must be new and is not.
    """
    with _beside(target, replace=replace, make=not private) as (place, partial):
        partial.touch(0o600 if private else 0o666, exist_ok=False)
        yield partial
        flush(partial)
        if place.is_file() and not private:
            shutil.copymode(place, partial)
        _refuse_unless(replace, target)
        os.replace(partial, place)


@contextmanager
def whole_folder(target: Path, *, replace: bool = True) -> Generator[Path, None, None]:
    """The same for a folder."""
    with _beside(target, replace=replace) as (place, partial):
        partial.mkdir()
        yield partial
        for path in (*partial.rglob("*"), partial):
            flush(path)
        _refuse_unless(replace, target)
        if place.exists():
            os.rename(place, partial.parent / "old")
        os.rename(partial, place)


@contextmanager
def scratch_folder(place: Path) -> Generator[Path, None, None]:
    """A folder beside `place`, for work on the way to it, which vanishes when the block ends. DataError as above."""
    with _beside(place, replace=True) as (_, partial):
        partial.mkdir()
        yield partial


def remove_whole(folder: Path) -> None:
    """Remove a folder that readers never meet half of. DataError where the disk refuses."""
    with _beside(folder, replace=True) as (place, partial):
        os.rename(place, partial)


def refuse_existing(place: Path) -> None:
    """DataError if something is there, a broken link included."""
    if os.path.lexists(place):
        raise DataError(f"{place} exists already; choose another name or remove it")


def refuse_unwritable(place: Path) -> None:
    """DataError if something is there, or if nothing can be made there: asked before work that takes long."""
    refuse_existing(place)
    if not os.access(above := _folder_above(place.absolute().parent, place), os.W_OK | os.X_OK):
        raise DataError(f"{place} cannot be written: no permission to write in {above}")


def _refuse_unless(replace: bool, target: Path) -> None:
    """Looked for again before the rename: somebody else may have made it meanwhile."""
    if not replace:
        refuse_existing(target)


@contextmanager
def _beside(target: Path, *, replace: bool, make: bool = True) -> Generator[tuple[Path, Path], None, None]:
    """Where `target` is in truth, and a name in a temporary folder beside it, which is locked and gone afterwards."""
    _refuse_unless(replace, target)
    place, claimed = _resolved(target) if replace else target.absolute(), None
    try:
        if make:
            _folder_above(place.parent, target)
            place.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place.parent, place.name)
        claimed = _claim(place)
        yield place, claimed[0] / f"new{place.suffix}"
        flush(place.parent)
    except OSError as error:
        todo = ": free some space, or choose another place" if error.errno in NO_SPACE else ""
        raise DataError(f"{target} cannot be written: {error.strerror or error}{todo}") from error
    finally:
        if claimed is not None:
            _give_up(*claimed)


def _folder_above(folder: Path, target: Path) -> Path:
    """The first of `folder` and those above it that exists. DataError where that is a file."""
    above = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    if not above.is_dir():
        raise DataError(f"{target} cannot be written: {above} is not a folder")
    return above


def _claim(place: Path) -> tuple[Path, BaseFileLock | None]:
    """A new temporary folder and the lock in it. One that a sweep caught before it was locked is given up."""
    for _ in range(100):
        folder = place.parent / f".{place.name}{_MARK}{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir()
            lock = _lock(folder / _HELD)
        except KeyboardInterrupt:  # nobody else knows of the folder yet
            remove(folder)
            raise
        except OSError as error:
            if error.errno in _NO_LOCKS and folder.is_dir():
                return folder, None  # what is left on such a file system stays
            remove(folder)
            raise
        if lock is not None and os.path.lexists(folder / _HELD):
            return folder, lock
        _give_up(folder, lock)
    raise DataError(f"{place.parent}: another process removes temporary files here; choose another place to write to")


def _give_up(folder: Path, lock: BaseFileLock | None) -> None:
    """Remove a temporary folder, the lock in it last: until then nobody else takes it."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name != _HELD:
                remove(path)
    if lock is not None:
        lock.release()
    remove(folder)


def _lock(file: Path) -> BaseFileLock | None:
    """A lock that is held, None where another process holds it. OSError as the file system gives it."""
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except NotImplementedError as error:
        raise OSError(errno.ENOSYS, str(error)) from error
    return lock


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in `folder`; name: on the way to this file or folder in it only."""
    for path in sorted(folder.glob(f".{'*' if name is None else glob.escape(name)}{_MARK}????????")):
        if path.is_symlink() or not path.is_dir():
            continue
        with suppress(OSError):
            lock = _lock(path / _HELD)
            if lock is not None:
                _give_up(path, lock)


def remove_leftovers_of(place: Path) -> None:
    """The same for one file or folder, through links."""
    place = _resolved(place)
    remove_leftovers(place.parent, place.name)


@contextmanager
def alone(place: Path, refusal: str) -> Generator[None, None, None]:
    """Be the only one in such a block for `place`, a file or a folder that is there; DataError(refusal) for any other.

    What holds a place ends with its process, however it ends. Where a file system has no locks, nobody is refused.
    """
    file, lock = _lock_of(place), None
    try:
        lock = _lock(file)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise DataError(f"{place} cannot be written: {error.strerror or error}: choose another place") from error
    else:
        if lock is None:
            raise DataError(refusal)
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):  # before it is let go: who has opened it meanwhile sees that it is not the one
                file.unlink()
            lock.release()


def _lock_of(place: Path) -> Path:
    """In a folder; beside a file, which is another one after each write. The same by whatever link it is reached."""
    place = _resolved(place)
    return place / LOCK if place.is_dir() else place.parent / f".{place.name}.lock"


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def remove(path: Path) -> None:
    """Whatever is there, as far as it can be."""
    if path.is_dir() and not path.is_symlink():
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
