"""The header of a GGUF file: counts, keys and values, and what is said of each tensor; read with every step checked.

Not here: where tensors lie, split models (`reader`). Invariants: nothing is allocated from a number in the file before
that number was compared with the file's size; a value stays in place until its key is asked for, so opening a file
takes memory for its keys' names alone; the items of all arrays together are bounded, and so is the time.

Values under `general.` are texts for people, and are shown whatever their bytes are; elsewhere a text that is not UTF-8
is refused when it is asked for.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...files.bounded import TENSOR_NAME

MAGIC = b"GGUF"
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 65535  # the specification's own limit for keys
MAX_KEYS = 1 << 16
MAX_TENSORS = 100_000
MAX_NESTING = 4  # arrays of arrays are legal; nobody nests them deeply
MAX_ITEMS = 1 << 22  # of all arrays; a vocabulary of 2**18 tokens, its scores, types and merges have 2**20
_ARRAY_COUNTS = 64  # an array in an array, as many items: it takes as long to step over
_FOR_PEOPLE = "general."

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

TensorInfo = tuple[str, tuple[int, ...], int, int]
"""Name, dimensions in the file's order, type id, offset: each in range on its own."""
Maker = Callable[[], Any]


class Cursor:
    """A position in the header; every step is checked against the end of the file. items: of arrays, met so far."""

    def __init__(self, data: mmap.mmap, name: str, position: int = 0):
        self.data, self.name, self.position, self.end, self.items = data, name, position, len(data), 0

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

    def skip_string(self, what: str, limit: int | None = None) -> tuple[int, int]:
        """Where the bytes of a string begin and end."""
        size = self.u64(what)
        if limit is not None and size > limit:
            raise self.error(f"{what} has {size} bytes, the limit is {limit}")
        self.need(size, what)
        start = self.position
        self.position += size
        return start, self.position

    def name_of(self, what: str) -> str:
        """A key's or a tensor's name."""
        start, stop = self.skip_string(what, MAX_KEY_BYTES)
        try:
            return self.data[start:stop].decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8") from None

    def count(self, items: int, what: str) -> None:
        """Items of an array are about to be read."""
        self.items += items
        if self.items > MAX_ITEMS:
            raise self.error(f"{what}: an array of {items} items, the limit is {MAX_ITEMS} in all arrays together")


class Metadata(Mapping[str, Any]):
    """Keys and values of a file, each value made when it is first asked for: numbers, texts, and lists of these.

    CheckpointError, when a value is asked for: a text that is not UTF-8.
    """

    def __init__(self, makers: Mapping[str, Maker]):
        self._makers, self._made = makers, dict[str, Any]()

    def __getitem__(self, key: str) -> Any:
        if key not in self._made:
            self._made[key] = self._makers[key]()
        return self._made[key]

    def __contains__(self, key: object) -> bool:
        return key in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def read_header(cursor: Cursor) -> tuple[Metadata, list[TensorInfo]]:
    """Everything before the tensors' bytes; the cursor then stands behind it."""
    tensor_count, key_count = _read_preamble(cursor)
    metadata = _read_metadata(cursor, key_count)
    return metadata, [_read_tensor_info(cursor) for _ in range(tensor_count)]


def _read_preamble(cursor: Cursor) -> tuple[int, int]:
    """Magic, version and the two counts: (tensors, metadata keys)."""
    if cursor.end < 24 or cursor.data[:4] != MAGIC:
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
    if key_count > MAX_KEYS or tensor_count > MAX_TENSORS:
        raise cursor.error(f"{tensor_count} tensors and {key_count} keys, the limits are {MAX_TENSORS} and {MAX_KEYS}")
    return tensor_count, key_count


def _read_metadata(cursor: Cursor, count: int) -> Metadata:
    makers: dict[str, Maker] = {}
    for _ in range(count):
        key = cursor.name_of("a metadata key")
        if key in makers:
            raise cursor.error(f"the key {key!r} appears twice")
        makers[key] = _value(cursor, cursor.u32(key), key)
    return Metadata(makers)


