"""safetensors files in: one file or a set with an index, headers checked, tensors mapped without a copy.

Invariant: a tensor is handed out only if its place was checked against the file's size,
its shape and its neighbours. The `safetensors` package checks as well, but copies each tensor and has no bfloat16 for
numpy without a conversion; a map of the file gives the same bytes at no cost.

Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes (offsets count from the header's end).
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

import numpy as np

from ..brief import Brief
from ..errors import CheckpointError
from .bounded import INDEX, TENSOR_NAME, find, is_list, is_table, map_file, parse_object, read_object

MAX_HEADER_BYTES = 25 * 1024 * 1024
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 32
INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
_SAMPLE = 1024  # bytes hashed at each sampled place

Place = tuple[str, int, int]

_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
_WITH_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: its file, dtype by safetensors' name, shape, first byte in the file, size."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class SafetensorsSet(Brief):
    """The tensors of a folder, over all its files. promised: tensor to file, as an index has it, found there or not."""

    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, mmap.mmap]
    header_ends: Mapping[str, int]
    promised: Mapping[str, str] = field(default_factory=dict[str, str])

    def read(self, name: str) -> np.ndarray:
        """The tensor as stored, without a copy where it is aligned for its dtype."""
        tensor = self.tensors[name]
        data, dtype = self.files[tensor.file], _dtype(tensor.dtype)
        count = tensor.nbytes // dtype.itemsize
        if tensor.start % dtype.itemsize:
            raw = np.frombuffer(data, np.uint8, tensor.nbytes, tensor.start)
            return raw.copy().view(dtype).reshape(tensor.shape)
        return np.frombuffer(data, dtype, count, tensor.start).reshape(tensor.shape)


def open_folder(folder: Path) -> SafetensorsSet:
    """All tensors of `model*.safetensors` in a folder, of the files that the index names if it is about them.

    An index may have been left by another state of the folder: where `model.safetensors` is there, or others are and
    none of those that it names, they count, as they do for transformers. Whether a tensor is where an index says it is
    does not matter.
    """
    index = find(folder, INDEX_FILE)
    promised = {} if index is None else shard_table(index, ".safetensors")
    names = _weight_files(folder, frozenset(promised.values()))
    tensors: dict[str, StoredTensor] = {}
    files: dict[str, mmap.mmap] = {}
    header_ends: dict[str, int] = {}
    for name in names:
        place = find(folder, name)
        if place is None:
            raise CheckpointError(f"{INDEX_FILE} names {name}, which is not in {folder}; fetch the missing file")
        files[name] = map_file(place)
        found, header_ends[name] = read_header(files[name], name)
        for tensor_name, tensor in found.items():
            if tensor_name in tensors:
                raise CheckpointError(f"{name}: tensor {tensor_name!r} is also in {tensors[tensor_name].file}")
            tensors[tensor_name] = tensor
    return SafetensorsSet(tensors, files, header_ends, promised)


def open_file(path: Path) -> SafetensorsSet:
    """All tensors of one file."""
    data = map_file(path)
    tensors, end = read_header(data, path.name)
    return SafetensorsSet(tensors, {path.name: data}, {path.name: end})


def _weight_files(folder: Path, indexed: frozenset[str]) -> list[str]:
    """Names of the files to read. indexed: those that an index names."""
    if SINGLE_FILE not in indexed and find(folder, SINGLE_FILE) is not None:
        return [SINGLE_FILE]
    names = sorted(path.name for path in folder.glob("model*.safetensors"))
    if indexed and (not names or any(find(folder, name) is not None for name in indexed)):
        return sorted(indexed)
    if not names and any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{folder}: its weights are pickles (.bin), which can run code and are not opened: if you trust their "
            "author, `convert(allow_pickle=True)` makes a folder of safetensors of them"
        )
    if not names:
        raise CheckpointError(f"{folder}: no model.safetensors and no index; other weight formats are not read")
    for name in names:
        shard = re.fullmatch(r"model-(\d+)-of-(\d+)\.safetensors", name)
        if shard and len(names) != int(shard[2]):
            raise CheckpointError(f"{folder}: {len(names)} of {int(shard[2])} weight files are there; fetch the others")
    return names


def shard_table(path: Path, suffix: str) -> dict[str, str]:
    """The weight_map of an index: tensor to the file, ending in `suffix`, that holds it beside the index."""
    weights = read_object(path, INDEX).get("weight_map")
    if not is_table(weights) or not weights or len(weights) > MAX_TENSORS:
        raise CheckpointError(f"{path.name}: weight_map is not a table of tensors")
    for tensor, name in weights.items():
        plain = isinstance(name, str) and name.endswith(suffix) and Path(name).name == name and "\\" not in name
        if not plain or "\0" in name:
            raise CheckpointError(f"{path.name}: tensor {tensor!r} points at {name!r}, not a file beside the index")
    return weights


def read_header(data: mmap.mmap, file: str) -> tuple[dict[str, StoredTensor], int]:
    """The tensors of one file and where its header ends, everything checked."""
    size = len(data)
    length = int.from_bytes(data[:8], "little") if size >= 8 else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"{file}: a header of {length} bytes in a file of {size}; the file is damaged")
    header = parse_object(data[8 : 8 + length], f"{file}: header")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{file}: {len(header)} tensors, the limit is {MAX_TENSORS}")
    base = 8 + length
    tensors = {name: _stored(file, name, entry, base, size) for name, entry in header.items()}
    ordered = sorted(tensors.items(), key=lambda item: item[1].start)
    for (before, first), (after, second) in pairwise(ordered):
        if first.start + first.nbytes > second.start:
            raise CheckpointError(f"{file}: tensors {before!r} and {after!r} overlap")
    return tensors, base


def read_metadata(data: mmap.mmap, file: str) -> dict[str, str]:
    """The strings that one file carries beside its tensors."""
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise CheckpointError(f"{file}: a header of {length} bytes in a file of {len(data)}; the file is damaged")
    metadata = parse_object(data[8 : 8 + length], f"{file}: header").get("__metadata__", {})
    if not is_table(metadata) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: header: __metadata__ is not a table of strings")
    return metadata


def _stored(file: str, name: str, entry: object, base: int, size: int) -> StoredTensor:
    where = f"{file}: tensor {name!r}"
    if len(name) > TENSOR_NAME:
        raise CheckpointError(f"{file}: the name of a tensor has {len(name)} characters, the limit is {TENSOR_NAME}")
    if not is_table(entry):
        raise CheckpointError(f"{where} has no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or (dtype not in _NUMPY and dtype not in _WITH_ML_DTYPES):
        raise CheckpointError(f"{where} has the unknown dtype {dtype!r}")
    if not (_naturals(shape) and _naturals(offsets) and len(shape) <= MAX_DIMENSIONS and len(offsets) == 2):
        raise CheckpointError(f"{where} has shape {shape!r} and offsets {offsets!r}")
    nbytes = math.prod(shape) * _dtype(dtype).itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(f"{where}: shape {shape} in {dtype} needs {nbytes} bytes, {offsets} are given")
    if base + offsets[1] > size:
        raise CheckpointError(f"{where} ends at byte {base + offsets[1]}, the file at {size}; it was cut off")
    return StoredTensor(file, dtype, tuple(shape), base + offsets[0], nbytes)


def _naturals(value: object) -> TypeGuard[list[int]]:
    return is_list(value) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _dtype(name: str) -> np.dtype:
    if name in _NUMPY:
        return np.dtype(_NUMPY[name])
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, _WITH_ML_DTYPES[name]))


def fingerprint(files: Mapping[str, mmap.mmap], header_ends: Mapping[str, int], places: Iterable[Place]) -> str:
    """sha256, in hexadecimal, over each file's name, size and header, and over samples of every tensor.

    places: (file, first byte, size) of each tensor. A tensor of up to 8 KiB counts whole, a larger one by 1 KiB at its
    beginning, middle and end. Costs milliseconds at any size. It tells checkpoints apart; it is no proof of origin.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        data, end = files[name], header_ends[name]
        digest.update(f"{name}\0{len(data)}\0{end}\0".encode())
        digest.update(data[:end])
    for file, start, size in sorted(places):
        data = files[file]
        if size <= 8 * _SAMPLE:
            digest.update(data[start : start + size])
            continue
        for begin in (start, start + size // 2, start + size - _SAMPLE):
            digest.update(data[begin : begin + _SAMPLE])
    return digest.hexdigest()
