"""The type of options and arguments that are a person's own paths, and the folder of what is kept for a person."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from partita.errors import DataError
from partita.files.paths import own

DATA_VARIABLE = "PARTITA_DATA"


class OwnPath(click.Path):
    """A `Path` with `~` for the home folder, which a shell leaves alone in `--out=~/run`."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(own(value), param, ctx)


def data_folder() -> Path:
    """$PARTITA_DATA, else the platform's folder for this user's data; made here, for nobody else to look into.

    Raises DataError where it cannot be made.
    """
    given = os.environ.get(DATA_VARIABLE)
    if given:
        path = own(given).absolute()
    else:
        from platformdirs import user_data_path

        path = user_data_path("partita")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path}, the folder for chats, cannot be made: {error.strerror}: set {DATA_VARIABLE} to another one"
        ) from None
    return path
