"""The names of models that requests may use: those that the server was started with, and those on this machine.

Not here: loading. Invariant: a request's name is compared with names, and never opened as a path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError, SourceError
from partita.printable import printable
from partita.sources.resolve import list_models, resolve
from partita.sources.short_names import find_short, short_name
from partita.sources.store import Progress, StoredModel

from .asked import Refused

FRESH = 2.0
"""Seconds until what is on this machine is looked up again."""
_SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Entry:
    """A model that the server knows. path: its folder or file. bytes: on disk. adapters: folders by name. pinned: it is
    loaded at the start and never unloaded. endless: as in `ModelText`. trained_context: tokens, None where its files
    have not been opened yet."""

    name: str
    path: Path
    bytes: int
    adapters: Mapping[str, str] = field(default_factory=dict[str, str])
    pinned: bool = False
    endless: bool = False
    trained_context: int | None = None


def entry(
    source: str | None,
    *,
    adapters: Mapping[str, str] | None = None,
    pinned: bool = False,
    endless: bool = False,
    progress: Progress | None = None,
) -> Entry:
    """Of a MODEL as people write it (None: the default one), which is fetched where it is not here.

    Its name is the short one that `partita models list` shows, else the full one; of a path, the last part. Raises
    SourceError, and where its config cannot be used CheckpointError and UnsupportedModel.
    """
    from partita.model.load import read_config  # for what is named when the server starts alone

    path, stored = resolve(source, progress=progress), list_models()
    own = next((model for model in stored if model.path == path), None)
    if own is not None:
        name = short_name(own, stored) or own.name
    else:
        name = path.stem if path.is_file() else path.resolve().name
    context = read_config(open_checkpoint(path)).max_positions
    return Entry(name, path.absolute(), _bytes(path), dict(adapters or {}), pinned, endless, context)


class Names:
    """entries: what the server was started with, the first one for requests that name none. stored: lists what is on
    this machine besides; None where nothing else may be asked for. Raises DataError where two entries have one name."""

    def __init__(
        self, entries: Sequence[Entry], stored: Callable[[], Sequence[StoredModel]] | None = list_models
    ) -> None:
        self._entries = {each.name: each for each in entries}
        known = [name for each in entries for name in (each.name, *(f"{each.name}:{a}" for a in each.adapters))]
        twice = next((name for i, name in enumerate(known) if name in known[:i]), None)
        if twice is not None:
            raise DataError(f"two models are called {twice}: rename the folder of one of them")
        self._stored, self._looked = stored, -FRESH
        self._found: Sequence[StoredModel] = ()
        self._others: Sequence[Entry] = ()
        self._more: dict[Path, dict[str, str]] = {}  # adapters that came later, by their models' paths

    def entries(self) -> list[Entry]:
        """All models, those of the server first."""
        self._look()
        known = (*self._entries.values(), *self._others)
        return [replace(each, adapters={**self._more.get(each.path, {}), **each.adapters}) for each in known]

    def put_adapter(self, path: Path, name: str, folder: str | None) -> Entry | None:
        """Have a model with an adapter from now on, None: no longer. The model, None where it is not here.

        Raises Refused where the name is another adapter's.
        """
        base = next((each for each in self.entries() if each.path == path), None)
        if folder is not None and base is not None and base.adapters.get(name, folder) != folder:
            raise Refused(f"{base.name} has another adapter {name!r} already", field="name")
        kept = self._more.setdefault(path, {})
        kept.pop(name, None)
        if folder is not None:
            kept[name] = folder
        return next((each for each in self.entries() if each.path == path), None)

    def __iter__(self) -> Iterator[tuple[str, Entry, str]]:
        """(name, model, adapter): each model, and behind it itself with each of its adapters."""
        for each in self.entries():
            yield each.name, each, ""
            for adapter in each.adapters:
                yield f"{each.name}:{adapter}", each, adapter

    def find(self, name: str) -> tuple[Entry, str]:
        """The model and the adapter that a name stands for; the server's first model for "". Raises Refused."""
        for known, each, adapter in self:
            if name in (known, ""):
                return each, adapter
        if (found := self._short(name)) is not None:
            return found, ""
        base, _, adapter = name.rpartition(":")
        if any(adapter in each.adapters for each in self.entries()):
            found = self._short(base)
            if found is not None and adapter in found.adapters:
                return found, adapter
        known = [known for known, _, _ in self]
        shown = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
        raise Refused(printable(f"unknown model {name!r}; expected one of {shown}"), "not_found", field="model")

    def _short(self, name: str) -> Entry | None:
        """The model on this machine that a name is short for, or is the full one of."""
        try:
            model = find_short(name, self._found)
        except SourceError as error:
            raise Refused(str(error), "not_found", field="model") from None
        return None if model is None else next((each for each in self.entries() if each.path == model.path), None)

    def _look(self) -> None:
        """See what is on this machine, unless that was just done."""
        if self._stored is None or time.monotonic() - self._looked < FRESH:
            return
        own = {each.path for each in self._entries.values()}
        self._found = found = list(self._stored())
        self._looked = time.monotonic()
        named = (Entry(short_name(each, found) or each.name, each.path, each.bytes) for each in found)
        self._others = [each for each in named if each.path not in own and each.name not in self._entries]


def _bytes(path: Path) -> int:
    """Of a file, or of a folder's weights."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(each.stat().st_size for each in files)
