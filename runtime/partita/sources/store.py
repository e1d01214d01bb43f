"""The folder where fetched models live: where it is, who may write, whether there is room; reports of progress.

Knows nothing of indexes or hubs. A name that a later run can see always stands for a whole model: everything is
written under another name first and renamed under a lock.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import NO_SPACE, SourceError
from ..files.paths import own
from ..units import disk_size

CACHE_VARIABLE = "PARTITA_CACHE"


class Progress(Protocol):
    """What a long fetch reports to its caller. Calls come as start, advance..., done; one piece of work at a time."""

    def start(self, total: int | None, what: str) -> None:
        """A piece of work begins. total: bytes, None when unknown. what: a few words for a person."""
        ...

    def advance(self, n: int) -> None:
        """n more bytes are through."""
        ...

    def done(self) -> None:
        """The piece of work has ended, well or badly."""
        ...


class Silent:
    """A Progress that says nothing."""

    def start(self, total: int | None, what: str) -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def done(self) -> None:
        pass


class Digest(Protocol):
    """What hashlib's functions give."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class StoredModel:
    """One model on disk. name: what a user would type. bytes: on disk. kind: "gguf" or "safetensors"."""

    name: str
    path: Path
    bytes: int
    kind: str


@contextmanager
def reported(progress: Progress, total: int | None, what: str) -> Generator[Progress, None, None]:
    """`start` before the block and `done` after it, whatever happens inside."""
    progress.start(total, what)
    try:
        yield progress
    finally:
        progress.done()


def cache_dir() -> Path:
    """$PARTITA_CACHE, else the platform's cache folder for this user. Not created here."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return own(given).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("partita")


def without_secrets(text: str) -> str:
    """A text whose addresses have no user, password or signature any more."""
    return re.sub(r"([a-z][a-z0-9+.-]*://)(?:[^/\s]*@)?([^\s?#]*)(?:[?#]\S*)?", r"\1\2", text, flags=re.IGNORECASE)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, each once."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def is_no_room(error: BaseException) -> bool:
    """Whether the disk (or a quota, or a limit on file sizes) ended a write, however deep the reason is wrapped."""
    return any(isinstance(e, OSError) and e.errno in NO_SPACE for e in chain(error))


def no_room(what: str, folder: Path) -> SourceError:
    """The error for a write that the disk refused."""
    return SourceError(
        f"{what}: no space left in {folder}: free some (`partita models list` shows what is kept) "
        f"or point {CACHE_VARIABLE} to another disk"
    )


def need_room(folder: Path, size: int, what: str, variable: str = CACHE_VARIABLE) -> None:
    """Raise SourceError unless `size` bytes are free on the disk of `folder` (which must exist)."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise SourceError(
            f"{what} needs {disk_size(size)} in {folder}, {disk_size(free)} are free: free some "
            f"(`partita models list` shows what is kept) or point {variable} to another disk"
        )


def make_folder(folder: Path) -> Path:
    """Create a folder of the cache, or say why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_no_room(error):
            raise no_room(str(folder), folder.parent) from error
        reason = error.strerror or error
        raise SourceError(f"the cache folder {folder} cannot be made ({reason}): set {CACHE_VARIABLE}") from error
    return folder


@contextmanager
def locked(path: Path, progress: Progress, what: str) -> Generator[None, None, None]:
    """Hold the lock file `path` alone. Another process in the same block is waited for; a dead one holds nothing."""
    from filelock import FileLock, Timeout

    make_folder(path.parent)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with reported(progress, None, f"waiting for another process that fetches {what}"):
                lock.acquire()
    except OSError as error:
        raise SourceError(f"{path} cannot be locked ({error.strerror or error}): set {CACHE_VARIABLE}") from error
    try:
        yield
    finally:
        lock.release()


def sum_of(path: Path, digest: Digest, progress: Progress) -> str:
    """The digest of what it has seen and then of a file, in hexadecimal."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            progress.advance(len(block))
    return digest.hexdigest()
