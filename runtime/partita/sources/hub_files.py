"""Names of a Hub's repositories, the files that make a model of one, and what the Hub's cache holds of it already.

Asks no network and imports no Hub library, so that starting with a model that is here stays fast. A model counts as
here when our note of its fetch lists files that all exist; without a note, when its shards and tokenizer are all there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, SourceError
from ..files.bounded import INDEX, read_object, read_text
from ..files.typed import Misfit, typed
from .store import cache_dir
from .wheel import is_first, parts_of, wanted

PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
NAME = re.compile(
    rf"(?:hf:)?(?P<owner>{PART})/(?P<repository>{PART})"
    r"(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?"
    r"(?::(?P<file>[A-Za-z0-9][\w.+-]*(?:/[A-Za-z0-9][\w.+-]*)*\.gguf))?",
    re.ASCII,
)
COMMIT = re.compile(r"[0-9a-f]{40}")
PICKLED = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json")


@dataclass(frozen=True)
class Note:
    """What our cache remembers of a fetch. name: as a person types it. files: of the snapshot, which make it whole."""

    name: str
    commit: str
    files: list[str]


@dataclass(frozen=True)
class _ShardIndex:
    """Of a sharded model. weight_map: tensor to file."""

    weight_map: Mapping[str, str]


@dataclass(frozen=True)
class HubModel:
    """A parsed name. revision: a branch, tag or commit. file: the GGUF picked, a path inside the repository.

    pickled: PyTorch's .bin weights will do where there are no others; only the converter reads those, when asked to.
    kind: what the Hub calls such a repository. page: its path on the Hub's site.
    """

    repository: str
    revision: str = "main"
    file: str | None = None
    pickled: bool = False

    @property
    def kind(self) -> str:
        return "model"

    @property
    def page(self) -> str:
        return self.repository

    @property
    def name(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf:{self.repository}{at}" + (f":{self.file}" if self.file else "")

    @property
    def storage(self) -> Path:
        """The repository's folder in the Hub's cache."""
        return hub_cache() / f"{self.kind}s--{self.repository.replace('/', '--')}"

    @property
    def note(self) -> Path:
        mark = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return cache_dir() / "hub" / f"{self.repository.replace('/', '--')}-{mark}.json"


def parse(name: str) -> HubModel | None:
    """`[hf:]owner/name[@revision][:file.gguf]`; None when it is not one; SourceError when it can be nothing else."""
    found = NAME.fullmatch(name)
    if found is None or ".." in name or "--" in name.partition("@")[0]:
        if name.startswith("hf:"):
            raise SourceError(
                f"{name!r} is not a model's name: write hf:owner/name, hf:owner/name@revision, or :file.gguf"
            )
        return None
    if not name.startswith("hf:") and found["file"] is None and found["repository"].endswith(".gguf"):
        return None  # folder/file.gguf is a path
    return HubModel(f"{found['owner']}/{found['repository']}", found["revision"] or "main", found["file"])


def hub_cache() -> Path:
    """The Hub's cache by the rules of its library, without importing it."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(given))).absolute()


def is_offline() -> bool:
    """Whether the user has told Hub clients not to use the network."""
    told_so = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return told_so.upper() in ("1", "ON", "YES", "TRUE")


# ---------------------------------------------------------------- which files make a model


