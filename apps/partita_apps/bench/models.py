"""What `--model` names: a model, or `shape:3b`, random weights in the shape of one, written once into the cache folder.

Not here: what a shape is (`partita_convert.gguf.shapes`). Invariant: a file that is there is whole.
"""

from __future__ import annotations

from pathlib import Path

PREFIX = "shape:"
VERSION = 1
"""Of what shapes are made of; another one is another file."""


def model_path(name: str | None) -> Path:
    """The folder or file, fetched or written if it is not here. Raises DataError, SourceError."""
    from partita.sources.resolve import resolve

    from ..progress import TerminalProgress

    if name is not None and name.lower().startswith(PREFIX):
        return shape_path(name.lower().removeprefix(PREFIX))
    return resolve(name, progress=TerminalProgress())


def shape_path(name: str) -> Path:
    from partita.errors import DataError
    from partita.sources.store import cache_dir, locked, make_folder, need_room, reported
    from partita_convert.gguf.shapes import SHAPES, shape_bytes, write_shape

    from ..progress import TerminalProgress

    if name not in SHAPES:
        raise DataError(f"unknown shape {name!r}; expected one of {', '.join(SHAPES)}")
    path = cache_dir() / "shapes" / f"{SHAPES[name].architecture}-{name}.{VERSION}.gguf"
    if path.is_file():
        return path
    progress, what = TerminalProgress(), f"writing random weights, {path.name}"
    make_folder(path.parent)
    with locked(path.with_suffix(".lock"), progress, path.name):
        if not path.is_file():
            need_room(path.parent, shape_bytes(SHAPES[name]), path.name)
            with reported(progress, None, what):
                write_shape(SHAPES[name], path, path.stem)
    return path
