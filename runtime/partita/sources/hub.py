"""Models of a Hugging Face Hub: `hf:owner/name`, with `@revision`, and `:file.gguf` where a repository holds several.

Files stay in the Hub's own cache, where other tools look too. Only what loading reads is fetched: never a pickle, never
code. After a fetch a small note in our cache says which files make the model whole, so that a later start needs
neither the network nor the Hub's library; without a note (another tool downloaded it) the Hub is asked once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from ..errors import DataError, SourceError
from ..files.atomic import whole_file
from ..units import disk_size
from .hub_files import (
    NAME,
    HubModel,
    Note,
    choose,
    find,
    find_unnoted,
    ggufs,
    hub_cache,
    is_whole,
    listing,
    located,
    present,
    snapshot_of,
)
from .store import (
    Progress,
    StoredModel,
    cache_dir,
    chain,
    is_no_room,
    make_folder,
    need_room,
    reported,
    sum_of,
    without_secrets,
)
from .wheel import parts_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

POLL = 0.2  # seconds between two looks at the growing files

# ---------------------------------------------------------------- fetching


def fetch(model: HubModel, progress: Progress, *, refresh: bool = False) -> Path:
    """Ask the Hub what the model is, fetch what is missing, and return its folder or GGUF.

    Without a network, a copy that another tool left whole is used, unless the Hub's word is what was asked for
    (refresh). Raises SourceError.
    """
    try:
        with quiet():
            folder, files = download(model, progress)
    except SourceError:
        raise
    except Exception as error:  # the library's own errors, its HTTP client's, and the system's
        failure = explain(model, error)
        if not refresh and is_unreachable(error) and (found := find(model) or find_unnoted(model)):
            return found
        raise failure from error
    write_note(model, folder, files)
    return located(folder, files)


def write_note(model: HubModel, folder: Path, files: list[str]) -> None:
    """Remember which files of the snapshot `folder` make it whole."""
    note = Note(model.name, folder.name, files)
    with suppress(DataError), whole_file(model.note) as partial:  # without it, the next start only asks the Hub again
        partial.write_text(json.dumps(asdict(note), indent=1), encoding="utf-8")


def download(
    model: HubModel, progress: Progress, choose: Callable[[HubModel, Iterable[str]], list[str]] = choose
) -> tuple[Path, list[str]]:
    """The snapshot's folder and the files that make the model, all of them there. choose: of a repository's files.

    One file after the other, in this thread: the library's pool of threads would finish its files before it lets
    Ctrl-C through. Its transfer of large files is parallel by itself.
    """
    from huggingface_hub import HfApi, hf_hub_download  # pyright: ignore[reportUnknownVariableType]: its bars' type

    with reported(progress, None, f"looking for {model.name}"):
        hub = HfApi(library_name="partita")
        ask = hub.dataset_info if model.kind == "dataset" else hub.model_info
        info = ask(model.repository, revision=model.revision, files_metadata=True)
    entries = {entry.rfilename: entry for entry in info.siblings or []}
    sizes = {name: entry.size or 0 for name, entry in entries.items()}
    files = choose(model, sizes)
    commit = str(info.sha)
    folder = model.storage / "snapshots" / commit
    fresh = [file for file in files if not (folder / file).is_file()]
    missing = sum(sizes[file] for file in fresh)
    need_room(make_folder(hub_cache()), missing, model.name, variable="HF_HOME")
    with reported(progress, missing, f"downloading {model.name}"), watched(model.storage / "blobs", missing, progress):
        for i, file in enumerate(files):
            # asked by its name once, so that the library notes where the branch stands; then by its commit
            revision = model.revision if i == 0 else commit
            hf_hub_download(
                model.repository,
                file,
                repo_type=model.kind,
                revision=revision,
                cache_dir=hub_cache(),
                library_name="partita",
            )
    lost = [file for file in files if not (folder / file).is_file()]
    if lost:  # the branch moved between the two questions
        raise SourceError(f"{model.name} changed while it was fetched, {listing(lost)} did not arrive: try again")
    with reported(progress, missing, f"checking {model.name}"):
        for file in fresh:
            check_bytes(model, folder / file, entries[file], progress)
    return folder, files


def check_bytes(model: HubModel, path: Path, entry: RepoSibling, progress: Progress) -> None:
    """SourceError where a file that has just arrived is not what the Hub holds; it is removed then.

    The Hub's library looks at sizes alone, and goes on where a transfer broke off. entry: what the Hub says, of a large
    file its SHA-256, of a small one git's SHA-1.
    """
    if entry.lfs is not None:
        expected, digest = entry.lfs.sha256, hashlib.sha256()
    else:
        expected, digest = entry.blob_id, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    if expected is None or sum_of(path, digest, progress) == expected:
        return
    for place in {path.resolve(), path}:
        place.unlink(missing_ok=True)
    said = f"SHA-{'1' if entry.lfs is None else '256'} {expected[:12]}…"
    raise SourceError(
        f"{model.name}: {path.name} arrived with other bytes than the Hub says it has ({said}): removed; try again"
    )


@contextmanager
def watched(blobs: Path, total: int, progress: Progress) -> Generator[None, None, None]:
    """Tell `progress` how far `blobs` has grown, up to `total` bytes, from a second thread while the block runs.

    The library's own bars change meaning between its releases; the size of its files does not.
    """
    before, ended, seen = held(blobs), threading.Event(), 0

    def look(now: Callable[[], int]) -> None:
        nonlocal seen
        grown = min(total, now())
        if grown > seen:
            progress.advance(grown - seen)
            seen = grown

    def loop() -> None:
        while not ended.wait(POLL):
            look(lambda: held(blobs) - before)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
        whole = True
    except BaseException:
        whole = False
        raise
    finally:
        ended.set()
        thread.join()
    if whole:
        look(lambda: total)


def held(folder: Path) -> int:
    """Bytes in the files of a folder, which may change meanwhile."""
    size = 0
    for path in folder.glob("*"):
        try:
            size += path.stat().st_size
        except OSError:
            continue
    return size


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Keep the library's bars and its log lines below errors off the terminal: `progress` and one SourceError speak."""
    import logging

    _check_address()
    try:
        from huggingface_hub import constants, utils

        _ = constants.ENDPOINT  # imported now
    except Exception as error:  # it reads a dozen variables of the environment
        said = f"{type(error).__name__}: {without_secrets(str(error))}"
        raise SourceError(
            f"the Hub's library cannot be used ({said}): look at the HF_ variables you have set"
        ) from error
    level, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(max(level, logging.ERROR))
    if bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(level)
        if bars:
            utils.enable_progress_bars()


