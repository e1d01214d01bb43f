"""Data sets of a Hugging Face Hub: `hf:owner/name[@revision][:file or beginning of file names]`. Reads no records.

Files stay in the Hub's own cache. After a fetch, a note pins the commit: a run that is resumed sees the same data, with
no network. Only .jsonl and .parquet files are ever fetched, never code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import SourceError
from .hub_files import PART, HubModel, is_offline, listing, noted
from .store import Progress, cache_dir

NAME = re.compile(
    rf"hf:(?P<owner>{PART})/(?P<repository>{PART})(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?(?::(?P<file>\w[\w.+/-]*))?",
    re.ASCII,
)
SPLITS = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
_SHARD = re.compile(r"(-\d+(-of-\d+)?(-[0-9a-f]+)?|/\d+)?\.(jsonl|parquet)$")


@dataclass(frozen=True)
class HubData(HubModel):
    """A parsed name. file: where the names of the files to use begin."""

    @property
    def kind(self) -> str:
        return "dataset"

    @property
    def page(self) -> str:
        return f"datasets/{self.repository}"

    @property
    def note(self) -> Path:
        mark = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return cache_dir() / "hub-data" / f"{self.repository.replace('/', '--')}-{mark}.json"


def parse(name: str) -> HubData:
    found = NAME.fullmatch(name)
    if found is None or ".." in name or "--" in name.partition("@")[0]:
        raise SourceError(
            f"{name!r} is not a data set's name: write hf:owner/name, hf:owner/name@revision, or :file after it"
        )
    return HubData(f"{found['owner']}/{found['repository']}", found["revision"] or "main", found["file"])


def fetch(name: str, progress: Progress, *, offline: bool = False) -> dict[str, list[Path]]:
    """The files of each split, fetched if they are not here. HF_HUB_OFFLINE counts as `offline`. Raises SourceError."""
    data = parse(name)
    here = noted(data)
    if here is None:
        if offline or is_offline():
            raise SourceError(f"{data.name} is not here, and nothing is fetched offline: run this once when online")
        here = _download(data, progress)
    folder, files = here
    return {split: [folder / file for file in names] for split, names in choose(data, files).items()}


def _download(data: HubData, progress: Progress) -> tuple[Path, list[str]]:
    from . import hub

    try:
        with hub.quiet():
            folder, files = hub.download(data, progress, choose_all)
    except SourceError:
        raise
    except Exception as error:  # the library's own errors, its HTTP client's, and the system's
        raise hub.explain(data, error) from error
    hub.write_note(data, folder, files)
    return folder, files


def choose_all(data: HubModel, names: Iterable[str]) -> list[str]:
    return [file for files in choose(data, names).values() for file in files]


def choose(data: HubModel, names: Iterable[str]) -> dict[str, list[str]]:
    """The files of each split out of a repository's: .jsonl, else .parquet. SourceError where that is not clear.

    A name that says no split is taken for training. Files that differ in more than a shard's number are different data:
    of several for training one must be picked, and several for validation are left alone.
    """
    # names come from a server: no name may lead out of the snapshot's folder
    names = sorted(n for n in names if not n.startswith("/") and "\\" not in n and ".." not in n.split("/"))
    readable = [n for n in names if n.endswith((".jsonl", ".parquet"))]
    kept = [n for n in readable if n.startswith(data.file or "")]
    if not kept:
        held = listing(readable) if readable else "no .jsonl and no .parquet file"
        asked = f" that begins with {data.file}" if data.file and readable else ""
        raise SourceError(f"hf:{data.repository} has no file{asked} to train on; it holds {held}")
    kept = [n for n in kept if n.endswith(".jsonl")] or kept
    groups: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for name in kept:
        groups[split_of(name)].setdefault(_SHARD.sub("", name), []).append(name)
    found = groups["train"] or {**groups["valid"], **groups["test"]}
    if len(found) != 1:
        first = [files[0] for files in found.values()]
        raise SourceError(f"hf:{data.repository} holds {listing(first)}: pick one, as hf:{data.repository}:{first[0]}")
    if kept[0].endswith(".parquet") and find_spec("pyarrow") is None:
        raise SourceError(
            f"hf:{data.repository} holds .parquet files only: `pip install pyarrow` to read them, or give .jsonl"
        )
    others = {split: groups[split] for split in SPLITS if groups[split] != found and len(groups[split]) == 1}
    return {split: next(iter(named.values())) for split, named in {"train": found, **others}.items()}


def split_of(name: str) -> str:
    """The split that a file's name speaks of, the file before its folders; "train" where none does."""
    for part in reversed(name.lower().split("/")):
        words = re.split(r"[^a-z]+", part)
        for split, known in SPLITS.items():
            if any(word in known for word in words):
                return split
    return "train"
