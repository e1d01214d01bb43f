"""GGUF files in: the header checked and parsed, the tensors mapped, nothing believed.

Not here: what a block's bytes mean (`gguf_blocks`) and what a key or a tensor is called elsewhere (`gguf_names`).
Invariant: nothing is allocated from a number in the file before that number was compared with the file's size, so a
damaged or hostile file ends in a CheckpointError, never in a crash or a large allocation.

The header is read by this module and not by the `gguf` package's GGUFReader, which makes several numpy objects for
every string: 7 s for a vocabulary of 262,144 tokens where this takes a fraction of a second, and it slices beyond the
end of a truncated file. The package still knows the rarer block formats; it is imported when one is met.

Format: the GGUF specification of the ggml project, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError

MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 65535  # the specification's own limit for keys
MAX_NESTING = 4  # arrays of arrays are legal; nobody nests them deeply
MAX_ITEMS = 1 << 24  # in one metadata array; vocabularies have 2**18

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

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
    """One tensor of the file. shape is numpy's order (the file's dimensions reversed); start is absolute."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """A validated GGUF file: metadata as Python values (arrays are lists) and where each tensor lies."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    data: mmap.mmap
    header_bytes: int

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes, uint8 (nbytes,), without a copy."""
        tensor = self.tensors[name]
        return np.frombuffer(self.data, np.uint8, tensor.nbytes, tensor.start)


def map_file(path: Path) -> mmap.mmap:
    """The file as private memory: arrays over it are writable without a copy, and the file is never written."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{path.name}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def open_gguf(path: Path) -> GgufFile:
    """Map and validate a GGUF file. CheckpointError names the file and what is wrong with it."""
    data = map_file(path)
    cursor = _Cursor(data, path.name)
    tensor_count, key_count = _read_preamble(cursor)
    metadata = _read_metadata(cursor, key_count)
    infos = [_read_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise cursor.error(f"general.alignment is {alignment!r}, not a power of two")
    header_bytes = cursor.position
    base = -(-header_bytes // alignment) * alignment
    tensors = _place(cursor, infos, base, alignment)
    return GgufFile(path, metadata, tensors, data, header_bytes)


class _Cursor:
    """A position in the header; every step is checked against the end of the file."""

    def __init__(self, data: mmap.mmap, name: str):
        self.data, self.name, self.position, self.end = data, name, 0, len(data)

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: {what} (at byte {self.position}); the file is damaged, fetch it again")

    def need(self, size: int, what: str) -> None:
        if size > self.end - self.position:
            raise self.error(f"{what} needs {size} bytes, {self.end - self.position} are left")

    def u32(self, what: str) -> int:
        self.need(4, what)
        (value,) = _U32.unpack_from(self.data, self.position)
        self.position += 4
        return value

    def u64(self, what: str) -> int:
        self.need(8, what)
        (value,) = _U64.unpack_from(self.data, self.position)
        self.position += 8
        return value

    def string(self, what: str, limit: int | None = None) -> str:
        size = self.u64(what)
        if limit is not None and size > limit:
            raise self.error(f"{what} has {size} bytes, the limit is {limit}")
        self.need(size, what)
        raw = self.data[self.position : self.position + size]
        self.position += size
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8") from None


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    """Magic, version and the two counts: (tensors, metadata keys)."""
    if cursor.end < 24 or cursor.data[:4] != b"GGUF":
        raise CheckpointError(f"{cursor.name}: not a GGUF file (it does not begin with 'GGUF' and a header)")
    cursor.position = 4
    version = cursor.u32("the version")
    if version & 0xFFFF == 0:
        raise CheckpointError(f"{cursor.name}: a big-endian GGUF file; convert it to little-endian first")
    if version not in (2, 3):
        raise CheckpointError(f"{cursor.name}: GGUF version {version} is not known, 2 and 3 are")
    tensor_count, key_count = cursor.u64("the tensor count"), cursor.u64("the key count")
    # the least a key takes: length, one letter, type, one byte; a tensor: length, rank, one size, type, offset
    if key_count * 14 + tensor_count * 32 > cursor.end - cursor.position:
        raise cursor.error(f"{tensor_count} tensors and {key_count} keys do not fit in {cursor.end} bytes")
    return tensor_count, key_count


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string("a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.error(f"the key {key!r} appears twice")
        metadata[key] = _read_value(cursor, cursor.u32(key), key, 0)
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str, depth: int) -> Any:
    if kind == _STRING:
        return cursor.string(key)
    if kind == _ARRAY:
        return _read_array(cursor, key, depth + 1)
    if kind not in _SCALARS:
        raise cursor.error(f"{key}: value type {kind} is not known")
    layout = _SCALARS[kind]
    size = struct.calcsize(layout)
    cursor.need(size, key)
    (value,) = struct.unpack_from(layout, cursor.data, cursor.position)
    cursor.position += size
    return value


def _read_array(cursor: _Cursor, key: str, depth: int) -> list[Any]:
    kind, count = cursor.u32(key), cursor.u64(key)
    if depth > MAX_NESTING:
        raise cursor.error(f"{key}: arrays are nested more than {MAX_NESTING} deep")
    if count > MAX_ITEMS:
        raise cursor.error(f"{key}: an array of {count} items, the limit is {MAX_ITEMS}")
    if kind in _SCALARS:
        dtype = np.dtype(_SCALARS[kind])
        cursor.need(count * dtype.itemsize, key)
        values = np.frombuffer(cursor.data, dtype, count, cursor.position).tolist() if count else []
        cursor.position += count * dtype.itemsize
        return values
    if kind == _STRING:
        cursor.need(count * 8, key)
        return _read_strings(cursor, count, key)
    if kind != _ARRAY:
        raise cursor.error(f"{key}: array type {kind} is not known")
    cursor.need(count * 12, key)
    return [_read_array(cursor, key, depth + 1) for _ in range(count)]


def _read_strings(cursor: _Cursor, count: int, key: str) -> list[str]:
    """A vocabulary: the one loop of the header that matters for start-up, so it spells out what `string` does."""
    data, position, end, unpack = cursor.data, cursor.position, cursor.end, _U64.unpack_from
    raw: list[bytes] = []
    for _ in range(count):
        stop = position + 8
        if stop <= end:
            stop += unpack(data, position)[0]
        if stop > end:
            cursor.position = position
            raise cursor.error(f"{key}: item {len(raw)} of {count} lies beyond the end")
        raw.append(data[position + 8 : stop])
        position = stop
    cursor.position = position
    try:
        return [item.decode() for item in raw]
    except UnicodeDecodeError:
        raise cursor.error(f"{key}: an item is not UTF-8") from None


def _read_tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, dimensions in the file's order, type id, offset), each in range on its own."""
    name = cursor.string("a tensor name", MAX_KEY_BYTES)
    rank = cursor.u32(name)
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise cursor.error(f"tensor {name!r} has {rank} dimensions, 1 to {MAX_DIMENSIONS} are possible")
    dimensions = tuple(cursor.u64(name) for _ in range(rank))
    return name, dimensions, cursor.u32(name), cursor.u64(name)


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


def _place(cursor: _Cursor, infos: list, base: int, alignment: int) -> dict[str, GgufTensor]:
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
        tensors[name] = GgufTensor(name, type_name, dimensions[::-1], start, nbytes)
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.start)
    for before, after in pairwise(ordered):
        if before.start + before.nbytes > after.start:
            raise cursor.error(f"tensors {before.name!r} and {after.name!r} overlap")
    return tensors
