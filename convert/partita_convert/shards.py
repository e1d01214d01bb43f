"""Tensors in, safetensors files out, each written as it comes: memory holds one tensor, whatever a file's size.

Invariants: the same tensors in the same order give the same bytes; a tensor begins at a multiple of its item's size,
which readers that map files rely on.

The format wants its table of contents first. Room for it is left at the beginning and filled when the file is complete;
what remains of the room is spaces, which the format allows there. Tensors may not have gaps between them, so one whose
bytes are no multiple of eight would shift those behind it: such tensors, rare and small, wait for the file's end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from partita.errors import DataError

SHARD_BYTES = 5 * 1000**3
MAX_ROOM = 24 * 1024**2  # partita opens tables of 25 MiB, the format's own library of 100 MB
_ENTRY_BYTES = 160  # of one tensor in the table, beside its name
_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def header_room(names: Iterable[str]) -> int:
    """Bytes that hold the table of contents of these tensors, or as much of it as a file may have; by eights."""
    room = 64 + sum(_entry_room(name) for name in names)
    return min(room + -room % 8, MAX_ROOM)


def _entry_room(name: str) -> int:
    return len(json.dumps(name)) + _ENTRY_BYTES


class Shards:
    """Files `model.safetensors`, or `model-00001-of-0000N.safetensors` and an index, in a folder.

    form: the "format" that readers look for, "mlx" or "pt". room: bytes for one file's table (`header_room`). limit:
    bytes of a file's tensors; a tensor that is larger has a file of its own.
    """

    def __init__(self, folder: Path, form: str, room: int, limit: int = SHARD_BYTES):
        self.folder, self.form, self.room, self.limit = folder, form, room, limit
        self.places: list[list[str]] = []
        self.total = 0
        self._file: BinaryIO | None = None
        self._begin()

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write tensors that belong together (a weight with its scales and biases) into one file."""
        size = sum(array.nbytes for array in arrays.values())
        table = sum(_entry_room(name) for name in arrays)
        if self._size and (self._size + size > self.limit or 64 + self._table + table > self.room):
            self._end()
        self._table += table
        for name, array in arrays.items():
            self._size += array.nbytes
            if array.nbytes % 8:
                self._waiting[name] = np.array(array)  # a copy, which does not keep more than itself in memory
            else:
                self._append(name, array)

    def finish(self) -> int:
        """Close the last file, give all of them their names, write the index. Returns the tensors' bytes."""
        if self._size or not self.places:
            self._end()
        count = len(self.places)
        index: dict[str, str] = {}
        for number, names in enumerate(self.places):
            file = "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._path(number).rename(self.folder / file)
            index |= dict.fromkeys(names, file)
        if count > 1:
            table = {"metadata": {"total_size": self.total}, "weight_map": index}
            write_json(self.folder / "model.safetensors.index.json", table)
        return self.total

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._entries: dict[str, dict[str, object]] = {}
        self._waiting: dict[str, np.ndarray] = {}
        self._size = self._table = self._end_of_data = 0

    def _append(self, name: str, array: np.ndarray) -> None:
        if self._file is None:
            self._file = self._path(len(self.places)).open("wb")
            self._file.seek(8 + self.room)
        if array.dtype.name not in _NAMES:
            raise DataError(f"{name}: safetensors has no dtype {array.dtype.name}")
        place = [self._end_of_data, self._end_of_data + array.nbytes]
        self._entries[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": place}
        self._end_of_data = place[1]
        if array.nbytes:
            # not tofile(), whose error on a full disk has no number and no reason
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _end(self) -> None:
        for name, array in sorted(self._waiting.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
            self._append(name, array)
        if self._file is None:  # a model without any tensor, still a file
            self._file = self._path(len(self.places)).open("wb")
        table = {"__metadata__": {"format": self.form}, **self._entries}
        header = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        if len(header) > self.room:
            raise DataError(f"{len(self._entries)} tensors need a table of {len(header)} bytes, {self.room} are left")
        self._file.seek(0)
        self._file.write(self.room.to_bytes(8, "little"))
        self._file.write(header.ljust(self.room))
        self.close()
        self.places.append(list(self._entries))
        self.total += self._end_of_data
        self._begin()

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number}"


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
