"""Folders and files that replace what was there, whole or not at all: written beside their place, flushed, renamed.

For one writer at a time, who owns the place; `partita_convert.atomic` is for places that must be new. Invariant: after
a crash the old one is there, or the new one, or for a folder in one short moment neither but never a part; what killed
writers left goes with the next write.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import DataError

_MARK = ".partial-"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `target` when the block ends well. DataError where the disk refuses."""
    with _beside(target) as partial:
        partial.mkdir()
        yield partial
        for path in (*partial.rglob("*"), partial):
            flush(path)
        if target.exists():
            shutil.rmtree(target)
        os.rename(partial, target)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """The same for a file, which the block must make."""
    with _beside(target) as partial:
        yield partial
        flush(partial)
        os.replace(partial, target)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    partial = target.parent / f".{target.name}{_MARK}{uuid.uuid4().hex[:8]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        flush(target.parent)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        remove(partial)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`, nobody writing there now."""
    for path in folder.glob(f".*{_MARK}*"):
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
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, path, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
