"""The adapters of a chat: read before the model is, named by their folders, and put on it one at a time.

A model with an adapter shares its weights with the model without, so all of them together cost little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence

from partita.adapters.read import Adapter, open_adapter
from partita.errors import DataError
from partita.files.paths import own
from partita.language_model import LanguageModel

from .conversation import NONE


class Adapters:
    """base: the model without any. current: the name of the one in use, or "none"."""

    def __init__(self, base: LanguageModel, found: dict[str, Adapter]):
        self._base, self._found = base, found
        self._made = {NONE: base}
        for (
            name,
            adapter,
        ) in found.items():  # all at once: one that does not suit is reported first
            self._made[name] = base.with_adapter(adapter)
        self.current = next(iter(found), NONE)

    @property
    def names(self) -> list[str]:
        return [*self._found, NONE]

    @property
    def model(self) -> LanguageModel:
        return self._made[self.current]

    def choose(self, name: str) -> LanguageModel:
        """The model with another adapter, which is the current one from now on. DataError for a name not given."""
        if not self._found:
            raise DataError("there are no adapters to choose from: start with `adapter` DIR, several times for several")
        if name not in self._made:
            raise DataError(f"unknown adapter {name!r}; expected one of {', '.join(self.names)}")
        self.current = name
        return self.model


def read(folders: Sequence[str]) -> dict[str, Adapter]:
    """Adapters by the names of their folders; where two are called alike, by their paths. Errors as `open_adapter`."""
    paths = list(dict.fromkeys(folders))
    last = [own(path).resolve().name for path in paths]
    names = [
        short if last.count(short) == 1 and short != NONE else path for path, short in zip(paths, last, strict=True)
    ]
    return {name: open_adapter(path) for name, path in zip(names, paths, strict=True)}