def _check_address() -> None:
    """SourceError for an HF_ENDPOINT that is no address; it is not shown, as it may hold a password."""
    given = os.environ.get("HF_ENDPOINT")
    if not given:
        return
    try:
        parts = urlsplit(given)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:  # of brackets, or a port that is no number
        sound = False
    if not sound or not given.isprintable():
        raise SourceError("HF_ENDPOINT is not an address: write https://HOST, or unset it for the public Hub")


# ---------------------------------------------------------------- errors


def is_unreachable(error: BaseException) -> bool:
    """Whether the network, not the Hub's answer, is the reason."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    errors = list(chain(error))
    if any(isinstance(e, HfHubHTTPError) and getattr(e.response, "status_code", 0) < 500 for e in errors):
        return False
    return any(
        isinstance(e, (OfflineModeIsEnabled, ConnectionError, TimeoutError, HfHubHTTPError))
        or type(e).__module__.partition(".")[0].startswith(("httpx", "httpcore"))
        for e in errors
    )


def explain(model: HubModel, error: Exception) -> SourceError:
    """What the Hub's library raised, as one line."""
    from huggingface_hub import errors as hub
    from huggingface_hub.constants import ENDPOINT

    def first(kind: type) -> BaseException | None:
        return next((e for e in chain(error) if isinstance(e, kind)), None)

    hub_at = without_secrets(ENDPOINT)
    page = f"{hub_at}/{quote(model.page)}"
    if is_no_room(error):
        return SourceError(f"{model.name}: no space left in {hub_cache()}: free some or point HF_HOME to another disk")
    if first(hub.GatedRepoError):
        return SourceError(f"{model.name} is gated: accept its licence on {page}, then set HF_TOKEN to your token")
    if first(hub.RepositoryNotFoundError):
        return SourceError(
            f"{model.name}: neither a folder here nor a repository that {hub_at} shows to you: check the name; a "
            "private one needs HF_TOKEN"
        )
    if first(hub.RevisionNotFoundError):
        return SourceError(f"hf:{model.repository} has no revision {model.revision!r}: see {page}/tree/main")
    if first(hub.OfflineModeIsEnabled):
        return missing_offline(model)
    if is_unreachable(error):
        return SourceError(
            f"{model.name}: {hub_at} cannot be reached or broke off: try again (what has arrived is kept); "
            "HF_ENDPOINT names another Hub"
        )
    answered = first(hub.HfHubHTTPError)
    if isinstance(answered, hub.HfHubHTTPError):
        return SourceError(f"{model.name}: {hub_at} answered {answered.response.status_code}: see HF_TOKEN, {page}")
    said = without_secrets(" ".join(str(error).split()))[:300]
    return SourceError(f"{model.name}: {type(error).__name__}: {said}")