def _value(cursor: Cursor, kind: int, key: str) -> Maker:
    """Step over a value; what makes it."""
    if kind == _STRING:
        start, stop = cursor.skip_string(key)
        return lambda: _texts(cursor.data, key, start, [stop])[0]
    if kind == _ARRAY:
        return _array(cursor, key, 1)
    if kind not in _SCALARS:
        raise cursor.error(f"{key}: value type {kind} is not known")
    layout = _SCALARS[kind]
    size = struct.calcsize(layout)
    cursor.need(size, key)
    (value,) = struct.unpack_from(layout, cursor.data, cursor.position)
    cursor.position += size
    return lambda: value


def _array(cursor: Cursor, key: str, depth: int) -> Maker:
    begin = cursor.position
    kind, count = cursor.u32(key), cursor.u64(key)
    if depth > MAX_NESTING:
        raise cursor.error(f"{key}: arrays are nested more than {MAX_NESTING} deep")
    cursor.count(count * _ARRAY_COUNTS if kind == _ARRAY else count, key)
    if kind in _SCALARS:
        dtype = np.dtype(_SCALARS[kind])
        cursor.need(count * dtype.itemsize, key)
        start = cursor.position
        cursor.position += count * dtype.itemsize
        return lambda: np.frombuffer(cursor.data, dtype, count, start).tolist() if count else []
    if kind == _STRING:
        cursor.need(count * 8, key)
        start = cursor.position + 8
        return partial(_texts, cursor.data, key, start, _skip_strings(cursor, count, key))
    if kind != _ARRAY:
        raise cursor.error(f"{key}: array type {kind} is not known")
    cursor.need(count * 12, key)
    for _ in range(count):
        _array(cursor, key, depth + 1)
    return lambda: _arrays(Cursor(cursor.data, cursor.name, begin), key, depth)


def _arrays(cursor: Cursor, key: str, depth: int) -> list[Any]:
    """An array of arrays, read again: what makes each of its items would take more room than they do."""
    cursor.position += 4  # its type
    return [_array(cursor, key, depth + 1)() for _ in range(cursor.u64(key))]


def _skip_strings(cursor: Cursor, count: int, key: str) -> array[int]:
    """Where each string ends. A vocabulary: the loop of the header that matters for start-up."""
    position, last, unpack, data = cursor.position, cursor.end - 8, _U64.unpack_from, cursor.data
    ends = array("Q")
    add = ends.append
    for _ in range(count):
        if position > last:
            break
        position += 8 + unpack(data, position)[0]
        if position > cursor.end:
            break
        add(position)
    if len(ends) < count:
        raise cursor.error(f"{key}: item {len(ends)} of {count} lies beyond the end")
    cursor.position = position
    return ends


def _texts(data: mmap.mmap, key: str, start: int, ends: array[int] | list[int]) -> list[str]:
    """Strings that follow one another, each with its length in eight bytes before it. start: of the first."""
    begin = start
    found: list[str] = []
    add = found.append
    try:
        for stop in ends:
            add(data[start:stop].decode())
            start = stop + 8
        return found
    except UnicodeDecodeError:
        if not key.startswith(_FOR_PEOPLE):
            raise CheckpointError(f"{key}: a text is not UTF-8 (at byte {start}); the file is damaged") from None
    starts = [begin, *(stop + 8 for stop in ends)]
    return [data[a:b].decode(errors="replace") for a, b in zip(starts, ends, strict=False)]


def _read_tensor_info(cursor: Cursor) -> TensorInfo:
    name = cursor.name_of("a tensor name")
    if len(name) > TENSOR_NAME:
        raise cursor.error(f"the name of a tensor has {len(name)} characters, the limit is {TENSOR_NAME}")
    rank = cursor.u32(name)
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise cursor.error(f"tensor {name!r} has {rank} dimensions, 1 to {MAX_DIMENSIONS} are possible")
    dimensions = tuple(cursor.u64(name) for _ in range(rank))
    return name, dimensions, cursor.u32(name), cursor.u64(name)
