"""GGUF files in: what a header says of its tensors checked, the tensors mapped, the parts of a split model together.

Not here: the header's bytes (`header`), what a block's bytes mean (`blocks`) and what a key or a tensor is
called elsewhere (`names`). Invariant: a tensor is handed out only if its place was checked against the file's size
and its neighbours, so a damaged or hostile file ends in a CheckpointError, never in a crash or a large allocation.

The header is read by ourselves and not by the `gguf` package's GGUFReader, which makes several numpy objects for
every string: 7 s for a vocabulary of 262,144 tokens where this takes a fraction of a second, and it slices beyond the
end of a truncated file. The package still knows the rarer block formats; it is imported when one is met.

Format: the GGUF specification of the ggml project, versions 2 and 3, little-endian. A model may be split over files:
each has `split.no` and `split.count`, the first the metadata, and all are called PREFIX-00001-of-00003.gguf.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...brief import Brief
from ...errors import CheckpointError
from ...files.bounded import find, forget, map_file
from .header import Cursor, Metadata, TensorInfo, read_header

PART = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE)

# type id: (name, values in a block, bytes in a block), for the types read without the `gguf` package
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. shape is numpy's order (the file's dimensions reversed); start is absolute. part: of a split model,
    from 0."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    part: int = 0


@dataclass(frozen=True)
class GgufFile(Brief):
    """A validated GGUF model: metadata as Python values (arrays are lists) and where each tensor lies.

    parts: the files of a split model, else one. header_bytes: of each.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    parts: tuple[mmap.mmap, ...]
    header_bytes: tuple[int, ...]

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes, uint8 (nbytes,), without a copy."""
        tensor = self.tensors[name]
        return np.frombuffer(self.parts[tensor.part], np.uint8, tensor.nbytes, tensor.start)

    def release(self, name: str) -> None:
        """The pages that hold nothing but this tensor's bytes, which nobody has changed, leave this process's memory
        until they are read again."""
        tensor = self.tensors[name]
        forget(self.parts[tensor.part], tensor.start, tensor.start + tensor.nbytes)


def open_gguf(path: Path) -> GgufFile:
    """Map and validate a GGUF file, and the other parts of a split model beside it.

    CheckpointError names the file and what is wrong with it: another part than the first, a part that is missing.
    """
    first = _open_one(path)
    number, count = _split(first)
    if number:
        named = PART.fullmatch(path.name)
        first_name = f", {named['prefix']}-00001-of-{named['count']}{named['end']}" if named else ""
        raise CheckpointError(
            f"{path.name}: part {number + 1} of {count} of a split model: give its first part{first_name}"
        )
    if count == 1:
        return first
    tensors, files = dict(first.tensors), [first]
    for i, name in enumerate(part_names(path.name, count)[1:], 1):
        place = find(path.parent, name)
        if place is None:
            raise CheckpointError(f"{path.name}: the model is split over {count} files, and {name} is not beside it")
        files.append(_open_one(place, part=i))
        if _split(files[i]) != (i, count):
            raise CheckpointError(f"{name}: it does not say that it is part {i + 1} of {count}, which its name says")
        if twice := tensors.keys() & files[i].tensors.keys():
            raise CheckpointError(f"{name}: tensor {min(twice)!r} is also in another part")
        tensors |= files[i].tensors
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise CheckpointError(f"{path.name}: its {count} parts have {len(tensors)} tensors, {total!r} are announced")
    parts, header_bytes = (sum((getattr(file, field) for file in files), ()) for field in ("parts", "header_bytes"))
    return GgufFile(path, first.metadata, tensors, parts, header_bytes)


def part_names(name: str, count: int) -> list[str]:
    """Names of all parts of a split model, by that of its first. CheckpointError for one that cannot be the first's."""
    found = PART.fullmatch(name)
    if found is None or (int(found["number"]), int(found["count"])) != (1, count):
        raise CheckpointError(
            f"{name}: part 1 of {count} of a split model: call it PREFIX-00001-of-{count:05}.gguf, and the others "
            "accordingly, or merge them with llama-gguf-split"
        )
    return [f"{found['prefix']}-{i:05}-of-{count:05}{found['end']}" for i in range(1, count + 1)]


def _split(file: GgufFile) -> tuple[int, int]:
    """(number from 0, count) of a part; (0, 1) of a model that is not split."""
    number, count = (file.metadata.get(f"split.{key}", default) for key, default in (("no", 0), ("count", 1)))
    if type(number) is not int or type(count) is not int or not 0 <= number < max(count, 1) <= 99_999:
        raise CheckpointError(f"{file.path.name}: no part of a model: split.no {number!r}, split.count {count!r}")
    return number, max(count, 1)


def _open_one(path: Path, part: int = 0) -> GgufFile:
    data = map_file(path)
    cursor = Cursor(data, path.name)
    metadata, infos = read_header(cursor)
    alignment = _alignment(cursor, metadata)
    header_bytes = cursor.position
    base = -(-header_bytes // alignment) * alignment
    tensors = _place(cursor, infos, base, alignment, part)
    return GgufFile(path, metadata, tensors, (data,), (header_bytes,))


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise cursor.error(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _block(kind: int) -> tuple[str, int, int] | None:
    """(name, values, bytes) of a block of a type id; None if neither this module nor the `gguf` package knows it."""
    if kind in _TYPES:
        return _TYPES[kind]
    import gguf  # 0.1 s: only for the rarer types

    try:
        known = gguf.GGMLQuantizationType(kind)
        return known.name, *gguf.GGML_QUANT_SIZES[known]
    except (ValueError, KeyError):
        return None


def _place(cursor: Cursor, infos: list[TensorInfo], base: int, alignment: int, part: int) -> dict[str, GgufTensor]:
    """Turn tensor infos into absolute places, refusing duplicates, overlaps and whatever leaves the file."""
    tensors: dict[str, GgufTensor] = {}
    for name, dimensions, kind, offset in infos:
        block = _block(kind)
        if block is None:
            raise cursor.error(f"tensor {name!r} has the unknown type {kind}")
        if name in tensors:
            raise cursor.error(f"tensor {name!r} appears twice")
        type_name, values, block_bytes = block
        count = math.prod(dimensions)  # Python integers: no overflow
        if count == 0 or dimensions[0] % values:
            raise cursor.error(f"tensor {name!r} of shape {dimensions} does not divide into {type_name} blocks")
        nbytes, start = count // values * block_bytes, base + offset
        if offset % alignment:
            raise cursor.error(f"tensor {name!r} starts at {offset}, not a multiple of {alignment}")
        if start + nbytes > cursor.end:
            raise cursor.error(f"tensor {name!r} ends at byte {start + nbytes}, the file at {cursor.end}")
        tensors[name] = GgufTensor(name, type_name, dimensions[::-1], start, nbytes, part)
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.start)
    for before, after in pairwise(ordered):
        if before.start + before.nbytes > after.start:
            raise cursor.error(f"tensors {before.name!r} and {after.name!r} overlap")
    return tensors