def missing_offline(model: HubModel) -> SourceError:
    return SourceError(
        f"{model.name} is not complete in {hub_cache()}, and nothing is fetched offline: "
        f"run `partita models pull {model.name}` when online"
    )


# ---------------------------------------------------------------- list and remove


def stored() -> Iterator[StoredModel]:
    """The whole models in the Hub's cache, whoever put them there, by name."""
    for storage in sorted(hub_cache().glob("models--*--*")):
        repository = storage.name.removeprefix("models--").replace("--", "/")
        refs = storage / "refs"
        named = sorted(path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file())
        for revision in named:
            yield from stored_revision(HubModel(repository, revision))


def stored_revision(model: HubModel) -> Iterator[StoredModel]:
    """The safetensors model of one revision, and each of its GGUF files."""
    folder = snapshot_of(model)
    if folder is None or NAME.fullmatch(model.name) is None:
        return
    names = present(folder)
    models = ggufs(names)
    try:
        files = choose(model, [n for n in names if not n.endswith(".gguf")])
    except SourceError:
        files = []
    if files and is_whole(folder, files):
        yield StoredModel(model.name, folder, sum((folder / f).stat().st_size for f in files), "safetensors")
    for file in models:
        name = model.name if len(models) == 1 and not files else f"{model.name}:{file}"
        yield StoredModel(name, folder / file, sum((folder / part).stat().st_size for part in parts_of(file)), "gguf")


def remove(model: HubModel) -> int:
    """Delete a repository, all its revisions, from the Hub's cache; the bytes that it held. SourceError."""
    if model.file is not None or model.revision != "main":
        raise SourceError(
            f"{model.name}: a repository is removed as a whole: `partita models rm hf:{model.repository}`"
        )
    if not model.storage.is_dir():
        raise SourceError(f"{model.name} is not in {hub_cache()}: `partita models list` shows what is")
    if model.storage.is_symlink() or model.storage.resolve().parent != hub_cache().resolve():
        raise SourceError(f"{model.storage} leads outside the cache: not removed")
    size = sum(path.stat().st_size for path in model.storage.rglob("*") if path.is_file() and not path.is_symlink())
    for note in (cache_dir() / "hub").glob(f"{model.repository.replace('/', '--')}-????????????????.json"):
        note.unlink(missing_ok=True)  # first: without its note nothing is taken for whole
    try:
        shutil.rmtree(model.storage)
    except OSError as error:
        raise SourceError(f"{model.storage} cannot be removed whole ({error.strerror}), {disk_size(size)}") from error
    return size
