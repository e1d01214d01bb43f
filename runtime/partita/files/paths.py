"""Paths as people write them, in options, in settings files, in the environment and in calls."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError


def own(path: str | Path) -> Path:
    """`~` is the home folder, also where no shell has seen the text (`out: ~/run` in a file, `--out=~/run`).

    `~somebody` who is not known here is a name like any other. DataError for what cannot be a path.
    """
    text = os.path.expanduser(path)
    if "\0" in text:
        raise DataError(f"{str(path)[:200]!r} cannot be a path: it holds a null byte")
    return Path(text)
