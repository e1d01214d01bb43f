"""The type of options and arguments that are a person's own paths. Looks at no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from partita.files.paths import own


class OwnPath(click.Path):
    """A `Path` with `~` for the home folder, which a shell leaves alone in `--out=~/run`."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(own(value), param, ctx)