def choose(model: HubModel, names: Iterable[str]) -> list[str]:
    """The files of a repository to fetch: of a GGUF model, or of a safetensors folder. SourceError when unclear."""
    names = sorted(names)
    whole = ggufs(names)
    if model.file is not None:
        parts = list(parts_of(model.file))
        lost = next((n for n in parts if n not in names), None)
        if model.file in names and lost is not None:
            raise SourceError(f"{model.name} is a part of a model that is not whole there: {lost} is missing")
        if model.file in names and model.file != parts[0]:
            raise SourceError(f"{model.name} is a part of a split model: give its first, {parts[0]}")
        if model.file not in whole:
            held = listing(whole) if whole else "no GGUF file"
            raise SourceError(f"hf:{model.repository} has no file {model.file}; it holds {held}")
        return parts
    top = [n for n in names if "/" not in n and wanted(n)]
    weights = [n for n in top if n.endswith(".safetensors") and not n.startswith(("adapter", "consolidated"))]
    if "config.json" in top and weights:
        named = [n for n in weights if n.startswith("model")] or weights
        return [n for n in top if not n.endswith(".safetensors")] + named
    if len(whole) == 1:
        return list(parts_of(whole[0]))
    bins = [n for n in names if PICKLED.fullmatch(n)] if "config.json" in top else []
    if bins and model.pickled:
        return top + bins
    if whole:
        raise SourceError(f"hf:{model.repository} holds {listing(whole)}: pick one, as {model.name}:{whole[0]}")
    if bins:
        raise SourceError(
            f"hf:{model.repository} holds its weights only as pickles (.bin), which can run code: if you trust their "
            "author, `convert(allow_pickle=True)` fetches them and reads them in a separate process"
        )
    raise SourceError(
        f"hf:{model.repository} holds no supported model: neither config.json beside safetensors nor a whole GGUF file"
    )


def ggufs(names: Iterable[str]) -> list[str]:
    """The GGUF models among a repository's files: whole files, and the first of each whole set of parts."""
    held = {n for n in names if n.endswith(".gguf") and not n.rpartition("/")[2].startswith("mmproj")}
    return sorted(n for n in held if is_first(n) and all(part in held for part in parts_of(n)))


def listing(names: list[str]) -> str:
    """At most a dozen names for a message."""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more


def is_whole(folder: Path, files: list[str]) -> bool:
    """Whether the chosen files of a snapshot, all present, can be a whole model: every shard, and a tokenizer."""
    if files[0].endswith(".gguf"):
        return True
    if not {"tokenizer.json", "tokenizer.model"} & set(files):
        return False
    held = set(files)
    for first in {next(parts_of(file)) for file in files}:
        if not all(part in held for part in parts_of(first)):
            return False
    for file in files:
        if file.endswith((".safetensors.index.json", ".bin.index.json")):
            try:
                if not held.issuperset(typed(read_object(folder / file, INDEX), _ShardIndex).weight_map.values()):
                    return False
            except (CheckpointError, Misfit):
                return False
    return True


# ---------------------------------------------------------------- what is here already


def find(model: HubModel) -> Path | None:
    """The snapshot's folder or GGUF when our note says that every file is here, else None. No network."""
    found = noted(model)
    return None if found is None else located(*found)


def noted(model: HubModel) -> tuple[Path, list[str]] | None:
    """The snapshot's folder and the files in it that our note lists, when all of them are here."""
    try:
        note = typed(read_object(model.note), Note)
    except (CheckpointError, Misfit):
        return None
    folder = model.storage / "snapshots" / note.commit
    if not note.files or not all((folder / file).is_file() for file in note.files):
        return None
    return folder, note.files


def find_unnoted(model: HubModel) -> Path | None:
    """What another tool has left in the Hub's cache, when it looks whole, else None. No network."""
    folder = snapshot_of(model)
    if folder is None:
        return None
    try:
        files = choose(model, present(folder))
    except SourceError:
        return None
    return located(folder, files) if is_whole(folder, files) else None


def snapshot_of(model: HubModel) -> Path | None:
    """The folder of the revision in the Hub's cache, or None."""
    commit = model.revision
    if COMMIT.fullmatch(commit) is None:
        try:
            commit = read_text(model.storage / "refs" / model.revision, 100).strip()
        except CheckpointError:
            return None
    folder = model.storage / "snapshots" / commit
    return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


def present(folder: Path) -> list[str]:
    """The files of a snapshot as the repository names them. A link whose target is gone is not there."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def located(folder: Path, files: list[str]) -> Path:
    return folder / files[0] if files[0].endswith(".gguf") else folder
