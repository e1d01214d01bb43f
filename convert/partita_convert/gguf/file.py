"""The container of a GGUF file, written in one pass: keys, places of tensors, then their bytes, a piece at a time.

Invariants: the same input gives the same bytes; a tensor's type may be decided when its turn comes, since the places
in the header are filled in afterwards; memory holds one piece.

Format: the GGUF specification of the ggml project, version 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from partita.files.bounded import is_list

ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
# name: (type id, numpy's dtype)
_NUMBERS = {
    "u32": (4, "<u4"),
    "i32": (5, "<i4"),
    "f32": (6, "<f4"),
    "bool": (7, "|b1"),
    "u64": (10, "<u8"),
    "i64": (11, "<i8"),
}

TYPES: Mapping[str, tuple[int, int, int]] = {  # name: (type id, values of a block, bytes of a block)
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "BF16": (30, 1, 2),
    "MXFP4": (39, 32, 17),
}


@dataclass(frozen=True)
class Typed:
    """A metadata value. type: "str" or a number's ("u32", "i32", "f32", "bool", "u64", "i64"); many: an array of it."""

    type: str
    value: Any
    many: bool = False

    def encoded(self) -> bytes:
        """Type and value, as in the file."""
        kind = _STRING if self.type == "str" else _NUMBERS[self.type][0]
        if not self.many:
            return struct.pack("<I", kind) + self._body([self.value])
        return struct.pack("<IIQ", _ARRAY, kind, len(self.value)) + self._body(self.value)

    def _body(self, values: Sequence[Any]) -> bytes:
        if self.type == "str":
            return b"".join(map(_text, values))
        return np.asarray(values, _NUMBERS[self.type][1]).tobytes()


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def inferred(value: Any) -> Typed:
    """A value as it was read from a GGUF file, with a type that its readers take. ValueError for a nested array."""
    if is_list(value):
        if any(is_list(item) for item in value):
            raise ValueError("an array of arrays")
        types = {inferred(item).type for item in value} or {"u32"}
        if len(types) > 1:  # integers, some of them negative or large: signed, and wide where any is
            types = {"i64" if types & {"i64", "u64"} or max(value) >= 1 << 31 else "i32"}
        return Typed(types.pop(), value, many=True)
    if isinstance(value, str):
        return Typed("str", value)
    if isinstance(value, bool):
        return Typed("bool", value)
    if isinstance(value, float):
        return Typed("f32", value)
    small = -(1 << 31) <= value < 1 << 32
    return Typed(("i" if value < 0 else "u") + ("32" if small else "64"), value)


FILE_TYPE = "general.file_type"
"""The key of the number that says which type most matrices have."""


class GgufWriter:
    """Header first, then `write` for each tensor in the order given, then `finish`.

    tensors: (name, shape in numpy's order), unique names.
    """

    def __init__(self, file: BinaryIO, keys: Mapping[str, Typed], tensors: Sequence[tuple[str, tuple[int, ...]]]):
        self.file = file
        self.waiting: list[tuple[int, tuple[int, ...]]] = []  # where the header keeps a tensor's type, and its shape
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
        for key, value in keys.items():
            file.write(_text(key) + value.encoded())
            if key == FILE_TYPE:
                self.file_type_at = file.tell() - 4
        for name, shape in tensors:
            file.write(_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
            self.waiting.append((file.tell(), shape))
            file.write(bytes(12))
        self._pad()
        self.start = file.tell()
        self.places: list[tuple[int, bytes]] = []

    def write(self, type_name: str, pieces: Iterable[np.ndarray]) -> int:
        """The next tensor: its bytes in pieces of any shape. Returns their number."""
        (place, shape), begin = self.waiting.pop(0), self.file.tell()
        self.places.append((place, struct.pack("<IQ", TYPES[type_name][0], begin - self.start)))
        for piece in pieces:
            self.file.write(np.ascontiguousarray(piece).view(np.uint8).data)
        nbytes = self.file.tell() - begin
        if nbytes != size(type_name, shape):
            raise ValueError(f"{nbytes} bytes for a tensor of shape {shape} as {type_name}")
        self._pad()
        return nbytes

    def finish(self, file_type: int | None = None) -> int:
        """Fill in the header, and another number as FILE_TYPE if one is given. Returns the file's size."""
        if self.waiting:
            raise ValueError(f"{len(self.waiting)} tensors were not written")
        end = self.file.tell()
        if file_type is not None:
            self.places.append((self.file_type_at, struct.pack("<I", file_type)))
        for place, packed in self.places:
            self.file.seek(place)
            self.file.write(packed)
        self.file.seek(end)
        return end

    def _pad(self) -> None:
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))


def size(type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    _, values, nbytes = TYPES[type_name]
    count = 1
    for length in shape:
        count *= length
    return count // values * nbytes
